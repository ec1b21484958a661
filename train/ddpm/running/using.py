"""What sample.py and score.py share: which run is meant, and how it is sampled."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from data.errors import InputError
from data.options import parse
from train.ddpm import samplers
from train.ddpm.running import job, model
from train.ddpm.running.config import CONFIGS, FitConfig
from train.ddpm.running.flags import about
from train.ddpm.running.model import Model
from train.ddpm.running.run_options import RunOptions
from train.ddpm.walk import Sampler


def find_run(options: RunOptions) -> Path:
    """The run that is meant; without any, the default one of fit.py is trained now, which takes a minute or two."""
    if options.run is not None:
        return options.run
    newest = model.newest_run(options.runs)
    if newest is not None:
        return newest
    print(f"no finished run in {options.runs}/: training the default one first (python train/ddpm/fit.py)", flush=True)
    flags = ["--runs", str(options.runs), *(["--threads", str(options.threads)] if options.threads else [])]
    code, found = job.follow(parse(FitConfig, flags, prog="fit.py", preset=CONFIGS / "digits.yaml"))
    if code:
        raise KeyboardInterrupt  # it was asked to stop; the same command goes on from there
    return found.path


def open_model(options: RunOptions) -> tuple[Path, Model]:
    """The run and its network, on the best device there is. Raises InputError."""
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    folder = find_run(options)
    found = model.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    source = f"{folder}: {found.options.name} on {found.source}"
    print(f"network:   {source}, {found.frame.channels} x {found.frame.size} x {found.frame.size}", flush=True)
    return folder, found.with_network(torch.compile(found.network, dynamic=False)) if options.compile else found  # type: ignore[arg-type]


def sampler_of(options: RunOptions, found: Model) -> Sampler:
    """The sampler asked for, with as many steps as the schedule has at most. Raises InputError naming the flag."""
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
    home = folder if (folder / "config.yaml").is_file() else folder.parent
    try:
        return FitConfig.model_validate(yaml.safe_load((home / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError):
        fix = "Give the whole run folder of train/ddpm/fit.py, not a copy of its export."
        raise InputError("holds no settings of a run, so its pictures are not known", where=folder, fix=fix) from None
