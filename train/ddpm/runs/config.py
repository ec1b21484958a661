"""Everything that fit.py can be told, with its defaults. Read before torch is loaded."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, Self
from pydantic import Field, model_validator
from data.errors import InputError
from data.cli import Options
from train.ddpm.image_set_options import ImageSetOptions
from train.config import ENDLESS_SCHEDULES
from train.config import EmaOptions
from train.ddpm.unets.config import AnyNetwork
from train.ddpm.unets.config import ConvNextOptions
from train.optim import OptimOptions
from pathlib import Path
from pydantic import Field
from data.cli import Options
from pathlib import Path
from typing import Literal
from pydantic import Field
from pathlib import Path
from typing import Literal
from pydantic import Field
from pathlib import Path
from typing import Literal
from pydantic import Field
from data.cli import Options
from train.ddpm.image_set_options import ImageSetOptions

CONFIGS = Path(__file__).parents[1] / "configs"
BOUND_ONLY = ("only", "importance")  # the bound without L_simple


class ScheduleOptions(Options):
    """How much noise each step adds."""

    name: str = "linear"
    """linear, scaled_linear (also called quadratic), sigmoid, cosine or cosine_capped; train/ddpm/schedule.py"""
    steps: int = Field(default=1000, gt=0)
    """T, the number of steps"""
    zero_terminal_snr: bool = False
    """rescale it so that the last step holds no trace of the picture; not for noise prediction"""


class ObjectiveOptions(Options):
    """What the network learns."""

    predicts: Literal["eps", "x0", "v", "mean"] = "eps"
    """what the network answers: the noise, the picture, the velocity, or the mean of the step below"""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """distance between the answer and what it should have been"""
    bound: Literal["no", "hybrid", "only", "importance"] = "no"
    """the variational bound: not at all (L_simple), 0.001 of it besides, for a learned variance, or nothing else;
    importance: nothing else, and timesteps drawn more often where it is large"""
    variance: Literal["fixed-large", "fixed-small", "learned-range"] = "fixed-large"
    """variance of a reverse step; learned-range: the network has twice the channels, and needs --objective.bound"""
    weighting: Literal["none", "min-snr", "soft-min-snr"] = "none"
    """what each timestep counts: all the same, or no more than gamma allows where there is little noise"""
    gamma: float | None = Field(default=None, gt=0)
    """signal-to-noise ratio above which timesteps are held back; default 5 and 4, as in the papers"""
    corruption: Literal["gaussian", "mix"] = "gaussian"
    """gaussian: q(x_t | x_0); mix: (1 - a) x_0 + a eps with an even amount a, as in the course, for x0 prediction"""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """what the mix is with: gaussian, as the course's report says, or uniform, as its notebook does"""

    @model_validator(mode="after")
    def settings_fit_together(self) -> Self:
        if self.corruption == "mix" and (self.predicts != "x0" or self.bound != "no"):
            what = "the course's mix is no Gaussian process: only the picture can be predicted from it"
            raise InputError(what, where="--objective.corruption", allowed="--objective.predicts x0, no bound")
        if self.noise != "gaussian" and self.corruption != "mix":
            raise InputError("the Gaussian process has Gaussian noise", where="--objective.noise", allowed="gaussian")
        if self.weighting != "none" and (self.predicts == "mean" or self.bound in BOUND_ONLY):
            what = "weighting is of an error of eps, x0 or v"
            raise InputError(what, where="--objective.weighting", allowed="none")
        if self.weighting == "none" and self.gamma is not None:
            raise InputError("means nothing without --objective.weighting", where="--objective.gamma")
        learns = self.variance == "learned-range"
        if learns != (self.bound == "hybrid") and not (learns and self.bound in BOUND_ONLY):
            what = "a learned variance learns from the bound, and the hybrid is for it"
            fix = "Give both --objective.variance learned-range and --objective.bound hybrid, or neither."
            raise InputError(what, where="--objective.bound", fix=fix)
        return self


class ValidationOptions(Options):
    """The error at fixed noise, on held-out pictures and as many training pictures."""

    every: int = Field(default=200, gt=0)
    """optimiser steps from one look to the next; the first is before step 1"""
    pictures: int = Field(default=64, gt=0)
    """pictures looked at, at most, of each side"""
    timesteps: int = Field(default=8, gt=0)
    """evenly spread timesteps at which each is looked at"""


