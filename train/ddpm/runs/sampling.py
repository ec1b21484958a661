"""What sample.py and score.py share: which run is meant, and how it is sampled."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
import torch
import yaml
from pydantic import ValidationError
from data.errors import InputError
from data.cli import parse
from train.ddpm import samplers
from train.ddpm.runs import model
from train.ddpm.runs import trainer
from train.ddpm.runs.config import CONFIGS
from train.ddpm.runs.config import FitConfig
from train.ddpm.runs.model import blame_flag
from train.ddpm.runs.model import Model
from train.ddpm.runs.config import RunOptions
from train.ddpm.samplers import Sampler
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
import torch
from torch import Tensor
from data.errors import InputError
from train.ddpm.image_sets import load_image_set
from train.ddpm.image_sets import to_uint8
from train.ddpm.image_sets import to_float
from data.shapes import Images
from train.ddpm import samplers
from train.ddpm import editing
from train.ddpm.editing import Inpainting
from train.ddpm.runs import grids
from train.ddpm.runs.model import Model
from train.ddpm.runs.config import SampleOptions
from train.ddpm.samplers import Sampler
from train.ddpm.samplers import SamplerState

def find_run(options: RunOptions) -> Path:
    """The run that is meant; without any, the default one of fit.py is trained now, which takes a minute or two."""
    if options.run is not None:
        return options.run
    newest = model.newest_finished_run(options.runs)
    if newest is not None:
        return newest
    print(f"no finished run in {options.runs}/: training the default one first (python train/ddpm/fit.py)", flush=True)
    flags = ["--runs", str(options.runs), *(["--threads", str(options.threads)] if options.threads else [])]
    code, found = trainer.fit_or_resume(parse(FitConfig, flags, prog="fit.py", preset=CONFIGS / "digits.yaml"))
    if code:
        raise KeyboardInterrupt  # it was asked to stop; the same command goes on from there
    return found.path


def open_model(options: RunOptions) -> tuple[Path, Model]:
    """The run and its network, on the best device there is. Raises InputError."""
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    folder = find_run(options)
    found = model.load_model(folder, "cuda" if torch.cuda.is_available() else "cpu")
    source = f"{folder}: {found.options.name} on {found.source}"
    print(f"network:   {source}, {found.frame.channels} x {found.frame.size} x {found.frame.size}", flush=True)
    return folder, found.with_network(torch.compile(found.network, dynamic=False)) if options.compile else found  # type: ignore[arg-type]


def build_sampler(options: RunOptions, found: Model) -> Sampler:
    """The sampler asked for, with as many steps as the schedule has at most. Raises InputError naming the flag."""
    count = min(options.steps or found.schedule.steps, found.schedule.steps)
    extra = {"eta": options.eta} if options.eta else {}
    with blame_flag("--sampler"):
        made = samplers.make_sampler(options.sampler, count=count, **extra)
    if isinstance(made, samplers.Ancestral) and made.variance == "learned-range" != found.objective.variance:
        others = ", ".join(name for name in samplers.SAMPLERS if name not in ("learned-range", "naive"))
        raise InputError("the network learned no variance", where="--sampler", allowed=others)
    with blame_flag("--spacing"):
        made = replace(made, spacing=options.spacing)
        made.chain(found.schedule)
    return made


def read_run_config(folder: Path) -> FitConfig:
    """The settings that a run was made with. Raises InputError for a folder that is no run."""
    home = folder if (folder / "config.yaml").is_file() else folder.parent
    try:
        return FitConfig.model_validate(yaml.safe_load((home / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError):
        fix = "Give the whole run folder of train/ddpm/fit.py, not a copy of its export."
        raise InputError("holds no settings of a run, so its pictures are not known", where=folder, fix=fix) from None


COLUMNS = 12  # states of a strip
SHOWN = 6  # pictures in a walk, and pairs interpolated
SHARES = 9  # of an interpolation, both ends included


@dataclass(frozen=True)
class SamplingJob:
    """What all parts need."""

    options: SampleOptions
    folder: Path  # of the run
    model: Model
    sampler: Sampler
    labels: Tensor | None  # (count,)
    out: Path

    def some_labels(self, count: int) -> Tensor | None:
        return None if self.labels is None else self.labels[:count]


def sample(options: SampleOptions) -> int:
    """Draw what was asked for; returns the exit code."""
    folder, model = open_model(options)
    sampler = build_sampler(options, model)
    labels = model.labels_of(options.only, options.count, "--only")
    out = options.out or Path("outputs") / f"{folder.name}-{options.sampler}"
    work = SamplingJob(options, folder, model, sampler, labels, out)
    made = [write_grid(work)]
    made += write_trajectory(work) if options.walk else []
    made += [write_interpolation(work)] if options.interpolate else []
    made += [write_inpainting(work)] if options.inpaint != "no" else []
    for path in made:
        print(f"drawn:     {path}")
    return 0


def write_grid(work: SamplingJob) -> Path:
    """The pictures, each a function of its own seed."""
    options = work.options
    drawn = grids.generate_images(
        work.model,
        work.sampler,
        options.count,
        seed=options.seed,
        labels=work.labels,
        scale=options.guidance,
        clip=options.clip,
        batch=options.batch_size,
    )
    return grids.write_png(grids.image_grid(to_uint8(drawn), options.columns), work.out / "grid.png")


def write_trajectory(work: SamplingJob) -> list[Path]:
    """The way from noise: strips of x_t and of the picture expected at each state, and the walk as GIF and MP4."""
    count = min(SHOWN, work.options.count)
    states = all_states(work, count)
    strip = grids.pick_states(states, len(states), COLUMNS)
    moving = grids.pick_states(states, len(states), work.options.frames)
    frames = list(grids.state_frames(moving, count))
    return [
        grids.write_png(grids.image_grid(to_uint8(stack_rows([s.xt for s in strip])), len(strip)), work.out / "trajectory.png"),
        grids.write_png(grids.image_grid(to_uint8(stack_rows([s.x0 for s in strip])), len(strip)), work.out / "progressive.png"),
        grids.write_gif(frames, work.out / "walk.gif"),
        grids.write_mp4(frames, work.out / "walk.mp4"),
    ]


def all_states(work: SamplingJob, count: int) -> list[SamplerState]:
    """Every state of the first `count` pictures' walk, on the CPU."""
    labels, options = work.some_labels(count), work.options
    predict = work.model.for_sampler(work.sampler, labels, options.guidance, clip=options.clip)
    own = samplers.seeded_noise(options.seed, count, work.model.shape, work.model.device)
    start = work.model.start(work.sampler, own)
    walked = work.sampler.steps(predict, work.model.schedule, start, own)
    return [SamplerState(state.t, state.xt.cpu(), state.x0.cpu()) for state in walked]


