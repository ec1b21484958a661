"""What sample.py and score.py share: which run is meant, and how it is sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from data.options import Options

if TYPE_CHECKING:
    from train.ddpm.running.config import FitConfig
    from train.ddpm.running.model import Model
    from train.ddpm.walk import Sampler


class RunOptions(Options):
    """Parent of the options of commands that use a trained network."""

    run: Path | None = None
    """run folder of fit.py, or its export; default: the newest finished one in --runs, else one is trained first"""
    runs: Path = Path("runs")
    """folder of the run folders"""
    sampler: str = "ddim"
    """fixed-large or fixed-small (the paper's), learned-range, ddim, heun, dpm++; naive for the course's mix"""
    steps: int | None = Field(default=50, gt=0)
    """steps of the sampler; at most those of the schedule"""
    spacing: str = "linspace"
    """which timesteps are visited: linspace, leading or trailing"""
    eta: float = Field(default=0.0, ge=0, le=1)
    """how much of ddim's noise is new: 0 none, 1 ancestral"""
    guidance: float = Field(default=1.0, allow_inf_nan=False)
    """how strongly the class steers: 0 not at all, 1 as learned, more of it above"""
    compile: bool = False
    """compile the network with torch.compile, as a CUDA graph on a GPU: a minute at the start, faster looks"""
    clip: bool = True
    """keep the predicted picture within [-1, 1] at every step"""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """of the first picture; the next has seed + 1"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; default: all cores"""


def find_run(options: RunOptions) -> Path:
    """The run that is meant; without any, the default one of fit.py is trained now, which takes a minute or two."""
    from train.ddpm.running import job, model
    from train.ddpm.running.config import CONFIGS, FitConfig

    if options.run is not None:
        return options.run
    newest = model.newest_run(options.runs)
    if newest is not None:
        return newest
    print(f"no finished run in {options.runs}/: training the default one first (python train/ddpm/fit.py)", flush=True)
    from data.options import parse

    flags = ["--runs", str(options.runs), *(["--threads", str(options.threads)] if options.threads else [])]
    code, found = job.follow(parse(FitConfig, flags, prog="fit.py", preset=CONFIGS / "digits.yaml"))
    if code:
        raise KeyboardInterrupt  # it was asked to stop; the same command goes on from there
    return found.path


def open_model(options: RunOptions) -> tuple[Path, Model]:
    """The run and its network, on the best device there is. Raises InputError."""
    import os

    import torch

    from train.ddpm.running import captured, model

    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    folder = find_run(options)
    found = model.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    source = f"{folder}: {found.options.name} on {found.source}"
    print(f"network:   {source}, {found.frame.channels} x {found.frame.size} x {found.frame.size}", flush=True)
    return folder, found.with_network(captured.Captured(found.network)) if options.compile else found


def sampler_of(options: RunOptions, found: Model) -> Sampler:
    """The sampler asked for, with as many steps as the schedule has at most. Raises InputError naming the flag."""
    from data.errors import InputError
    from train.ddpm import samplers
    from train.ddpm.running.flags import about

    count = min(options.steps or found.schedule.steps, found.schedule.steps)
    extra = {"eta": options.eta} if options.eta else {}
    with about("--sampler"):
        made = samplers.make(options.sampler, count=count, **extra)
    if isinstance(made, samplers.Ancestral) and made.variance == "learned-range" != found.objective.variance:
        others = ", ".join(name for name in samplers.NAMED if name not in ("learned-range", "naive"))
        raise InputError("the network learned no variance", where="--sampler", allowed=others)
    with about("--spacing"):
        made = replace(made, spacing=options.spacing)
        made.chain(found.schedule)
    return made


def config_of(folder: Path) -> FitConfig:
    """The settings that a run was made with. Raises InputError for a folder that is no run."""
    import yaml
    from pydantic import ValidationError

    from data.errors import InputError
    from train.ddpm.running.config import FitConfig

    home = folder if (folder / "config.yaml").is_file() else folder.parent
    try:
        return FitConfig.model_validate(yaml.safe_load((home / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError):
        fix = "Give the whole run folder of train/ddpm/fit.py, not a copy of its export."
        raise InputError("holds no settings of a run, so its pictures are not known", where=folder, fix=fix) from None