class PreviewOptions(Options):
    """Pictures drawn while it trains, always from the same noise."""

    every: int = Field(default=1000, ge=0)
    """optimiser steps from one grid to the next, and at the end; 0: none"""
    count: int = Field(default=18, gt=0)
    """pictures of a grid, six in a row"""
    sampler: str = "ddim"
    """a sampler of train/ddpm/samplers.py (sample.py --help lists them); naive for --objective.corruption mix"""
    steps: int = Field(default=50, gt=0)
    """steps of the sampler"""


class CheckpointOptions(Options):
    """What is kept so that a killed run goes on."""

    every: int = Field(default=500, gt=0)
    """optimiser steps from one checkpoint to the next"""
    keep: int = Field(default=2, gt=0)
    """how many are kept"""


class FitConfig(Options):
    """A run of fit.py."""

    config: Path = CONFIGS / "digits.yaml"
    """preset to start from: a YAML file with the differences from the defaults"""
    data: ImageSetOptions = ImageSetOptions()
    network: AnyNetwork = ConvNextOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    conditional: bool = False
    """tell the network the class, so that one can be asked for"""
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    """share of pictures whose class is hidden, which guidance needs"""
    optim: OptimOptions = OptimOptions(weight_decay=0.0)
    ema: EmaOptions = EmaOptions(decay=0.995)
    looks: ValidationOptions = ValidationOptions()
    drawings: PreviewOptions = PreviewOptions()
    checkpoints: CheckpointOptions = CheckpointOptions()
    learning_rate: float = Field(default=1e-3, gt=0)
    """peak learning rate"""
    batch_size: int = Field(default=128, gt=0)
    """pictures in one process' batch"""
    epochs: float | None = Field(default=None, gt=0)
    """times through the pictures; instead of --max-steps"""
    max_steps: int = Field(default=1000, gt=0)
    """optimiser steps, where no epochs are given"""
    log_every: int = Field(default=20, gt=0)
    """optimiser steps from one reading of the losses to the next: reading makes a GPU wait"""
    tensorboard: bool = False
    """also write TensorBoard files"""
    compile: bool = False
    """compile the network with torch.compile: minutes at the start, faster steps"""
    channels_last: bool = True
    """keep pictures and weights with their channels together in memory, which convolutions are faster on"""
    seed: int = 0
    """everything random follows from it"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; default: the cores divided by the processes"""
    runs: Path = Path("runs")
    """folder of the run folders"""
    run_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """name of the run's folder after its number; default: ddpm, the set and the network"""
    new: bool = False
    """start another run even if one with these settings is there"""

    def steps(self, pictures: int, global_batch: int) -> int:
        """Optimiser steps of the run."""
        return math.ceil(self.epochs * pictures / global_batch) if self.epochs else self.max_steps

    @property
    def name(self) -> str:
        """Of the run folder, after its number."""
        word = self.data.set.rstrip("/").rpartition("/")[2] or "set"
        plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in word)
        return self.run_name or f"ddpm-{plain}-{self.network.name}"


# May change when the same run is continued: where things lie, how long it goes on, what is written down.
NOT_IDENTITY = {"config", "max_steps", "epochs", "threads", "runs", "run_name", "new", "log_every", "tensorboard"}
NOT_IDENTITY |= {"looks", "drawings", "checkpoints"}


def identity(config: FitConfig, fingerprint: str, steps: int) -> str:
    """A hash of what makes two runs the same. The number of steps counts only where the learning rate depends on it."""
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=set(NOT_IDENTITY))
    if config.objective.noise == "gaussian":
        del settings["objective"]["noise"]  # runs from before it could be chosen had this
    if config.optim.schedule not in ENDLESS_SCHEDULES:
        settings["steps"] = steps
    return hashlib.sha256(json.dumps(["ddpm", settings, fingerprint], sort_keys=True).encode()).hexdigest()


ALIASES = {"--lr": "--learning-rate", "--train-batch-size": "--batch-size", "--max-train-steps": "--max-steps"}


class RunOptions(Options):
    """Parent of the options of commands that use a trained network."""

    run: Path | None = None
    """run folder of fit.py, or its export; default: the newest finished one in --runs, else one is trained first"""
    runs: Path = Path("runs")
    """folder of the run folders"""
    sampler: str = "ddim"
    """one of the samplers listed above (train/ddpm/samplers.py)"""
    steps: int | None = Field(default=50, gt=0)
    """steps of the sampler; at most those of the schedule"""
    spacing: str = "linspace"
    """which timesteps are visited: linspace, leading or trailing"""
    eta: float = Field(default=0.0, ge=0, le=1)
    """how much of ddim's noise is new: 0 none, 1 ancestral"""
    guidance: float = Field(default=1.0, allow_inf_nan=False)
    """how strongly the class steers: 0 not at all, 1 as learned, more of it above"""
    compile: bool = False
    """compile the network with torch.compile: slower to start, faster steps"""
    clip: bool = True
    """keep the predicted picture within [-1, 1] at every step"""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """of the first picture; the next has seed + 1"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; default: all cores"""


