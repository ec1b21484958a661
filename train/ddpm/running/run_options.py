"""Options that sample.py and score.py share: which run, and how it is sampled."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from data.options import Options


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
