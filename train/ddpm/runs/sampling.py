"""sample.py: image grids, trajectories from noise to image, interpolation, inpainting with a trained network."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from data.cli import parse
from data.errors import InputError
from data.shapes import Images
from train.ddpm import editing, samplers
from train.ddpm.image_sets import ImageSet, load_image_set, to_float, to_uint8
from train.ddpm.runs import report, trainer
from train.ddpm.runs.config import CONFIGS, FitConfig, RunOptions, SampleOptions
from train.ddpm.runs.model import Model, blame_flag, load_model, newest_finished_run
from train.ddpm.samplers import Ancestral, Sampler, SeededNoise, make_sampler, seeded_noise

COLUMNS = 12  # states of a strip
SHOWN = 6  # images of a trajectory, and pairs interpolated
SHARES = 9  # of an interpolation, both ends included

# ---- the run and its sampler, also for score.py


def find_run(options: RunOptions) -> Path:
    """The run folder to use; if there is none, the default run of fit.py is trained now, in a minute or two."""
    found = options.run or newest_finished_run(options.runs)
    if found is not None:
        return found
    print(f"no finished run in {options.runs}/: training the default one first (python train/ddpm/fit.py)", flush=True)
    flags = ["--runs", str(options.runs), *(["--threads", str(options.threads)] if options.threads else [])]
    code, run = trainer.fit(parse(FitConfig, flags, prog="fit.py", preset=CONFIGS / "digits.yaml"))
    if code:
        raise KeyboardInterrupt  # training was stopped; the same command resumes it
    return run.path


def open_model(options: RunOptions) -> tuple[Path, Model]:
    """The run folder and its network, on the GPU if there is one. Raises InputError."""
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    folder = find_run(options)
    model = load_model(folder, "cuda" if torch.cuda.is_available() else "cpu")
    shape = " x ".join(map(str, model.image_shape))
    print(f"network:   {folder}: {model.info.network.kind} on {model.info.source}, {shape}", flush=True)
    if options.compile:
        model = replace(model, network=torch.compile(model.network, dynamic=False))  # type: ignore[arg-type]
    return folder, model


def build_sampler(options: RunOptions, model: Model) -> Sampler:
    """The sampler with at most as many steps as the schedule has. Raises InputError naming the flag."""
    count = min(options.steps or model.schedule.steps, model.schedule.steps)
    extra = {"eta": options.eta} if options.eta else {}
    with blame_flag("--sampler"):
        sampler = make_sampler(options.sampler, count=count, **extra)
    if isinstance(sampler, Ancestral) and sampler.variance == "learned-range" != model.info.objective.variance:
        others = ", ".join(name for name in samplers.SAMPLERS if name not in ("learned-range", "naive"))
        raise InputError("the network has no learned variance", where="--sampler", allowed=others)
    with blame_flag("--spacing"):
        sampler = replace(sampler, spacing=options.spacing)
        sampler.chain(model.schedule)
    return sampler


def load_run_images(folder: Path) -> tuple[FitConfig, ImageSet, ImageSet]:
    """The settings of a run, its training and its held-out images. Raises InputError for a folder that is not a run."""
    home = folder if (folder / "config.yaml").is_file() else folder.parent
    try:
        config = FitConfig.model_validate(yaml.safe_load((home / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError):
        fix = "Give the whole run folder of train/ddpm/fit.py, not a copy of its export."
        raise InputError("has no config.yaml of a run, so its images are unknown", where=folder, fix=fix) from None
    return config, *load_image_set(config.data, seed=config.seed).split(config.data.held_out, config.seed)


def generate_images(options: RunOptions, model: Model, sampler: Sampler, count: int, labels: Tensor | None) -> Tensor:
    """(count, C, S, S) uint8 on the CPU."""
    chosen = {"seed": options.seed, "scale": options.guidance, "clip": options.clip, "batch": options.batch_size}
    return to_uint8(model.generate(sampler, count, labels=labels, **chosen))


# ---- sample.py


def sample(options: SampleOptions) -> int:
    """Generate and write the requested images; returns the exit code."""
    folder, model = open_model(options)
    sampler = build_sampler(options, model)
    labels = model.labels_of(options.only, options.count, "--only")
    out = options.out or Path("outputs") / f"{folder.name}-{options.sampler}"
    pixels = generate_images(options, model, sampler, options.count, labels)
    files = [report.write_png(report.image_grid(pixels, options.columns), out / "grid.png")]
    if options.walk:
        files += write_trajectory(options, model, sampler, labels, out)
    if options.interpolate:
        files.append(write_interpolation(options, model, sampler, folder, out))
    if options.inpaint != "no":
        files.append(write_inpainting(options, model, sampler, folder, out))
    print("\n".join(f"written:   {file}" for file in files))
    return 0


def write_trajectory(
    options: SampleOptions, model: Model, sampler: Sampler, labels: Tensor | None, out: Path
) -> list[Path]:
    """Strips of x_t and of the predicted x_0 at each state, and x_t as GIF and MP4."""
    count = min(SHOWN, options.count)
    some = None if labels is None else labels[:count]
    predict = model.denoiser(some, options.guidance, clip=options.clip, corruption=sampler.corruption)
    noise = seeded_noise(options.seed, count, model.image_shape, model.device)
    states = [
        replace(state, xt=state.xt.cpu(), x0=state.x0.cpu())
        for state in sampler.steps(predict, model.schedule, model.start(sampler, noise), noise)
    ]
    strip = report.pick_evenly(states, COLUMNS)
    frames = report.state_frames(report.pick_evenly(states, options.frames), count)
    return [
        write_rows([state.xt for state in strip], out / "trajectory.png"),
        write_rows([state.x0 for state in strip], out / "progressive.png"),
        report.write_gif(frames, out / "walk.gif"),
        report.write_mp4(frames, out / "walk.mp4"),
    ]


def write_rows(columns: list[Images], path: Path) -> Path:
    """A PNG with a column for each (B, C, S, S) and a row for each image of the batch."""
    cells = torch.stack([column.cpu() for column in columns], dim=1).flatten(0, 1)
    return report.write_png(report.image_grid(to_uint8(cells), len(columns)), path)


def write_interpolation(options: SampleOptions, model: Model, sampler: Sampler, folder: Path, out: Path) -> Path:
    """Between pairs of held-out images: noised part of the way, mixed, denoised.

    Unconditional: there is no class between two classes, and either one would change the other's image.
    """
    check_gaussian(sampler, "--interpolate")
    real, _ = held_out_images(model, folder, 2 * SHOWN)
    share = torch.linspace(0, 1, SHARES, device=model.device)
    start = round(options.depth * (len(sampler.chain(model.schedule)) - 1))
    predict, rows = model.denoiser(clip=options.clip), []
    for pair in range(len(real) // 2):
        one, other = real[2 * pair], real[2 * pair + 1]
        noise = SeededNoise((options.seed + pair,) * SHARES, model.image_shape, model.device)
        between = editing.interpolate(sampler, predict, model.schedule, (one, other), share, start, noise)
        rows.append(torch.cat([one[None], between, other[None]]))
    return write_rows(list(torch.stack(rows, dim=1)), out / "interpolation.png")


def write_inpainting(options: SampleOptions, model: Model, sampler: Sampler, folder: Path, out: Path) -> Path:
    """Held-out images, the known part of each, and two completions."""
    check_gaussian(sampler, "--inpaint")
    real, labels = held_out_images(model, folder, SHOWN)
    mask = known_mask(options.inpaint, model.info.frame.size).to(real)
    predict = model.denoiser(labels, options.guidance, clip=options.clip)
    inpainting = editing.Inpainting(sampler, real, mask, repeats=options.repeats)
    columns = [real, real * mask]
    for start in (options.seed, options.seed + len(real)):
        noise = seeded_noise(start, len(real), model.image_shape, model.device)
        columns.append(samplers.generate(inpainting, predict, model.schedule, noise.start(), noise))
    return write_rows(columns, out / "inpainting.png")


def known_mask(part: Literal["no", "left", "right", "middle"], size: int) -> Tensor:
    """(1, 1, S, S): 0 in the part to inpaint, 1 elsewhere."""
    mask, half, quarter = torch.ones(1, 1, size, size), size // 2, size // 4
    if part == "middle":
        mask[..., quarter : size - quarter, quarter : size - quarter] = 0
    else:
        mask[..., {"left": slice(0, half), "right": slice(half, size)}[part]] = 0
    return mask


def held_out_images(model: Model, folder: Path, count: int) -> tuple[Images, Tensor | None]:
    """Images that the run was not trained on, and their classes if the network is conditional."""
    _, _, unseen = load_run_images(folder)
    if len(unseen) < 2:
        raise InputError("the run held no images out", where=folder, fix="Train with --data.held-out 0.1.")
    some = unseen.select(range(min(count, len(unseen)))).to(model.device)
    return to_float(some.pixels), some.labels if model.info.classes else None


def check_gaussian(sampler: Sampler, flag: str) -> None:
    if sampler.corruption == "mix":
        raise InputError("is for samplers of the Gaussian process", where=flag, fix="Add --sampler ddim.")
