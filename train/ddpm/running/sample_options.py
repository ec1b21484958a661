"""What sample.py can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from train.ddpm.running.run_options import RunOptions


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
