"""How much faster a picture is than diffusers' StableDiffusionPipeline called plainly. Ratios in one run, in turns.

python -m tests.benchmarks.generate_speed [--model pocket] [--pictures 8] [--batch 1] [--steps 20] [--rounds 3]
                                           [--dtype bf16] [--threads 1] [--together 8]

The same model, steps, guidance, seeds, threads, number of pictures and pictures in a call. Nothing else should be
running: on a busy machine CPU seconds with one thread say more than the clock. 40 dB or more is the same picture to
the eye.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from infer import metadata, output, pipeline, png_info, text_encoding
from infer.pipeline import SamplingSettings
from infer.prompts import ImageRequest
from train.model import BaseModel, load_model

WORDS = ("a water type fridge", "a fire type car", "a grass type guitar", "an electric type lamp")
Draw = Callable[[Path], None]


def plain(
    model: BaseModel, pictures: Sequence[ImageRequest], settings: SamplingSettings, dtype: torch.dtype, batch: int
) -> Draw:
    """diffusers, as its own example calls it: from_pretrained, a list of prompts, a list of generators."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(model.layout, torch_dtype=dtype, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.safety_checker = None

    def draw(folder: Path) -> None:
        for start in range(0, len(pictures), batch):
            together = pictures[start : start + batch]
            result = pipe(
                [picture.prompt for picture in together],
                generator=[torch.Generator().manual_seed(picture.seed) for picture in together],
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                height=settings.height,
                width=settings.width,
            )
            for picture, image in zip(together, result.images, strict=True):
                image.save(folder / picture.file_name)

    return draw


def ours(model: BaseModel, pictures: Sequence[ImageRequest], settings: SamplingSettings) -> Draw:
    """What generate.py does between its checks and its sheet: metadata included."""
    pipe = pipeline.build_pipeline(model, None, torch.device("cpu"))
    tokens = text_encoding.measure_prompts(
        [*(picture.prompt for picture in pictures), ""], model.tokenizer, settings.weighting
    )
    shared = output.shared_metadata(pipe, model, [], None)

    def draw(folder: Path) -> None:
        for drawn in pipeline.generate_images(pipe, pictures, settings):
            metadata.write_png(
                folder / drawn.request.file_name, drawn.image, output.build_metadata(shared, drawn, tokens)
            )

    return draw


def seconds_of(draw: Draw, folder: Path) -> tuple[float, float]:
    """Of the clock, and of the processor."""
    folder.mkdir(exist_ok=True)
    start, worked = time.perf_counter(), time.process_time()
    draw(folder)
    return time.perf_counter() - start, time.process_time() - worked


def distances(pictures: Sequence[ImageRequest], one: Path, other: Path) -> list[float]:
    """dB between the files of each picture."""
    found = []
    for picture in pictures:
        with Image.open(one / picture.file_name) as a, Image.open(other / picture.file_name) as b:
            found.append(png_info.psnr(np.asarray(a.convert("RGB"), float), np.asarray(b.convert("RGB"), float)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument(
        "--batch", type=int, default=1, help="pictures in a call, of both; default 1, as generate.py has it"
    )
    parser.add_argument("--together", type=int, help="pictures in a call of diffusers alone")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of ours; diffusers draws in fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = pipeline.DTYPES[options.dtype]
    model = load_model(options.model, dtype=dtype)
    side = model.sample_size
    settings = SamplingSettings(options.steps, 7.5, side, side, micro_batch=options.batch, weighting="a1111")
    pictures = [ImageRequest(index, WORDS[index % len(WORDS)], 42 + index) for index in range(options.pictures)]
    lines = {
        "diffusers": plain(model, pictures, settings, torch.float32, options.together or options.batch),
        f"ours, {options.dtype}": ours(model, pictures, settings),
    }
    load = os.getloadavg()[0]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / str(number) for number, name in enumerate(lines)}
        for name, draw in lines.items():  # a first time that does not count
            seconds_of(draw, folders[name])
        for _ in range(options.rounds):
            for name, draw in lines.items():
                found[name].append(seconds_of(draw, folders[name]))
        apart = distances(pictures, *folders.values())
    print(f"{options.pictures} pictures of {side} x {side}, {options.steps} steps, {torch.get_num_threads()} threads")
    print(f"load when it began {load:.1f}, at the end {os.getloadavg()[0]:.1f}")
    first = next(iter(found.values()))
    for name, measured in found.items():
        clock, worked = (statistics.median(times) / options.pictures for times in zip(*measured, strict=True))
        faster = statistics.median(theirs[0] / own[0] for theirs, own in zip(first, measured, strict=True))
        less = statistics.median(theirs[1] / own[1] for theirs, own in zip(first, measured, strict=True))
        print(f"{name:12s} {clock:7.3f} s a picture {faster:5.2f} x   {worked:7.3f} CPU seconds {less:5.2f} x")
    print(f"distance: {min(apart):.1f} dB at least, {np.median(apart):.1f} dB in the middle")


if __name__ == "__main__":
    main()