def stack_rows(columns: list[Images]) -> Images:
    """States of a walk, (B, C, S, S) each -> all pictures in reading order: a row for each picture of the batch."""
    return torch.stack(columns, dim=1).flatten(0, 1)


def write_interpolation(work: SamplingJob) -> Path:
    """Between pairs of held-out pictures: noised part of the way up, mixed, drawn down again.

    No class is told: between two classes there is none, and the one would draw the other's picture as its own.
    """
    check_gaussian(work, "--interpolate")
    real, _ = held_out_images(work, 2 * SHOWN)
    shares = torch.linspace(0, 1, SHARES, device=work.model.device)
    start = round(work.options.depth * (len(work.sampler.chain(work.model.schedule)) - 1))
    found: list[Images] = []
    for pair in range(len(real) // 2):
        one, other = real[2 * pair], real[2 * pair + 1]
        predict = work.model.predict(clip=work.options.clip)
        same = samplers.SeededNoise((work.options.seed + pair,) * SHARES, work.model.shape, work.model.device)
        between = editing.interpolate(work.sampler, predict, work.model.schedule, (one, other), shares, start, same)
        found.append(torch.cat([one[None], between, other[None]]).cpu())
    return grids.write_png(grids.image_grid(to_uint8(torch.cat(found)), SHARES + 2), work.out / "interpolation.png")


def write_inpainting(work: SamplingJob) -> Path:
    """Held-out pictures of which a part is hidden and drawn anew: each with what is known, and two completions."""
    check_gaussian(work, "--inpaint")
    real, labels = held_out_images(work, SHOWN)
    mask = known_mask(work.options.inpaint, work.model.frame.size).to(real)
    predict = work.model.predict(labels, work.options.guidance, clip=work.options.clip)
    held = Inpainting(work.sampler, real, mask, repeats=work.options.repeats)
    drawn: list[Images] = []
    for start in (work.options.seed, work.options.seed + len(real)):
        own = samplers.seeded_noise(start, len(real), work.model.shape, work.model.device)
        drawn.append(samplers.generate(held, predict, work.model.schedule, own.start(), own))
    known = torch.where(mask > 0, real, torch.zeros_like(real))
    cells = stack_rows([real.cpu(), known.cpu(), *[picture.cpu() for picture in drawn]])
    return grids.write_png(grids.image_grid(to_uint8(cells), 2 + len(drawn)), work.out / "inpainting.png")


def known_mask(part: Literal["no", "left", "right", "middle"], size: int) -> Tensor:
    """(1, 1, S, S): 1 where the picture is known."""
    mask = torch.ones(1, 1, size, size)
    columns = {"left": slice(0, size // 2), "right": slice(size // 2, size)}
    if part == "middle":
        mask[..., size // 4 : size - size // 4, size // 4 : size - size // 4] = 0
    else:
        mask[..., columns[part]] = 0
    return mask


def held_out_images(work: SamplingJob, count: int) -> tuple[Images, Tensor | None]:
    """Pictures that the run has not been trained on, and their classes if the network was told any."""
    config = read_run_config(work.folder)
    _, unseen = load_image_set(config.data, seed=config.seed).split(config.data.held_out, config.seed)
    if len(unseen) < 2:
        raise InputError("the run held no pictures out", where=work.folder, fix="Train with --data.held-out 0.1.")
    some = unseen.taken(range(min(count, len(unseen)))).to(work.model.device)
    return to_float(some.pixels), some.labels if work.model.classes else None


def check_gaussian(work: SamplingJob, flag: str) -> None:
    if work.sampler.corruption == "mix":
        raise InputError("is for samplers of the Gaussian process", where=flag, fix="Add --sampler ddim.")
