"""What an unfinished picture looks like: decoded where that is cheap, else a linear guess from its latents."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image

from data import images
from data.pocket import creatures

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from data.shapes import Latents
    from infer.prompts import Picture
    from infer.studios.desk import Order

CHEAP = 5_000_000  # weights of a decoder that costs a CPU little beside a step
PAUSE = 0.3  # seconds between two previews of one picture
SAMPLES = 4  # pictures that the linear guess is fitted on


class Look(Protocol):
    """Latents (1, C, h, w) -> a picture for people."""

    def __call__(self, latents: Latents) -> Image.Image: ...


class Decoded:
    """What the autoencoder makes of it."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.vae = pipe.vae

    @torch.no_grad()
    def __call__(self, latents: Latents) -> Image.Image:
        found = self.vae.decode(calm(latents) / self.vae.config.scaling_factor, return_dict=False)[0]
        return images.to_picture(found[0].float().nan_to_num().cpu())


class Guessed:
    """A linear map from a latent position to the colour there, fitted by least squares on a few encoded pictures.

    It costs nothing beside a step of a large network on a CPU, where decoding takes as long as several.
    """

    def __init__(self, pipe: StableDiffusionPipeline, side: int) -> None:
        self.map = fitted(*samples(pipe, side))

    def __call__(self, latents: Latents) -> Image.Image:
        rows = calm(latents).float().cpu()[0].permute(1, 2, 0)  # (h, w, C)
        pixels = with_one(rows) @ self.map
        return images.to_picture(pixels.permute(2, 0, 1).nan_to_num())


def calm(latents: Latents) -> Latents:
    """At a spread of 1 at most: some schedulers begin with noise many times as strong."""
    return latents / latents.float().std().clamp(min=1.0).to(latents.dtype)


def with_one(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, torch.ones(*rows.shape[:-1], 1)], dim=-1)


def fitted(latents: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """(C + 1, 3): what turns latents (n, C) and a one into colours (n, 3), by least squares."""
    return torch.linalg.lstsq(with_one(latents), colours).solution


@torch.no_grad()
def samples(pipe: StableDiffusionPipeline, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (n, C) of some pictures and the mean colours (n, 3), in [-1, 1], of the pixels that each stands for."""
    pixels = torch.stack([images.to_tensor(creatures.draw(number, side)) for number in range(SAMPLES)])
    mean = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist.mean.float().cpu()
    latents = mean * pipe.vae.config.scaling_factor
    small = torch.nn.functional.interpolate(pixels, size=latents.shape[2:], mode="area")
    return latents.permute(0, 2, 3, 1).flatten(0, 2), small.permute(0, 2, 3, 1).flatten(0, 2)


def suited(pipe: StableDiffusionPipeline, side: int) -> Look:
    """Decoding, where it costs little beside a step: on an accelerator, or for a small model."""
    weights = sum(weight.numel() for weight in pipe.vae.parameters())
    cheap = pipe.device.type != "cpu" or weights < CHEAP
    return Decoded(pipe) if cheap else Guessed(pipe, min(side, 256))


class Watching:
    """Looks on while an order is drawn: counts the steps, keeps a preview of each picture, stops when it is told to."""

    def __init__(self, order: Order, look: Look) -> None:
        self.order, self.look = order, look
        self.lock = threading.Lock()
        self.last: dict[int, float] = {}

    def __call__(self, pictures: Sequence[Picture], latents: Latents) -> None:
        """Called in the threads that draw. Raises Withdrawn."""
        self.order.check()
        with self.lock:
            self.order.calls += len(pictures)
        now = time.monotonic()
        for picture, row in zip(pictures, latents.split(1), strict=False):
            if now - self.last.get(picture.index, -math.inf) >= PAUSE:
                self.last[picture.index] = now
                self.order.looks[picture.index] = encoded(self.look(row))


def encoded(picture: Image.Image) -> bytes:
    """Small enough to be sent several times a second."""
    buffer = io.BytesIO()
    picture.thumbnail((384, 384))
    picture.save(buffer, "WEBP", quality=70, method=0)
    return buffer.getvalue()
