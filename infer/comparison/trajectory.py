"""--strip and --gif: how images emerge from noise, base and tuned side by side with the same seed.

The scheduler's step is recorded while generate_images runs as always, so the image is the same bit for bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from data.atomic_io import atomic_file
from data.errors import InputError
from data.shapes import Latents
from infer import output, pipeline, schedulers
from infer.comparison.grid import FLAGS, CellRequest, build_request, parse_axis
from infer.comparison.image_cache import ImageCache
from infer.comparison.weights import BASE, TUNED, WeightsFinder
from infer.config import CompareOptions
from infer.contact_sheet import Sheet, render_sheet
from infer.pipeline import ImageDecoder, SamplingSettings
from infer.prompts import ImageRequest

COLUMNS = 8  # of a strip
MAX_FRAMES = 50  # of a GIF
FRAME_MS, LAST_MS = 110, 2500
NOISY, DENOISED = "as it is", "expected"


@dataclass(frozen=True)
class Frame:
    """What one U-Net call shows: x_t, and the x_0 that the prediction implies. t = 0 is the finished image, twice."""

    t: int
    noisy: Image.Image
    denoised: Image.Image


@contextmanager
def recorded(scheduler: Any) -> Iterator[list[tuple[int, Latents, Latents]]]:
    """Record timestep, x_t and x_0 of every step of a scheduler inside the block."""
    plain, steps = type(scheduler), []

    class Recorder(plain):
        @wraps(plain.step)  # pipelines inspect its parameters
        def step(self, prediction: Any, t: Any, sample: Any, *args: Any, **named: Any) -> Any:
            steps.append(latents_of(self, prediction, t, sample))
            return super().step(prediction, t, sample, *args, **named)

    Recorder.__name__ = plain.__name__
    scheduler.__class__ = Recorder  # on the class, so that copies of the scheduler record too
    try:
        yield steps
    finally:
        scheduler.__class__ = plain


def latents_of(scheduler: Any, prediction: Any, t: Any, sample: Any) -> tuple[int, Latents, Latents]:
    """t, x_t and x_0 in the variance-preserving scale: sigma schedulers work on x / sqrt(alpha_bar_t) instead."""
    index = min(max(round(float(t)), 0), len(scheduler.alphas_cumprod) - 1)
    alpha_bar = scheduler.alphas_cumprod[index].double().to(sample.device)
    xt = sample.double() * (alpha_bar.sqrt() if float(scheduler.init_noise_sigma) > 1 else 1.0)
    x0 = predict_x0(scheduler.config.prediction_type, xt, prediction.double(), alpha_bar)
    return index, xt.to(sample.dtype), x0.to(sample.dtype)


def predict_x0(prediction_type: str, xt: Any, prediction: Any, alpha_bar: Any) -> Any:
    """Source: arXiv 2006.11239, eq. 15; arXiv 2202.00512, section 4."""
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (xt - noise * prediction) / signal
    return signal * xt - noise * prediction if prediction_type == "v_prediction" else prediction


def record_frames(
    pipe: StableDiffusionPipeline, prompt: str, seed: int, settings: SamplingSettings, most: int | None
) -> list[Frame]:
    """The images of every step, at most `most` of them evenly chosen with both ends; the finished image is last."""
    with recorded(pipe.scheduler) as steps:
        (result,) = pipeline.generate_images(pipe, [ImageRequest(0, prompt, seed)], replace(settings, micro_batch=1))
    chosen = steps if most is None else [steps[index] for index in evenly(len(steps), most - 1)]
    decoder = ImageDecoder(pipe.vae)
    with torch.no_grad():
        frames = [Frame(t, decoder(xt).image, decoder(x0).image) for t, xt, x0 in chosen]
    return [*frames, Frame(0, result.image, result.image)]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of range(count), with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


# ---- the command


def strip_requests(options: CompareOptions, finder: WeightsFinder) -> list[tuple[str, CellRequest]]:
    """Model and request of every row; a request's template is its prompt as given. Raises InputError."""
    texts = zip((options.x_axis, options.y_axis, options.z_axis), FLAGS, strict=True)
    axes = [axis for text, flag in texts if (axis := parse_axis(text, flag, options.prompt))]
    if any(axis.name != "model" for axis in axes) or len(axes) > 1:
        fix = 'Write --y "model=base,tuned", or none.'
        raise InputError("a strip has no axis except the model", where="--strip", allowed="model", fix=fix)
    models = list(axes[0].values) if axes else [BASE, TUNED] if finder.chosen.is_tuned else [BASE]
    prompts = options.prompt if "prompt" in options.model_fields_set else options.prompt[:1]
    return [
        (model, replace(build_request(options, finder, {"model": model, "prompt": prompt}), template=prompt))
        for prompt in prompts
        for model in models
    ]


