"""Options of fit.py, sample.py, score.py and compare.py. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data.cli import Options
from train.config import ENDLESS_SCHEDULES, EmaOptions, OptimOptions
from train.ddpm.config import AnyNetwork, ConvNextOptions, ImageSetOptions, ObjectiveOptions, ScheduleOptions

CONFIGS = Path(__file__).parents[1] / "configs"


class ValidationOptions(Options):
    """The error of x_0 at fixed noise, on held-out images and on as many training images."""

    every: int = Field(default=200, gt=0)
    """optimiser steps between validations; the first is before step 1"""
    pictures: int = Field(default=64, gt=0)
    """maximum number of images per split"""
    timesteps: int = Field(default=8, gt=0)
    """number of evenly spaced timesteps"""


class PreviewOptions(Options):
    """Image grids generated during training, always from the same noise."""

    every: int = Field(default=1000, ge=0)
    """optimiser steps between grids, and at the end; 0: none"""
    count: int = Field(default=18, gt=0)
    """images of a grid, six in a row"""
    sampler: str = "ddim"
    """a sampler of train/ddpm/samplers.py (sample.py --help lists them); naive for --objective.corruption mix"""
    steps: int = Field(default=50, gt=0)
    """sampler steps"""


class CheckpointOptions(Options):
    """Checkpoints, from which a killed run resumes."""

    every: int = Field(default=500, gt=0)
    """optimiser steps between checkpoints"""
    keep: int = Field(default=2, gt=0)
    """number of checkpoints to keep"""


class FitConfig(Options):
    """Options of fit.py."""

    config: Path = CONFIGS / "digits.yaml"
    """preset: a YAML file with the differences from the defaults"""
    data: ImageSetOptions = ImageSetOptions()
    network: AnyNetwork = ConvNextOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    conditional: bool = False
    """condition the network on the class"""
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    """share of images whose class is dropped, for classifier-free guidance"""
    optim: OptimOptions = OptimOptions(weight_decay=0.0)
    ema: EmaOptions = EmaOptions(decay=0.995)
    looks: ValidationOptions = ValidationOptions()
    drawings: PreviewOptions = PreviewOptions()
    checkpoints: CheckpointOptions = CheckpointOptions()
    learning_rate: float = Field(default=1e-3, gt=0)
    """peak learning rate"""
    batch_size: int = Field(default=128, gt=0)
    """images per process and step"""
    epochs: float | None = Field(default=None, gt=0)
    """passes over the images; instead of --max-steps"""
    max_steps: int = Field(default=1000, gt=0)
    """optimiser steps, if --epochs is not given"""
    log_every: int = Field(default=20, gt=0)
    """optimiser steps between log lines; reading a loss makes a GPU wait"""
    tensorboard: bool = False
    """also write TensorBoard files"""
    compile: bool = False
    """compile the network with torch.compile: minutes at the start, faster steps"""
    channels_last: bool = True
    """channels-last memory format, faster for convolutions"""
    seed: int = 0
    """random seed"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; default: the cores divided by the processes"""
    runs: Path = Path("runs")
    """folder of the run folders"""
    run_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """name of the run folder after its number; default: ddpm, the set and the network"""
    new: bool = False
    """start a new run even if one with these settings exists"""

    def steps(self, images: int, global_batch: int) -> int:
        """Optimiser steps of the run."""
        return math.ceil(self.epochs * images / global_batch) if self.epochs else self.max_steps

    @property
    def name(self) -> str:
        """Name of the run folder, after its number."""
        word = self.data.set.rstrip("/").rpartition("/")[2] or "set"
        plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in word)
        return self.run_name or f"ddpm-{plain}-{self.network.kind}"


# May change when a run is resumed: paths, length, what is logged.
NOT_IDENTITY = {"config", "max_steps", "epochs", "threads", "runs", "run_name", "new", "log_every", "tensorboard"}
NOT_IDENTITY |= {"looks", "drawings", "checkpoints"}

# Options that always count. Later ones count only where they differ from their default, so that a new option does not
# orphan earlier runs.
FIRST_OPTIONS = {
    "": "conditional class_dropout learning_rate batch_size compile channels_last seed",
    "data": "set size mode flip only column label_column subset split most held_out",
    "network": "kind width multiples init_width block multiple scale_shift full_skip time "
    "widths blocks attention groups dropout final_activation",
    "schedule": "name steps zero_terminal_snr",
    "objective": "predicts loss bound variance weighting gamma corruption",
    "optim": "kind beta1 beta2 epsilon weight_decay clip_norm schedule warmup",
    "ema": "decay device warmup",
}


def identity(config: FitConfig, fingerprint: str, steps: int) -> str:
    """A hash of what makes two runs the same. The number of steps counts only if the learning rate depends on it."""
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=NOT_IDENTITY)
    changed: dict[str, Any] = config.model_dump(mode="json", exclude=NOT_IDENTITY, exclude_defaults=True)
    for section, first in FIRST_OPTIONS.items():
        options, differing = (settings[section], changed.get(section, {})) if section else (settings, changed)
        for name in options.keys() - {*first.split(), *FIRST_OPTIONS, *differing}:
            del options[name]
    if config.optim.schedule not in ENDLESS_SCHEDULES:
        settings["steps"] = steps
    return hashlib.sha256(json.dumps(["ddpm", settings, fingerprint], sort_keys=True).encode()).hexdigest()


