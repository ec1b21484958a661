"""--benchmark: how fast pictures were drawn, and what share that is of what the machine can do.

Operations are counted on the networks' shapes (a multiplication with its addition is two), as the pictures need them:
padding of the last micro-batch is not among them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from infer import compiled, denoising, pipeline
from infer.crew import Crew
from infer.prompts import Picture
from train import flops, skeleton
from train.denoiser import Denoiser
from train.skeleton import Question

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from infer.pipeline import Settings
    from infer.planning import Job
    from train.base_model import BaseModel

SIDE = 1024  # of the matrices whose product is the limit of a processor
TERA = 1e12


def report(job: Job, model: BaseModel, pictures: Sequence[Picture], seconds: float) -> list[str]:
    """Lines of what was measured. seconds: from the first picture's start to the last one's file."""
    pipe = pipeline.build(model, job.scheduler, job.device)
    crew = compiled.crew_of(pipe) if job.compile else pipeline.suited(pipe)
    calls = job.calls(pipe, pictures)
    kinds = Counter(kind_of(job, picture) for picture in pictures)
    needed = sum(operations(pipe, *kind) * count for kind, count in kinds.items())
    reached = needed / seconds / TERA
    words = "an accelerator" if job.device.type != "cpu" else f"{crew.count} side by side, {crew.threads} threads each"
    return [
        f"benchmark: {len(pictures)} pictures in {seconds:.2f} s, {seconds / len(pictures):.3f} s a picture ({words})",
        f"benchmark: {calls / seconds:.2f} steps/s, {reached:.4g} TFLOP/s, {share(reached, job.device, pipe, crew)}",
    ]


def share(reached: float, device: torch.device, pipe: StableDiffusionPipeline, crew: Crew) -> str:
    """The part of what is physically possible: the maker's figure, or a large matrix product measured now."""
    precision = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(pipe.unet.dtype, "no")
    peak = flops.peak_flops(device, precision)
    if peak is not None:
        return f"{reached * TERA / peak:.1%} of the maker's {peak / TERA:.4g} TFLOP/s"
    if device.type != "cpu":
        return "the limit of this device is not known"
    limit = product_speed(crew, pipe.unet.dtype)
    return f"{reached * TERA / limit:.1%} of the {limit / TERA:.4g} TFLOP/s of large matrix products here"


def product_speed(crew: Crew, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of matrix products by as many threads as draw."""

    def work(_: int) -> None:
        torch.mm(a, b)

    a, b = torch.ones(SIDE, SIDE, dtype=dtype), torch.ones(SIDE, SIDE, dtype=dtype)
    with ThreadPoolExecutor(crew.count, "peak", initializer=torch.set_num_threads, initargs=(crew.threads,)) as pool:
        list(pool.map(work, range(crew.count)))
        start = time.perf_counter()
        list(pool.map(work, range(repeats * crew.count)))
        return repeats * crew.count * 2 * SIDE**3 / (time.perf_counter() - start)


def kind_of(job: Job, picture: Picture) -> tuple[Settings, float, int]:
    """What a picture's operations depend on: settings, strength and chunks of text."""
    own = job.settings.of(picture)
    chunks = max(job.tokens[text].chunks for text in (picture.prompt, own.negative_prompt))
    return own, job.strength_of(picture), chunks


def operations(pipe: StableDiffusionPipeline, own: Settings, strength: float, chunks: int) -> float:
    """Of one picture: every call of the U-Net, guided ones twice, and the decoder."""
    calls = pipeline.calls_of(pipe, own.steps, strength)
    rows = calls + denoising.guided_steps(calls, own)
    factor = pipe.vae_scale_factor
    height, width = own.height // factor, own.width // factor
    tokens = pipe.tokenizer.model_max_length * chunks
    question = Question(1, height, width, tokens)
    return rows * forward_flops(pipe.unet, question) + decoder_flops(pipe.vae, height, width)


def forward_flops(unet: Any, question: Question) -> int:
    """Of one row through the U-Net, counted on shapes alone (as train/flops.py does for a step)."""
    bones = skeleton.skeleton(unet)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Denoiser(bones)(*question.tensors(bones))
    return int(counter.get_total_flops())


def decoder_flops(vae: Any, height: int, width: int) -> int:
    """Of one picture's decoding, counted on shapes alone."""
    bones = skeleton.skeleton(vae)
    latents = torch.empty(1, vae.config.latent_channels, height, width, device="meta", dtype=vae.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        bones.decode(latents)
    return int(counter.get_total_flops())
