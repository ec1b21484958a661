"""Drawn pictures as files: grids, strips, GIF and MP4 of a walk from noise to picture."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data.atomic_io import atomic_file
from data.atomic_io import write_atomic
from train.ddpm.image_sets import to_uint8
from train.ddpm.image_sets import to_image
from data.shapes import Images
from train.ddpm import samplers
from train.ddpm.runs.config import PreviewOptions
from train.ddpm.runs.model import Model
from train.ddpm.samplers import Sampler
from train.ddpm.samplers import SamplerState

PER_ROW = 6
GAP = 2  # pixels between two pictures
READABLE = 48  # pixels; smaller pictures are enlarged by a whole factor
BACKGROUND = 255


def image_grid(pixels: Tensor, per_row: int = PER_ROW, *, scale: int | None = None) -> Image.Image:
    """uint8 (N, C, S, S) in rows on white paper, each enlarged by a whole factor."""
    count, channels, high, wide = pixels.shape
    per_row = max(1, min(per_row, count))
    rows = -(-count // per_row)
    paper = torch.full((channels, rows * (high + GAP) - GAP, per_row * (wide + GAP) - GAP), BACKGROUND, dtype=torch.uint8)
    for place, picture in enumerate(pixels):
        row, column = divmod(place, per_row)
        top, left = row * (high + GAP), column * (wide + GAP)
        paper[:, top : top + high, left : left + wide] = picture
    return enlarge(to_image(paper), scale or enlargement(wide))


def enlargement(side: int) -> int:
    return max(1, -(-READABLE // side))


def enlarge(picture: Image.Image, factor: int) -> Image.Image:
    """Every pixel a square of factor x factor."""
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST) if factor > 1 else picture


def write_png(picture: Image.Image, path: Path) -> Path:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    write_atomic(path, content.getvalue())
    return path


def pick_states(states: Iterable[SamplerState], total: int, count: int) -> list[SamplerState]:
    """About `count` states of a walk of `total`, evenly spread, the last one among them."""
    wanted = {round(place * (total - 1) / max(1, count - 1)) for place in range(count)} | {total - 1}
    return [state for place, state in enumerate(states) if place in wanted]


def state_frames(states: Sequence[SamplerState], pictures: int) -> Iterator[Image.Image]:
    """One grid a state: how the pictures come out of the noise."""
    for state in states:
        yield image_grid(to_uint8(state.xt[:pictures])).convert("RGB")


def write_gif(pictures: Sequence[Image.Image], path: Path, *, seconds: float = 5.0, rest: float = 1.0) -> Path:
    """The walk in `seconds`, its end shown for `rest` seconds more; at least 0.02 s a frame, which viewers can show."""
    each = max(20, round(1000 * seconds / len(pictures)))
    content = io.BytesIO()
    few = [picture.quantize(64, dither=Image.Dither.NONE) for picture in pictures]
    durations = [*[each] * (len(few) - 1), each + round(1000 * rest)]
    few[0].save(content, "GIF", save_all=True, append_images=few[1:], duration=durations, loop=0, optimize=False)
    write_atomic(path, content.getvalue())
    return path


def write_mp4(pictures: Sequence[Image.Image], path: Path, *, seconds: float = 5.0) -> Path:
    """The same as H.264, which browsers play; sides are made even, as its colours need."""
    import av

    rate = max(1, min(60, round(len(pictures) / seconds)))
    with atomic_file(path) as beside, av.open(str(beside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        width, height = (side + side % 2 for side in pictures[0].size)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for picture in pictures:
            paper = Image.new("RGB", (width, height), "white")
            paper.paste(picture, (0, 0))
            for packet in stream.encode(av.VideoFrame.from_image(paper)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def generate_images(
    model: Model,
    sampler: Sampler,
    count: int,
    *,
    seed: int,
    labels: Tensor | None = None,
    scale: float = 1.0,
    clip: bool = False,
    batch: int = 128,
) -> Images:
    """(count, C, S, S) on the CPU; picture i is a function of seed + i, whatever the batches are."""
    drawn: list[Images] = []
    for start in range(0, count, batch):
        size = min(batch, count - start)
        some = None if labels is None else labels[start : start + size]
        predict = model.for_sampler(sampler, some, scale, clip=clip)
        own = samplers.seeded_noise(seed + start, size, model.shape, model.device)
        drawn.append(samplers.generate(sampler, predict, model.schedule, model.start(sampler, own), own).cpu())
    return torch.cat(drawn)


def write_preview(model: Model, options: PreviewOptions, folder: Path, step: int) -> Path:
    """A grid of the network as it is, from the same noise each time, into folder/STEP.png."""
    was = model.network.training
    model.network.eval()
    sampler = samplers.make_sampler(options.sampler, count=min(options.steps, model.schedule.steps))
    labels = model.labels_of([], options.count, "--conditional")
    drawn = generate_images(model, sampler, options.count, seed=0, labels=labels, clip=sampler.corruption == "gaussian")
    model.network.train(was)
    return write_png(image_grid(to_uint8(drawn.nan_to_num(0.0))), folder / f"{step:06d}.png")