ALIASES = {"--lr": "--learning-rate", "--train-batch-size": "--batch-size", "--max-train-steps": "--max-steps"}


class RunOptions(Options):
    """Options of commands that use a trained network."""

    run: Path | None = None
    """run folder of fit.py, or its export; default: the newest finished one in --runs, else one is trained first"""
    runs: Path = Path("runs")
    """folder of the run folders"""
    sampler: str = "ddim"
    """a sampler of train/ddpm/samplers.py (sample.py --help lists them)"""
    steps: int | None = Field(default=50, gt=0)
    """sampler steps; at most those of the schedule"""
    spacing: str = "linspace"
    """which timesteps are used: linspace, leading or trailing"""
    eta: float = Field(default=0.0, ge=0, le=1)
    """DDIM eta: 0 deterministic, 1 ancestral"""
    guidance: float = Field(default=1.0, allow_inf_nan=False)
    """classifier-free guidance scale: 0 unconditional, 1 the class as learned, above 1 stronger"""
    compile: bool = False
    """compile the network with torch.compile: slower to start, faster steps"""
    clip: bool = True
    """clip the predicted image to [-1, 1] at every step"""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """seed of the first image; the next has seed + 1"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; default: all cores"""
    batch_size: int = Field(default=128, gt=0)
    """images generated at once; they do not depend on it beyond rounding"""


class SampleOptions(RunOptions):
    """Generate images with a trained network."""

    count: int = Field(default=40, gt=0)
    """images of the grid"""
    columns: int = Field(default=10, gt=0)
    """images in a row of the grid"""
    only: list[str] = Field(default=[])
    """class to generate, by name; may be repeated; default: all in turn, if the network is conditional"""
    walk: bool = True
    """also write the trajectory from noise: trajectory.png, progressive.png, walk.gif, walk.mp4"""
    frames: int = Field(default=60, gt=1)
    """frames of walk.gif and walk.mp4, at most one a step"""
    interpolate: bool = False
    """also interpolate between pairs of held-out images: interpolation.png"""
    depth: float = Field(default=0.5, ge=0, le=1)
    """how much noise is added before interpolating: 0 none, 1 pure noise"""
    inpaint: Literal["no", "left", "right", "middle"] = "no"
    """also hide this part of held-out images and inpaint it: inpainting.png"""
    repeats: int = Field(default=5, gt=0)
    """how often each inpainting step is repeated (RePaint)"""
    out: Path | None = None
    """output folder; default: outputs/RUN-SAMPLER"""


class ScoreOptions(RunOptions):
    """Evaluate a trained network."""

    count: int = Field(default=400, gt=1)
    """images generated for the distances and the classifier, compared with as many real ones"""
    features: Literal["auto", "classifier", "pixels", "descriptors", "clip", "dinov2"] = "auto"
    """feature space of the distances; auto: a classifier of the set's own classes, descriptors if it has none"""
    features_folder: Path | None = None
    """model folder for clip or dinov2"""
    bits: int = Field(default=16, ge=0)
    """held-out images whose bits per dimension are computed, with every timestep; 0: none"""
    variance: str | None = None
    """variance of the reverse steps in the bound; default: the one of the training"""
    k: int = Field(default=3, gt=0)
    """nearest neighbours of precision and recall"""
    out: Path | None = None
    """output folder of score.html and score.json; default: RUN/score"""


class CompareOptions(Options):
    """The course's study: UNet2DModel against BasicUNet with and without skip connections, on one set of images."""

    data: ImageSetOptions = ImageSetOptions()
    seeds: int = Field(default=1, gt=0, le=100)
    """trainings of each network from different random weights; conclusions need several"""
    steps: int = Field(default=400, gt=0)
    """optimiser steps of each training"""
    batch_size: int = Field(default=64, gt=0)
    """images per step"""
    learning_rate: float = Field(default=1e-3, gt=0)
    """learning rate of all three networks"""
    schedule: ScheduleOptions = ScheduleOptions()
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """noise that BasicUNet's images are mixed with: gaussian, as in the course's report, or uniform, as in its
    notebook"""
    widths: tuple[int, ...] = Field(default=(32, 64, 64), min_length=1)
    """channels of UNet2DModel's levels; the course has 32, 64, 64"""
    pictures: int = Field(default=128, gt=1)
    """maximum number of held-out images for the comparison"""
    timesteps: int = Field(default=20, gt=0)
    """number of evenly spaced timesteps"""
    bits: int = Field(default=8, ge=0)
    """held-out images whose bits per dimension are computed, for each seed; 0: none"""
    drawn: int = Field(default=24, gt=0)
    """images generated by each network"""
    resamples: int = Field(default=2000, gt=99)
    """bootstrap resamples"""
    seed: int = 0
    """random seed"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; default: all cores"""
    runs: Path = Path("runs")
    """folder of the run folders; finished trainings are reused"""
    out: Path = Path("outputs/ddpm-compare")
    """output folder of compare.html, its images and compare.json"""
