"""What compare.py can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.options import Options
from data.sets.options import SetOptions
from train.ddpm.running.config import ScheduleOptions


class CompareOptions(Options):
    """The course's study: UNet2DModel against BasicUNet with and without skip connections, on one set of pictures."""

    data: SetOptions = SetOptions()
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
