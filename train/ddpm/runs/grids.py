"""Generated images as files: grids, strips, GIF and MP4 of a trajectory from noise to image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data.atomic_io import atomic_file, write_atomic
from train.ddpm.image_sets import to_image, to_uint8
from train.ddpm.samplers import SamplerState

GAP = 2  # pixels between two images
MIN_SIDE = 48  # pixels; smaller images are enlarged by a whole factor
BACKGROUND = 255


def image_grid(pixels: Tensor, columns: int = 6) -> Image.Image:
    """uint8 (N, C, S, S) in rows on white, each enlarged by a whole factor."""
    count, channels, height, width = pixels.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    size = (channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    paper = torch.full(size, BACKGROUND, dtype=torch.uint8)
    for place, image in enumerate(pixels):
        row, column = divmod(place, columns)
        top, left = row * (height + GAP), column * (width + GAP)
        paper[:, top : top + height, left : left + width] = image
    grid, factor = to_image(paper), max(1, -(-MIN_SIDE // width))
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)


def write_png(image: Image.Image, path: Path) -> Path:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    write_atomic(path, content.getvalue())
    return path


def pick_states(states: Sequence[SamplerState], count: int) -> list[SamplerState]:
    """About `count` states, evenly spread, the last one among them."""
    last = len(states) - 1
    return [states[i] for i in sorted({round(n * last / max(1, count - 1)) for n in range(count)} | {last})]


def state_frames(states: Sequence[SamplerState], images: int) -> list[Image.Image]:
    """A grid of the first images for each state."""
    return [image_grid(to_uint8(state.xt[:images])).convert("RGB") for state in states]


def write_gif(frames: Sequence[Image.Image], path: Path, *, seconds: float = 5.0, pause: float = 1.0) -> Path:
    """A GIF of `seconds`, with a pause on the last frame; at least 0.02 s a frame, which viewers can show."""
    each = max(20, round(1000 * seconds / len(frames)))
    content = io.BytesIO()
    few = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    durations = [*[each] * (len(few) - 1), each + round(1000 * pause)]
    few[0].save(content, "GIF", save_all=True, append_images=few[1:], duration=durations, loop=0, optimize=False)
    write_atomic(path, content.getvalue())
    return path


def write_mp4(frames: Sequence[Image.Image], path: Path, *, seconds: float = 5.0) -> Path:
    """The same as H.264, which browsers play; sides are padded to even numbers, as its colours need."""
    import av

    rate = max(1, min(60, round(len(frames) / seconds)))
    with atomic_file(path) as beside, av.open(str(beside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        width, height = (side + side % 2 for side in frames[0].size)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            paper = Image.new("RGB", (width, height), "white")
            paper.paste(frame, (0, 0))
            for packet in stream.encode(av.VideoFrame.from_image(paper)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path
