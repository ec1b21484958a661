"""What sample.py makes: grids, walks from noise to picture, interpolation, inpainting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data.errors import InputError
from data.sets.load import load
from data.sets.pictures import levels, unit
from data.shapes import Images
from train.ddpm import inversion, noise, samplers
from train.ddpm.inpainting import Inpainting
from train.ddpm.running import drawing
from train.ddpm.running.model import Model
from train.ddpm.running.sample_options import SampleOptions
from train.ddpm.running.using import config_of, open_model, sampler_of
from train.ddpm.walk import Sampler, State

COLUMNS = 12  # states of a strip
SHOWN = 6  # pictures in a walk, and pairs interpolated
SHARES = 9  # of an interpolation, both ends included


@dataclass(frozen=True)
class Work:
    """What all parts need."""

    options: SampleOptions
    folder: Path  # of the run
    model: Model
    sampler: Sampler
    labels: Tensor | None  # (count,)
    out: Path

    def some_labels(self, count: int) -> Tensor | None:
        return None if self.labels is None else self.labels[:count]


def run(options: SampleOptions) -> int:
    """Draw what was asked for; returns the exit code."""
    folder, model = open_model(options)
    sampler = sampler_of(options, model)
    labels = model.labels_of(options.only, options.count, "--only")
    out = options.out or Path("outputs") / f"{folder.name}-{options.sampler}"
    work = Work(options, folder, model, sampler, labels, out)
    made = [grid(work)]
    made += walk(work) if options.walk else []
    made += [interpolate(work)] if options.interpolate else []
    made += [inpaint(work)] if options.inpaint != "no" else []
    for path in made:
        print(f"drawn:     {path}")
    return 0


def grid(work: Work) -> Path:
    """The pictures, each a function of its own seed."""
    options = work.options
    drawn = drawing.draw(
        work.model,
        work.sampler,
        options.count,
        seed=options.seed,
        labels=work.labels,
        scale=options.guidance,
        clip=options.clip,
        batch=options.batch_size,
    )
    return drawing.png(drawing.grid(levels(drawn), options.columns), work.out / "grid.png")


def walk(work: Work) -> list[Path]:
    """The way from noise: strips of x_t and of the picture expected at each state, and the walk as GIF and MP4."""
    count = min(SHOWN, work.options.count)
    states = states_of(work, count)
    strip = drawing.chosen(states, len(states), COLUMNS)
    moving = drawing.chosen(states, len(states), work.options.frames)
    frames = list(drawing.frames(moving, count))
    return [
        drawing.png(drawing.grid(levels(rows([s.xt for s in strip])), len(strip)), work.out / "trajectory.png"),
        drawing.png(drawing.grid(levels(rows([s.x0 for s in strip])), len(strip)), work.out / "progressive.png"),
        drawing.gif(frames, work.out / "walk.gif"),
        drawing.mp4(frames, work.out / "walk.mp4"),
    ]


def states_of(work: Work, count: int) -> list[State]:
    """Every state of the first `count` pictures' walk, on the CPU."""
    labels, options = work.some_labels(count), work.options
    predict = work.model.for_sampler(work.sampler, labels, options.guidance, clip=options.clip)
    own = noise.seeded(options.seed, count, work.model.shape, work.model.device)
    start = work.model.start(work.sampler, own)
    walked = work.sampler.steps(predict, work.model.schedule, start, own)
    return [State(state.t, state.xt.cpu(), state.x0.cpu()) for state in walked]


def rows(columns: list[Images]) -> Images:
    """States of a walk, (B, C, S, S) each -> all pictures in reading order: a row for each picture of the batch."""
    return torch.stack(columns, dim=1).flatten(0, 1)


def interpolate(work: Work) -> Path:
    """Between pairs of held-out pictures: noised part of the way up, mixed, drawn down again.

    No class is told: between two classes there is none, and the one would draw the other's picture as its own.
    """
    refuse_mix(work, "--interpolate")
    real, _ = held_out(work, 2 * SHOWN)
    shares = torch.linspace(0, 1, SHARES, device=work.model.device)
    start = round(work.options.depth * (len(work.sampler.chain(work.model.schedule)) - 1))
    found: list[Images] = []
    for pair in range(len(real) // 2):
        one, other = real[2 * pair], real[2 * pair + 1]
        predict = work.model.predict(clip=work.options.clip)
        same = noise.SeededNoise((work.options.seed + pair,) * SHARES, work.model.shape, work.model.device)
        between = inversion.interpolated(work.sampler, predict, work.model.schedule, (one, other), shares, start, same)
        found.append(torch.cat([one[None], between, other[None]]).cpu())
    return drawing.png(drawing.grid(levels(torch.cat(found)), SHARES + 2), work.out / "interpolation.png")


def inpaint(work: Work) -> Path:
    """Held-out pictures of which a part is hidden and drawn anew: each with what is known, and two completions."""
    refuse_mix(work, "--inpaint")
    real, labels = held_out(work, SHOWN)
    mask = hidden(work.options.inpaint, work.model.frame.size).to(real)
    predict = work.model.predict(labels, work.options.guidance, clip=work.options.clip)
    held = Inpainting(work.sampler, real, mask, repeats=work.options.repeats)
    drawn: list[Images] = []
    for start in (work.options.seed, work.options.seed + len(real)):
        own = noise.seeded(start, len(real), work.model.shape, work.model.device)
        drawn.append(samplers.run(held, predict, work.model.schedule, own.start(), own))
    known = torch.where(mask > 0, real, torch.zeros_like(real))
    cells = rows([real.cpu(), known.cpu(), *[picture.cpu() for picture in drawn]])
    return drawing.png(drawing.grid(levels(cells), 2 + len(drawn)), work.out / "inpainting.png")


def hidden(part: Literal["no", "left", "right", "middle"], size: int) -> Tensor:
    """(1, 1, S, S): 1 where the picture is known."""
    mask = torch.ones(1, 1, size, size)
    columns = {"left": slice(0, size // 2), "right": slice(size // 2, size)}
    if part == "middle":
        mask[..., size // 4 : size - size // 4, size // 4 : size - size // 4] = 0
    else:
        mask[..., columns[part]] = 0
    return mask


def held_out(work: Work, count: int) -> tuple[Images, Tensor | None]:
    """Pictures that the run has not been trained on, and their classes if the network was told any."""
    config = config_of(work.folder)
    _, unseen = load(config.data, seed=config.seed).split(config.data.held_out, config.seed)
    if len(unseen) < 2:
        raise InputError("the run held no pictures out", where=work.folder, fix="Train with --data.held-out 0.1.")
    some = unseen.taken(range(min(count, len(unseen)))).to(work.model.device)
    return unit(some.pixels), some.labels if work.model.classes else None


def refuse_mix(work: Work, flag: str) -> None:
    if work.sampler.corruption == "mix":
        raise InputError("is for samplers of the Gaussian process", where=flag, fix="Add --sampler ddim.")
