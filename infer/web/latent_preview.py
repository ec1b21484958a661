"""Previews of unfinished images: decoded where that is cheap, otherwise a linear approximation from the latents."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from data import images, sample_set
from data.shapes import Latents
from infer.prompts import ImageRequest
from infer.web.queue import Job

INTERVAL = 0.3  # seconds between two previews of one image
SMALL_VAE = 5_000_000  # weights; decoding a smaller one is cheap on a CPU too
FIT_IMAGES = 4  # images that the linear approximation is fitted to
PREVIEW_SIDE = 384  # pixels; small enough to be sent several times a second

Preview = Callable[[Latents], Image.Image]  # latents (1, C, h, w) -> image


def choose_preview(pipe: StableDiffusionPipeline, side: int) -> Preview:
    """Decode on an accelerator or with a small VAE; elsewhere decoding would take as long as several steps."""
    weights = sum(weight.numel() for weight in pipe.vae.parameters())
    if pipe.device.type != "cpu" or weights < SMALL_VAE:
        return DecodedPreview(pipe)
    return LinearPreview(pipe, min(side, 256))


class DecodedPreview:
    """Decodes the latents with the VAE."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.vae = pipe.vae

    @torch.no_grad()
    def __call__(self, latents: Latents) -> Image.Image:
        decoded = self.vae.decode(normalize(latents) / self.vae.config.scaling_factor, return_dict=False)[0]
        return images.tensor_to_image(decoded[0].float().nan_to_num().cpu())


class LinearPreview:
    """An affine map from the latent at a position to the color there, fitted by least squares to a few images."""

    def __init__(self, pipe: StableDiffusionPipeline, side: int) -> None:
        self.map = fit_colors(*fit_samples(pipe, side))

    def __call__(self, latents: Latents) -> Image.Image:
        rows = normalize(latents).float().cpu()[0].permute(1, 2, 0)  # (h, w, C)
        return images.tensor_to_image((with_ones(rows) @ self.map).permute(2, 0, 1).nan_to_num())


def normalize(latents: Latents) -> Latents:
    """Scale down to a standard deviation of at most 1: some schedulers start with much stronger noise."""
    return latents / latents.float().std().clamp(min=1.0).to(latents.dtype)


def with_ones(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, torch.ones(*rows.shape[:-1], 1)], dim=-1)


def fit_colors(latents: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(C + 1, 3): the affine map from latents (n, C) to colors (n, 3)."""
    return torch.linalg.lstsq(with_ones(latents), colors).solution


@torch.no_grad()
def fit_samples(pipe: StableDiffusionPipeline, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (n, C) of some images and the mean colors (n, 3), in [-1, 1], of the pixels at each position."""
    pixels = torch.stack([images.image_to_tensor(sample_set.sample_image(index, side)) for index in range(FIT_IMAGES)])
    mean = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist.mean.float().cpu()
    latents = mean * pipe.vae.config.scaling_factor
    small = torch.nn.functional.interpolate(pixels, size=latents.shape[2:], mode="area")
    return latents.permute(0, 2, 3, 1).flatten(0, 2), small.permute(0, 2, 3, 1).flatten(0, 2)


class ProgressCallback:
    """Called after every step: counts U-Net calls, keeps a preview of each image, and ends a stopped job."""

    def __init__(self, job: Job, preview: Preview) -> None:
        self.job, self.preview = job, preview
        self.lock = threading.Lock()
        self.last: dict[int, float] = {}

    def __call__(self, batch: Sequence[ImageRequest], latents: Latents) -> None:
        """latents: (B, C, h, w). Raises JobStopped."""
        self.job.raise_if_stopped()
        with self.lock:
            self.job.calls += len(batch)
        now = time.monotonic()
        for image, row in zip(batch, latents.split(1), strict=False):
            if now - self.last.get(image.index, -math.inf) >= INTERVAL:
                self.last[image.index] = now
                self.job.previews[image.index] = to_webp(self.preview(row))


def to_webp(image: Image.Image) -> bytes:
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70, method=0)
    return buffer.getvalue()
