"""The sampling loop, from noise to latents: text-to-image, img2img, inpainting and ControlNet on one page.

diffusers has a pipeline for each of these. This is their common loop, with the same latents in fp32 (tests compare
them), and with what they lack: guidance rescale for img2img, guidance for a share of the steps, and ancestral samplers
that do not shift the noise when inpainting. Schedulers are diffusers' own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.errors import InputError
from data.shapes import Latents, TextStates
from infer.conditioning_images import NO_IMAGES, ConditioningImages, ResizedImages
from infer.prompts import ImageRequest

StepCallback = Callable[[int, Tensor, Latents], object]  # step, timestep, latents after it


@dataclass(frozen=True)
class SamplingSettings:
    """How an image is generated. Sizes in pixels; guidance_scale 1 or less: no guidance.

    guidance_stop: share of the steps that are guided. strength: share of the steps that img2img makes.
    weighting: the prompts' syntax, see infer/text_encoding.py.
    """

    steps: int
    guidance_scale: float
    width: int
    height: int
    negative_prompt: str = ""
    micro_batch: int = 1
    guidance_rescale: float = 0.0
    guidance_stop: float = 1.0
    strength: float = 1.0
    weighting: str = "none"

    def of(self, image: ImageRequest) -> SamplingSettings:
        """These settings with the ones that an image has of its own."""
        return replace(self, **image.own)


@torch.no_grad()
def sample(
    pipe: Any, settings: SamplingSettings, prompt_embeds: TextStates, negative_embeds: TextStates,
    generators: Sequence[torch.Generator], images: ConditioningImages = NO_IMAGES,
    callback: StepCallback = lambda step, t, latents: None,
) -> Latents:  # fmt: skip
    """The latents (B, 4, h, w) of a micro-batch. Embeddings: (B, L, D). generators: one an image, on the CPU."""
    scheduler = copy.deepcopy(pipe.scheduler)
    timesteps = set_timesteps(scheduler, settings.steps, settings.strength if images.init is not None else 1.0)
    resized = images.at(settings.width, settings.height)
    start = prepare_latents(pipe, scheduler, settings, resized, timesteps, generators)
    unet = UnetCall(pipe, scheduler, start.extra_channels, images, resized.lines)
    embeds = torch.cat([negative_embeds, prompt_embeds])
    guided = round(len(timesteps) * settings.guidance_stop) if settings.guidance_scale > 1 else 0  # steps, the first
    options: dict[str, Any] = {
        "eta": 0.0,
        "generator": list(generators),
    }  # of DDIM, of samplers that add noise
    known = inspect.signature(scheduler.step).parameters
    options = {name: value for name, value in options.items() if name in known}

    latents = start.latents
    for step, t in enumerate(timesteps):
        if step < guided:  # classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598, eq. 6
            uncond, cond = unet(torch.cat([latents] * 2), t, embeds).chunk(2)
            noise_pred = uncond + settings.guidance_scale * (cond - uncond)
            noise_pred = rescale_guidance(noise_pred, cond, settings.guidance_rescale)
        else:  # a copy: schedulers keep predictions, and a CUDA graph writes each one into the same memory
            noise_pred = unet(latents, t, prompt_embeds).clone()
        latents = scheduler.step(noise_pred, t, latents, **options, return_dict=False)[0]
        if start.inpaint is not None:  # restore the original outside the mask, noised as the next step expects
            original, noise, mask = start.inpaint
            if step + 1 < len(timesteps):
                original = scheduler.add_noise(original, noise, timesteps[step + 1 : step + 2])
            latents = (1 - mask) * original + mask * latents
        callback(step, t, latents)
    return latents


def set_timesteps(scheduler: Any, steps: int, strength: float) -> Tensor:
    """The timesteps from high to low, on the CPU; with a strength below 1 the last int(steps * strength) of them.

    On the CPU the scheduler looks up its tables without waiting for a GPU.
    """
    scheduler.set_timesteps(steps)
    first = (steps - min(int(steps * strength), steps)) * scheduler.order
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


# ---- before the first step


@dataclass(frozen=True)
class Start:
    """Where the loop starts. extra_channels: input of an inpainting U-Net. inpaint: original, noise and mask."""

    latents: Latents
    extra_channels: Tensor | None = None
    inpaint: tuple[Latents, Latents, Tensor] | None = None


def prepare_latents(
    pipe: Any, scheduler: Any, settings: SamplingSettings, images: ResizedImages, timesteps: Tensor,
    generators: Sequence[torch.Generator],
) -> Start:  # fmt: skip
    """Noise, or the noised initial image. Each generator is used in diffusers' order: image, noise, masked image."""
    is_inpainting_unet = pipe.unet.config.in_channels == 9
    makes_all_steps = settings.strength == 1
    original = None
    if images.pixels is not None and not (is_inpainting_unet and makes_all_steps):
        original = encode_image(pipe, images.pixels, generators)
    noise = initial_noise(pipe, settings, generators)
    if original is None or (images.mask is not None and makes_all_steps):
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(original, noise, timesteps[:1].repeat(len(noise)))
    if images.mask is None or images.pixels is None:
        return Start(latents)
    mask = torch.nn.functional.interpolate(images.mask, size=noise.shape[2:])
    mask = mask.to(noise.device, noise.dtype).repeat(len(noise), 1, 1, 1)
    if is_inpainting_unet:
        masked = encode_image(pipe, images.pixels * (images.mask < 0.5), generators)
        return Start(latents, torch.cat([mask, masked], dim=1))
    assert original is not None
    return Start(latents, None, (original, noise, mask))


