"""--compile: the U-Net behind torch.compile, and a check that it still predicts the same.

On a GPU each shape becomes a CUDA graph as well (torch.compile's mode `reduce-overhead`): a step is one launch. Shapes
never change within a job, because the micro-batch is fixed. Text encoder and decoder stay as they are.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from data.errors import InputError
from infer import denoising
from infer.encoder import Encoder
from infer.prompts import Picture

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from data.shapes import Latents
    from infer.config import LoraFile
    from infer.planning import Job

MODES = {"cuda": "reduce-overhead"}  # with CUDA graphs; other devices have none
TOLERANCE = {torch.float32: 1e-3}  # share of the predicted noise that may change: rounding, in another order
HALF = 0.05  # the same in 16 bits
Wear = Callable[["tuple[LoraFile, ...]"], object]


def prepare(pipe: StableDiffusionPipeline, job: Job, pictures: Sequence[Picture], wear: Wear) -> str:
    """Compile the U-Net in place; the line that says how long it took and how far its predictions moved.

    wear: activates an image's LoRAs, whose weights are part of the graph. Every shape of the job is compiled and
    checked here, before the first image. Raises InputError when compilation fails or the predictions differ.
    """
    from torch._dynamo import config

    shapes = list({shape_of(job, picture): picture for picture in reversed(pictures)}.values())
    config.recompile_limit = max(config.recompile_limit, 2 * len(shapes) + 8)  # dynamo gives up beyond it
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 64 * len(shapes))
    before = [prediction for picture in shapes for prediction in first_predictions(pipe, job, picture, wear)]
    pipe.unet.compile(dynamic=False, fullgraph=True, mode=MODES.get(pipe.device.type))
    start = time.perf_counter()
    try:
        after = [prediction for picture in shapes for prediction in first_predictions(pipe, job, picture, wear)]
    except (RuntimeError, OSError) as error:  # the compiler's own errors are RuntimeErrors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        fix = "Install a C++ compiler if there is none, or leave out --compile."
        raise InputError(f"torch.compile failed ({reason})", where="--compile", fix=fix) from error
    error = max(map(relative_error, before, after))
    limit = TOLERANCE.get(pipe.unet.dtype, HALF)
    if not error <= limit:
        what = f"the U-Net compiled by torch {torch.__version__} predicts something else: {error:.2%} relative error"
        raise InputError(what, where="--compile", allowed=f"{limit:.2%}", fix="Leave out --compile.")
    seconds = time.perf_counter() - start
    return (
        f"compile: {len(after)} graphs in {seconds:.1f} s; predicted noise within {error:.1e} of the uncompiled U-Net"
    )


def shape_of(job: Job, picture: Picture) -> tuple[object, ...]:
    """What an image's graphs depend on: LoRAs, size, text chunks and settings of guidance."""
    own = job.settings.of(picture)
    chunks = max(job.tokens[text].chunks for text in (picture.prompt, own.negative_prompt))
    return picture.loras, own.width, own.height, chunks, own.guidance_scale > 1, own.guidance_stop


def first_predictions(pipe: StableDiffusionPipeline, job: Job, picture: Picture, wear: Wear) -> list[Latents]:
    """The U-Net's first predictions of a micro-batch of one image, with and without guidance as the loop needs them."""
    wear(picture.loras)
    own = job.settings.of(picture)
    states = Encoder(pipe, own.weighting).pair([picture.prompt] * own.micro_batch, own.negative_prompt)
    generators = [torch.Generator("cpu").manual_seed(picture.seed) for _ in range(own.micro_batch)]
    parts = denoising.Parts(pipe.unet, pipe.vae, copy.deepcopy(pipe.scheduler), pipe.device)
    return [way().clone() for way in denoising.ways(parts, denoising.Work(own, *states, generators, job.given))]


def relative_error(one: Latents, other: Latents) -> float:
    """The norm of the difference over the norm of `one`; inf where it is not a number."""
    share = float((one - other).float().norm() / one.float().norm())
    return share if math.isfinite(share) else math.inf
