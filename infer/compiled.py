"""--compile: the U-Net behind torch.compile for the shapes of a job, kept between commands, and proof of what it does.

On a GPU each shape becomes a CUDA graph as well (torch.compile's mode `reduce-overhead`): a step is one launch. Shapes
never change within a job, because the micro-batch is fixed: nothing is compiled again once the first picture is begun.
The text encoder and the decoder stay as they are: in a picture of 50 steps they are 3 % of the work.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from data.errors import InputError, show
from data.files import cache_root
from infer import denoising, pipeline
from infer.crew import Crew
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
TIMED = 3  # calls of a shape that are timed; the fastest counts
KEPT = "TORCHINDUCTOR_CACHE_DIR"  # where the compiler keeps what it made
ROOM = 8  # graphs beyond those that are known to be needed
Wear = Callable[["tuple[LoraFile, ...]"], object]


@dataclass(frozen=True)
class Asked:
    """What the U-Net says in each way that a picture asks it, and the seconds that each call takes."""

    predictions: tuple[Latents, ...]
    seconds: tuple[float, ...]


def prepare(pipe: StableDiffusionPipeline, job: Job, pictures: Sequence[Picture], wear: Wear) -> str:
    """Compile the U-Net in place for these pictures; the line that says how long it took and what is gained by it.

    wear: puts a picture's LoRAs on the networks. Raises InputError: no compiler, it failed, or it computes otherwise.
    """
    keep()
    refuse_without_compiler(pipe.device)
    shapes = shapes_of(pipe, job, pictures)
    plain, ours = pipeline.suited(pipe), crew_of(pipe)
    before = ask(pipe, job, shapes, wear, plain.threads)
    make_room(2 * len(shapes) + ROOM)
    pipe.unet.compile(dynamic=False, fullgraph=True, mode=MODES.get(pipe.device.type))
    start = time.perf_counter()
    try:
        after = ask(pipe, job, shapes, wear, ours.threads)
    except (RuntimeError, OSError) as error:  # the compiler's own errors are RuntimeErrors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"torch's compiler failed ({reason})", where="--compile", fix="Draw without it.") from error
    apart = max(map(distance, before, after))
    limit = TOLERANCE.get(pipe.unet.dtype, HALF)
    if not apart <= limit:
        what = f"torch {torch.__version__}'s compiler computes other predictions: {apart:.2%} apart"
        raise InputError(what, where="--compile", allowed=f"{limit:.2%}", fix="Draw without it.")
    return said(before, after, apart, time.perf_counter() - start, job.calls(pipe, pictures), plain.count)


def crew_of(pipe: StableDiffusionPipeline) -> Crew:
    """Who draws with a compiled network: one thread with all others inside it, as a large network is drawn anyway.

    torch 2.13's compiler checks what a graph was made for in a way that two threads disturb in one another: now and
    then a graph was compiled again for nothing (measured 2026-11-21).
    """
    return Crew(1, pipeline.suited(pipe).count * pipeline.suited(pipe).threads)


def keep() -> None:
    """What the compiler makes stays in our cache, unless the person said where; torch's own choice is temporary."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(KEPT) in (None, default_cache_dir()):
        os.environ[KEPT] = str(cache_root() / "compiled")


def refuse_without_compiler(device: torch.device) -> None:
    """Raises InputError where torch.compile cannot work, before minutes are spent."""
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        fix = "Install g++ or name one in CXX, or draw without it."
        raise InputError("torch.compile needs a C++ compiler, and none is here", where="--compile", fix=fix) from None
    if device.type == "cuda" and not has_triton():
        raise InputError("torch.compile needs triton for this GPU", where="--compile", fix="Draw without it.")


def shapes_of(pipe: StableDiffusionPipeline, job: Job, pictures: Sequence[Picture]) -> list[Picture]:
    """A picture for each shape that the U-Net will see, and each choice of LoRAs, whose weights are in the graph."""

    @cache
    def calls_of(steps: int, strength: float) -> int:
        return pipeline.calls_of(pipe, steps, strength)

    found: dict[Any, Picture] = {}
    for picture in pictures:
        own = job.settings.of(picture)
        calls = calls_of(own.steps, job.strength_of(picture))
        guided = denoising.guided_steps(calls, own)
        chunks = max(job.tokens[text].chunks for text in (picture.prompt, own.negative_prompt))
        key = (picture.loras, own.width, own.height, chunks, guided > 0, guided < calls)
        found.setdefault(key, picture)
    return list(found.values())


def make_room(graphs: int) -> None:
    """dynamo compiles a function only so many times; here it fails beyond, instead of going on uncompiled."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, graphs)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 32 * graphs)


def ask(pipe: StableDiffusionPipeline, job: Job, shapes: Sequence[Picture], wear: Wear, threads: int) -> list[Asked]:
    """The U-Net's first predictions for each shape, with as many threads inside it as will draw: graphs depend on it.

    In this thread, so that Ctrl-C ends the compiler at once.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [asked(pipe, job, picture, wear) for picture in shapes]
    finally:
        torch.set_num_threads(before)


def asked(pipe: StableDiffusionPipeline, job: Job, picture: Picture, wear: Wear) -> Asked:
    wear(picture.loras)
    ways = denoising.ways(*first(pipe, job, picture))
    predictions = tuple(way() for way in ways)
    return Asked(predictions, tuple(fastest(way, pipe.device) for way in ways))


def first(pipe: StableDiffusionPipeline, job: Job, picture: Picture) -> tuple[denoising.Parts, denoising.Work]:
    """A micro-batch of one picture, as pipeline.draw() begins it."""
    own = job.settings.of(picture)
    states = Encoder(pipe, own.weighting).pair([picture.prompt] * own.micro_batch, own.negative_prompt)
    generators = [torch.Generator("cpu").manual_seed(picture.seed) for _ in range(own.micro_batch)]
    parts = denoising.Parts(pipe.unet, pipe.vae, copy.deepcopy(pipe.scheduler), pipe.device)
    return parts, denoising.Work(own, *states, generators, job.given)


def fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few calls."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return min(once() for _ in range(TIMED))


def distance(one: Asked, other: Asked) -> float:
    """The largest share of a predicted noise, by its norm, in which two networks differ; inf where one is no number."""
    pairs = zip(one.predictions, other.predictions, strict=True)
    shares = [float((a - b).float().norm() / a.float().norm()) for a, b in pairs]
    return max(share if math.isfinite(share) else math.inf for share in shares)


def said(
    before: Sequence[Asked], after: Sequence[Asked], apart: float, seconds: float, calls: int, side_by_side: int
) -> str:
    """What compiling took and gains; whether this job is long enough for it. side_by_side: calls at a time, before."""
    count = sum(len(one.seconds) for one in after)
    was, now = (sum(sum(one.seconds) for one in each) / count for each in (before, after))
    was /= side_by_side
    gained = (was - now) * calls
    worth = "worth it" if gained > seconds else "more than this job gains" if gained > 0 else "no gain here"
    return (
        f"compile: {count} graph{'s' * (count > 1)} in {seconds:.1f} s, kept in {show(os.environ[KEPT])}; a call takes "
        f"{now:.4f} s instead of {was:.4f} s: {gained:.1f} s in {calls} calls, {worth}; predicted noise within "
        f"{apart:.1e}"
    )