def initial_noise(pipe: Any, settings: SamplingSettings, generators: Sequence[torch.Generator]) -> Latents:
    """Standard normal latents (B, 4, h, w), made in fp32 on the CPU: a seed is the same image in any precision."""
    height, width = settings.height // pipe.vae_scale_factor, settings.width // pipe.vae_scale_factor
    shape = (1, pipe.vae.config.latent_channels, height, width)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    return noise.to(pipe.device, pipe.unet.dtype)


def encode_image(pipe: Any, pixels: Tensor, generators: Sequence[torch.Generator]) -> Latents:
    """An image (1, 3, H, W) as latents (B, 4, h, w): a sample of the VAE's posterior for each generator."""
    posterior = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist
    noises = [torch.randn(posterior.mean.shape, generator=generator) for generator in generators]
    latents = torch.cat([posterior.mean + posterior.std * noise.to(posterior.mean) for noise in noises])
    return (latents * pipe.vae.config.scaling_factor).to(pipe.unet.dtype)


# ---- a step


class UnetCall:
    """The U-Net with a ControlNet's residuals and an inpainting model's extra channels."""

    def __init__(
        self, pipe: Any, scheduler: Any, extra: Tensor | None, images: ConditioningImages, lines: Tensor | None
    ) -> None:
        self.pipe, self.scheduler, self.extra = pipe, scheduler, extra
        self.controlnet, self.scale = images.controlnet, images.control_scale
        if self.controlnet is not None and lines is not None:
            self.lines = lines.to(self.controlnet.device, self.controlnet.dtype)

    def __call__(self, latents: Latents, t: Tensor, embeds: TextStates) -> Latents:
        """The predicted noise."""
        sample = self.scheduler.scale_model_input(latents, t)
        residuals = {} if self.controlnet is None else self.residuals(sample, t, embeds)
        if self.extra is not None:
            sample = torch.cat([sample, self.extra.repeat(len(sample) // len(self.extra), 1, 1, 1)], dim=1)
        timestep = t.to(self.pipe.device, non_blocking=True)  # a number on the CPU would prevent a CUDA graph
        return self.pipe.unet(sample, timestep, encoder_hidden_states=embeds, return_dict=False, **residuals)[0]

    def residuals(self, sample: Latents, t: Tensor, embeds: TextStates) -> dict[str, Any]:
        """Source: Zhang et al. 2023, arXiv 2302.05543."""
        lines = self.lines.repeat(len(sample), 1, 1, 1)
        how = {"conditioning_scale": self.scale, "return_dict": False}
        down, middle = self.controlnet(sample, t, encoder_hidden_states=embeds, controlnet_cond=lines, **how)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def rescale_guidance(noise_pred: Latents, cond: Latents, share: float) -> Latents:
    """Give the guided prediction the spread of the conditional one, by `share`.

    Source: Lin et al. 2023, arXiv 2305.08891, section 3.4.
    """
    if share == 0:
        return noise_pred
    dims = list(range(1, noise_pred.ndim))
    target, current = cond.std(dim=dims, keepdim=True), noise_pred.std(dim=dims, keepdim=True)
    return share * (noise_pred * (target / current)) + (1 - share) * noise_pred


def count_unet_calls(pipe: Any, steps: int, strength: float = 1.0) -> int:
    """U-Net calls for an image: PNDM makes one more than steps, Heun nearly twice as many. Raises InputError."""
    if int(steps * strength) < 1:
        what = f"{strength:g} of {steps} steps is less than one step"
        raise InputError(what, where="--strength", allowed=f"{1 / steps:.3g} to 1 at {steps} steps")
    trained = pipe.scheduler.config.num_train_timesteps
    if steps > trained:  # some schedulers raise, others would stay at the first timestep
        what = f"{steps} steps are more than the model was trained with"
        raise InputError(what, where="--steps", allowed=f"1 to {trained}")
    try:
        return len(set_timesteps(copy.deepcopy(pipe.scheduler), steps, strength))
    except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"the scheduler cannot make {steps} steps ({reason})", where="--steps") from None
