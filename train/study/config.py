"""The options of run.py and classify.py. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.cli import Options
from train.study.arms import ARMS

Recipe = Literal["equal", "thesis"]
Net = Literal["tiny", "resnet34"]


class Training(Options):
    """How one classifier is trained."""

    net: Net = "tiny"
    """tiny: 60,000 weights, for 32 to 64 pixels; resnet34: ResNet-34 from random weights, as in the thesis"""
    size: int = Field(default=32, ge=8, le=512)
    """pixels a side; pictures are squashed to it, as in the thesis (which had 256)"""
    recipe: Recipe = "equal"
    """equal: every arm takes --steps optimiser steps; thesis: 30 passes over the arm's own pictures, whatever their
    number, with the learning rate cut to a tenth every 7 passes"""
    steps: int = Field(default=300, ge=1)
    """optimiser steps of the recipe `equal`"""
    passes: int = Field(default=30, ge=1)
    """passes over the arm's pictures of the recipe `thesis`"""
    batch_size: int = Field(default=32, ge=1)
    """pictures a step"""
    learning_rate: float = Field(default=1e-3, gt=0.0, allow_inf_nan=False)
    """Adam's"""
    seed: int = Field(default=0, ge=0)
    """of weights, order of pictures and splits"""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0: all cores"""
    device: str | None = None
    """cpu, cuda, mps; default: a GPU if there is one"""


class StudyOptions(Training):
    """What run.py can be told."""

    real: Path | None = None
    """real pictures: a folder for each class, or a captioned folder with types; default: the sample creatures"""
    artificial: tuple[Path, ...] = ()
    """generated pictures of the same classes, one folder a generator; default: drawn by the newest run"""
    per_class: int = Field(default=1000, ge=4)
    """at most so many pictures of a class are used, the thesis' own cap"""
    repeats: int = Field(default=5, ge=2)
    """times everything is done, each on a new split; 2 points of accuracy need about 8, 1 point 24"""
    test_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    """share of the real pictures kept for testing, by whole groups"""
    arms: tuple[str, ...] = tuple(ARMS)
    """which training sets are compared"""
    margin: float = Field(default=4.0, gt=0.0)
    """points of accuracy within which two arms count as equal (the thesis: "less than 4 points")"""
    drawn_per_class: int = Field(default=32, ge=2)
    """pictures of a class that are drawn where no --artificial is given; as many real ones are used, so that the arms
    are of one size"""
    drawn_steps: int = Field(default=12, ge=1)
    """denoising steps of those"""
    outdir: Path | None = None
    """where predictions and the report lie; the same folder goes on; default: outputs/study"""


class ClassifyOptions(Training):
    """What classify.py can be told."""

    train: Path | None = None
    """pictures to learn from: a folder for each class; default: the sample creatures"""
    test: Path | None = None
    """pictures to be tested on, of the same classes; default: a fifth of --train, by whole groups"""
    per_class: int = Field(default=1000, ge=4)
    """at most so many pictures of a class are used"""
    outdir: Path | None = None
    """where weights and predictions lie; default: the next free folder in outputs/"""