def record_requests(cache: ImageCache, requests: Sequence[CellRequest], most: int) -> dict[CellRequest, list[Frame]]:
    """The frames of every request, model by model."""
    frames: dict[CellRequest, list[Frame]] = {}
    for weights in dict.fromkeys(request.weights for request in requests):
        with cache.pipe(weights) as (pipe, _):
            for request in (request for request in requests if request.weights == weights):
                pipe.scheduler = schedulers.build_scheduler(request.scheduler, cache.model(weights).scheduler_config)
                own = cache.settings(request)
                frames[request] = record_frames(pipe, request.prompt, request.seed, own, most)
        cache.unload(weights.model)
    return frames


def write_strips(
    folder: Path, options: CompareOptions, rows: Sequence[tuple[str, CellRequest]], cache: ImageCache
) -> list[Path]:
    """strip-00.png, and with --gif walk-00.gif, for each prompt: a column for each step, a row for model and view."""
    frames = record_requests(cache, [request for _, request in rows], MAX_FRAMES if options.gif else COLUMNS)
    request, paths = rows[0][1], []
    own = cache.settings(request)
    foot = f"{own.steps} steps, guidance {own.guidance_scale:g}; {NOISY}: x_t; {DENOISED}: predicted x_0"
    for number, prompt in enumerate(dict.fromkeys(request.template for _, request in rows)):
        models = {model: frames[request] for model, request in rows if request.template == prompt}
        images = {}
        for model, found in models.items():
            prefix = f"{model}, " if len(models) > 1 else ""
            images[prefix + NOISY] = [frame.noisy for frame in found]
            images[prefix + DENOISED] = [frame.denoised for frame in found]
        heads = [f"t = {frame.t}" for frame in next(iter(models.values()))[:-1]] + ["finished"]
        title, columns = f"{prompt}  (seed {request.seed})", evenly(len(heads), COLUMNS)
        cells = {(x, y): row[index] for y, row in enumerate(images.values()) for x, index in enumerate(columns)}
        sheet = Sheet([heads[index] for index in columns], list(images), cells, title, foot)
        paths.append(folder / f"strip-{number:02d}.png")
        output.save_png(render_sheet(sheet), paths[-1])
        if options.gif:
            paths.append(folder / f"walk-{number:02d}.gif")
            save_gif(images, heads, title, paths[-1])
    return paths


def save_gif(images: Mapping[str, Sequence[Image.Image]], heads: Sequence[str], title: str, path: Path) -> None:
    """All rows side by side, step by step."""
    pages = []
    for index, head in enumerate(heads):
        cells = {(x, 0): row[index] for x, row in enumerate(images.values())}
        pages.append(render_sheet(Sheet(list(images), [""], cells, title, head)))
    height = max(page.height for page in pages)
    frames = [page.crop((0, 0, page.width, height)).quantize(128, dither=Image.Dither.NONE) for page in pages]
    options = {"duration": [FRAME_MS] * (len(frames) - 1) + [LAST_MS], "loop": 0, "optimize": True}
    with atomic_file(path) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], **options)