class SampleOptions(RunOptions):
    """Draw pictures with a trained network."""

    count: int = Field(default=40, gt=0)
    """pictures of the grid"""
    columns: int = Field(default=10, gt=0)
    """pictures in a row of the grid"""
    only: list[str] = Field(default=[])
    """class to draw, by its name; may be repeated; default: all in turn, if the network was told any"""
    walk: bool = True
    """also draw the way from noise: trajectory.png, progressive.png, walk.gif, walk.mp4"""
    frames: int = Field(default=60, gt=1)
    """frames of walk.gif and walk.mp4, at most one a step"""
    interpolate: bool = False
    """also draw between pairs of held-out pictures: interpolation.png"""
    depth: float = Field(default=0.5, ge=0, le=1)
    """how far up the chain pictures are noised before they are mixed: 0 not at all, 1 to noise"""
    inpaint: Literal["no", "left", "right", "middle"] = "no"
    """also hide this part of held-out pictures and draw it anew: inpainting.png"""
    repeats: int = Field(default=5, gt=0)
    """how often each inpainting step is taken"""
    batch_size: int = Field(default=128, gt=0)
    """pictures drawn at once; they do not depend on it beyond rounding"""
    out: Path | None = None
    """folder of the pictures; default: outputs/RUN-SAMPLER"""


class ScoreOptions(RunOptions):
    """Measure a trained network."""

    count: int = Field(default=400, gt=1)
    """pictures drawn for the distances and the classifier; the same number of real ones is compared with them"""
    features: Literal["auto", "classifier", "pixels", "descriptors", "clip", "dinov2"] = "auto"
    """what distances are measured in; auto: a classifier of the set's own classes, descriptors where it has none"""
    features_folder: Path | None = None
    """folder of the model behind clip or dinov2"""
    bits: int = Field(default=16, ge=0)
    """held-out pictures whose bits per dimension are measured, with every timestep; 0: none"""
    variance: str | None = None
    """variance of the reverse steps in the bound; default: the one trained with"""
    k: int = Field(default=3, gt=0)
    """nearest neighbours of precision and recall"""
    batch_size: int = Field(default=128, gt=0)
    """pictures drawn at once"""
    out: Path | None = None
    """folder of score.html and score.json; default: RUN/score"""


class CompareOptions(Options):
    """The course's study: UNet2DModel against BasicUNet with and without skip connections, on one set of pictures."""

    data: ImageSetOptions = ImageSetOptions()
    seeds: int = Field(default=1, gt=0, le=100)
    """trainings of each network, from different random weights; verdicts need several"""
    steps: int = Field(default=400, gt=0)
    """optimiser steps of each training"""
    batch_size: int = Field(default=64, gt=0)
    """pictures of a step"""
    learning_rate: float = Field(default=1e-3, gt=0)
    """of all three networks"""
    schedule: ScheduleOptions = ScheduleOptions()
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """what BasicUNet's pictures are mixed with: gaussian, as the course's report says, or uniform, as its notebook"""
    widths: tuple[int, ...] = Field(default=(32, 64, 64), min_length=1)
    """channels of UNet2DModel's levels; the course has 32, 64, 64"""
    pictures: int = Field(default=128, gt=1)
    """held-out pictures that verdicts rest on, at most"""
    timesteps: int = Field(default=20, gt=0)
    """evenly spread timesteps at which they are looked at"""
    bits: int = Field(default=8, ge=0)
    """held-out pictures whose bits per dimension are measured, for each seed; 0: none"""
    drawn: int = Field(default=24, gt=0)
    """pictures drawn by each network"""
    resamples: int = Field(default=2000, gt=99)
    """of the bootstrap"""
    seed: int = 0
    """everything random follows from it"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; default: all cores"""
    runs: Path = Path("runs")
    """folder of the run folders; a training that is there is not done again"""
    out: Path = Path("outputs/ddpm-compare")
    """folder of compare.html, its pictures and compare.json"""
