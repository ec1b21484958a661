"""Everything that fit.py can be told, with its defaults. Read before torch is loaded."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data.errors import InputError
from data.options import Options
from data.sets.options import SetOptions
from train.config import SCHEDULES_WITHOUT_END, Averaging
from train.ddpm.networks.kinds import AnyNetwork, ConvNext
from train.optim import OptimConfig

CONFIGS = Path(__file__).parents[1] / "configs"
ALONE = ("only", "importance")  # the bound without L_simple


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
        if self.weighting != "none" and (self.predicts == "mean" or self.bound in ALONE):
            what = "weighting is of an error of eps, x0 or v"
            raise InputError(what, where="--objective.weighting", allowed="none")
        if self.weighting == "none" and self.gamma is not None:
            raise InputError("means nothing without --objective.weighting", where="--objective.gamma")
        learns = self.variance == "learned-range"
        if learns != (self.bound == "hybrid") and not (learns and self.bound in ALONE):
            what = "a learned variance learns from the bound, and the hybrid is for it"
            fix = "Give both --objective.variance learned-range and --objective.bound hybrid, or neither."
            raise InputError(what, where="--objective.bound", fix=fix)
        return self


class Looks(Options):
    """The error at fixed noise, on held-out pictures and as many training pictures."""

    every: int = Field(default=200, gt=0)
    """optimiser steps from one look to the next; the first is before step 1"""
    pictures: int = Field(default=64, gt=0)
    """pictures looked at, at most, of each side"""
    timesteps: int = Field(default=8, gt=0)
    """evenly spread timesteps at which each is looked at"""


class Drawings(Options):
    """Pictures drawn while it trains, always from the same noise."""

    every: int = Field(default=1000, ge=0)
    """optimiser steps from one grid to the next, and at the end; 0: none"""
    count: int = Field(default=18, gt=0)
    """pictures of a grid, six in a row"""
    sampler: str = "ddim"
    """a sampler of train/ddpm/samplers.py (sample.py --help lists them); naive for --objective.corruption mix"""
    steps: int = Field(default=50, gt=0)
    """steps of the sampler"""


class Keeping(Options):
    """What is kept so that a killed run goes on."""

    every: int = Field(default=500, gt=0)
    """optimiser steps from one checkpoint to the next"""
    keep: int = Field(default=2, gt=0)
    """how many are kept"""


class FitConfig(Options):
    """A run of fit.py."""

    config: Path = CONFIGS / "digits.yaml"
    """preset to start from: a YAML file with the differences from the defaults"""
    data: SetOptions = SetOptions()
    network: AnyNetwork = ConvNext()
    schedule: ScheduleOptions = ScheduleOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    conditional: bool = False
    """tell the network the class, so that one can be asked for"""
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    """share of pictures whose class is hidden, which guidance needs"""
    optim: OptimConfig = OptimConfig(weight_decay=0.0)
    ema: Averaging = Averaging(decay=0.995)
    looks: Looks = Looks()
    drawings: Drawings = Drawings()
    checkpoints: Keeping = Keeping()
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
AT_WILL = {"config", "max_steps", "epochs", "threads", "runs", "run_name", "new", "log_every", "tensorboard"}
AT_WILL |= {"looks", "drawings", "checkpoints"}


def identity(config: FitConfig, fingerprint: str, steps: int) -> str:
    """A hash of what makes two runs the same. The number of steps counts only where the learning rate depends on it."""
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=set(AT_WILL))
    if config.objective.noise == "gaussian":
        del settings["objective"]["noise"]  # runs from before it could be chosen had this
    if config.optim.schedule not in SCHEDULES_WITHOUT_END:
        settings["steps"] = steps
    return hashlib.sha256(json.dumps(["ddpm", settings, fingerprint], sort_keys=True).encode()).hexdigest()


ALIASES = {"--lr": "--learning-rate", "--train-batch-size": "--batch-size", "--max-train-steps": "--max-steps"}
