"""What a picture looks like on its way out of noise, at every call of the U-Net, while it is drawn as always.

The scheduler's own step is watched, so the picture is bit for bit the one that is drawn unwatched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from infer import pipeline
from infer.decoding import Decoder
from infer.pipeline import Settings
from infer.prompts import Picture

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from data.shapes import Latents


@dataclass(frozen=True)
class Moment:
    """One call: its timestep, the noisy latents x_t and the x_0 that they and the prediction mean, (1, C, h, w)."""

    t: int
    noisy: Latents
    expected: Latents


@dataclass(frozen=True)
class Frame:
    """A moment as pictures. t 0: the finished picture, twice."""

    t: int
    noisy: Image.Image
    expected: Image.Image


@contextmanager
def watched(scheduler: Any) -> Iterator[list[Moment]]:
    """Inside, every step of the scheduler is noted; the steps themselves are as before."""
    plain, moments = type(scheduler), []

    class Watched(plain):
        @wraps(plain.step)  # pipelines look at its parameters
        def step(self, prediction: Any, t: Any, sample: Any, *args: Any, **named: Any) -> Any:
            moments.append(moment(self, prediction, t, sample))
            return super().step(prediction, t, sample, *args, **named)

    Watched.__name__ = plain.__name__
    scheduler.__class__ = Watched  # by its class: whoever copies the scheduler copies this too
    try:
        yield moments
    finally:
        scheduler.__class__ = plain


def moment(scheduler: Any, prediction: Any, t: Any, sample: Any) -> Moment:
    """x_t and x_0 in the scale where x_t has the variance of noise and signal together, 1 for latents of variance 1.

    Schedulers of the sigma kind walk x / sqrt(abar_t) instead: they begin at a noise of sigma, not of 1.
    """
    place = min(max(round(float(t)), 0), len(scheduler.alphas_cumprod) - 1)
    signal2 = scheduler.alphas_cumprod[place].double().to(sample.device)
    xt = sample.double() * (signal2.sqrt() if float(scheduler.init_noise_sigma) > 1 else 1.0)
    x0 = expected(scheduler.config.prediction_type, xt, prediction.double(), signal2)
    return Moment(place, xt.to(sample.dtype), x0.to(sample.dtype))


def expected(kind: str, xt: Any, prediction: Any, signal2: Any) -> Any:
    """x_0 out of what the network predicts. Source: arXiv 2006.11239, eq. 15; arXiv 2202.00512, section 4."""
    signal, noise = signal2.sqrt(), (1 - signal2).sqrt()
    if kind == "epsilon":
        return (xt - noise * prediction) / signal
    return signal * xt - noise * prediction if kind == "v_prediction" else prediction


def frames(pipe: StableDiffusionPipeline, prompt: str, seed: int, settings: Settings, most: int | None) -> list[Frame]:
    """The pictures of every call, at most `most` of them evenly chosen with both ends, and last the finished one."""
    alone = replace(settings, micro_batch=1)
    with watched(pipe.scheduler) as moments:
        (drawn,) = pipeline.draw(pipe, [Picture(0, prompt, seed)], alone)
    kept = moments if most is None else [moments[index] for index in evenly(len(moments), most - 1)]
    shown = [Frame(m.t, decoded(pipe, m.noisy), decoded(pipe, m.expected)) for m in kept]
    return [*shown, Frame(0, drawn.image, drawn.image)]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of range(count), the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


@torch.no_grad()
def decoded(pipe: StableDiffusionPipeline, latents: Latents) -> Image.Image:
    return Decoder(pipe.vae)(latents).image
