"""The loop from noise to latents, for all that generate.py draws: from words or a picture, in a mask, along lines.

diffusers has a pipeline for each of these; this is their common loop, its parts chosen before it begins. Its latents
are theirs in fp32 (tests/unit/test_infer_denoising.py). The scheduler is diffusers' own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.errors import InputError
from infer.conditioning_images import ConditioningImages, ResizedImages

if TYPE_CHECKING:
    from data.shapes import Latents, TextStates
    from infer.pipeline import SamplingSettings

StepCallback = Callable[[int, Any, "Latents"], object]  # step number, timestep, latents after it
AfterStep = Callable[["Latents", int], "Latents"]


@dataclass(frozen=True)
class Networks:
    """The networks, and a scheduler that nobody else uses while the loop runs."""

    unet: Any
    vae: Any
    scheduler: Any
    device: torch.device

    @property
    def factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch. states, negative: (B, L, D) of the prompts. generators: one a picture, on the CPU."""

    settings: SamplingSettings
    states: TextStates
    negative: TextStates
    generators: Sequence[torch.Generator]
    canvas: ConditioningImages

    @property
    def cut(self) -> ResizedImages:
        return self.canvas.at(self.settings.width, self.settings.height)


@torch.no_grad()
def sample_latents(parts: Networks, work: MicroBatch, watch: StepCallback) -> Latents:
    """(B, 4, h, w): the pictures of a micro-batch before they are decoded."""
    timesteps = set_timesteps(parts.scheduler, work.settings.steps, effective_strength(work))
    latents, keep, extra = prepare_latents(parts, work, timesteps)
    predict = NoisePredictor(parts, work, extra)
    guided = guided_steps(len(timesteps), work.settings)
    options = step_kwargs(parts.scheduler, work.generators)
    for number, t in enumerate(timesteps):
        predicted = predict.guided(latents, t) if number < guided else predict.plainly(latents, t)
        latents = parts.scheduler.step(predicted, t, latents, **options, return_dict=False)[0]
        latents = keep(latents, number)
        watch(number, t, latents)
    return latents


@torch.no_grad()
def unet_calls(parts: Networks, work: MicroBatch) -> list[Callable[[], Latents]]:
    """The calls of the U-Net, on the first latents, in each way in which the loop will ask it: guided, plainly."""
    timesteps = set_timesteps(parts.scheduler, work.settings.steps, effective_strength(work))
    latents, _, extra = prepare_latents(parts, work, timesteps)
    predict = NoisePredictor(parts, work, extra)
    guided = guided_steps(len(timesteps), work.settings)
    asked = [predict.guided] * (guided > 0) + [predict.plainly] * (guided < len(timesteps))
    return [torch.no_grad()(partial(ask, latents, timesteps[0])) for ask in asked]


def effective_strength(work: MicroBatch) -> float:
    return 1.0 if work.canvas.init is None else work.settings.strength


def set_timesteps(scheduler: Any, steps: int, strength: float) -> Tensor:
    """The timesteps from high to low; with strength under 1 the last int(steps * strength), as diffusers has it."""
    scheduler.set_timesteps(
        steps
    )  # they stay on the CPU: the scheduler's tables are looked up without waiting for a GPU
    first = (steps - min(int(steps * strength), steps)) * scheduler.order
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def guided_steps(count: int, settings: SamplingSettings) -> int:
    """How many of the loop's calls are guided: none at a guidance of 1 or less, else the first share of them."""
    return round(count * settings.guidance_stop) if settings.guidance_scale > 1 else 0


def step_kwargs(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """What this scheduler's step() takes: DDIM's eta (0), and generators where it draws noise."""
    known = inspect.signature(scheduler.step).parameters
    given: dict[str, Any] = {"eta": 0.0, "generator": list(generators)}
    return {name: value for name, value in given.items() if name in known}


# ---- the beginning


def prepare_latents(parts: Networks, work: MicroBatch, timesteps: Tensor) -> tuple[Latents, AfterStep, Tensor | None]:
    """The first latents, what happens to them after each step, and what an inpainting U-Net sees besides them.

    The order in which a picture's generator is used is diffusers': picture, noise, masked picture.
    """
    cut = work.cut
    strength, inpaints = effective_strength(work), cut.mask is not None
    nine = parts.unet.config.in_channels == 9
    needed = cut.pixels is not None and not (nine and strength == 1)
    given = encode_image(parts, cut.pixels, work.generators) if needed and cut.pixels is not None else None
    noise = initial_noise(parts, work.settings, work.generators)
    if given is None or (inpaints and strength == 1):
        latents = noise * parts.scheduler.init_noise_sigma
    else:
        latents = parts.scheduler.add_noise(given, noise, timesteps[:1].repeat(len(noise)))
    if cut.mask is None or cut.pixels is None:
        return latents, keep_latents, None
    mask = torch.nn.functional.interpolate(cut.mask, size=noise.shape[2:])
    mask = mask.to(noise.device, noise.dtype).repeat(len(noise), 1, 1, 1)
    if nine:
        hidden = encode_image(parts, cut.pixels * (cut.mask < 0.5), work.generators)
        return latents, keep_latents, torch.cat([mask, hidden], dim=1)
    assert given is not None
    return latents, RestoreOutsideMask(parts.scheduler, given, noise, mask, timesteps), None


def initial_noise(parts: Networks, settings: SamplingSettings, generators: Sequence[torch.Generator]) -> Latents:
    """Standard normal latents (B, 4, h, w), drawn in fp32 whatever the precision, so that a seed means one picture."""
    channels = parts.vae.config.latent_channels
    shape = (1, channels, settings.height // parts.factor, settings.width // parts.factor)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    return noise.to(parts.device, parts.unet.dtype)


def encode_image(parts: Networks, pixels: Tensor, generators: Sequence[torch.Generator]) -> Latents:
    """A picture (1, 3, H, W) as latents (B, 4, h, w), each a draw from the autoencoder's posterior by its generator."""
    posterior = parts.vae.encode(pixels.to(parts.device, parts.vae.dtype)).latent_dist
    draws = [torch.randn(posterior.mean.shape, generator=generator) for generator in generators]
    found = [posterior.mean + posterior.std * draw.to(posterior.mean) for draw in draws]
    return (torch.cat(found) * parts.vae.config.scaling_factor).to(parts.unet.dtype)


def keep_latents(latents: Latents, number: int) -> Latents:
    return latents


@dataclass(frozen=True)
class RestoreOutsideMask:
    """Puts the given picture, noised as much as the next step expects, back outside the mask after each step."""

    scheduler: Any
    given: Latents
    noise: Latents
    mask: Tensor
    timesteps: Tensor

    def __call__(self, latents: Latents, number: int) -> Latents:
        kept = self.given
        if number + 1 < len(self.timesteps):
            kept = self.scheduler.add_noise(kept, self.noise, self.timesteps[number + 1 : number + 2])
        return (1 - self.mask) * kept + self.mask * latents


# ---- a step


class NoisePredictor:
    """What the U-Net says of latents at a timestep, with and without guidance."""

    def __init__(self, parts: Networks, work: MicroBatch, extra: Tensor | None) -> None:
        self.parts, self.settings = parts, work.settings
        self.plain, self.both = work.states, torch.cat([work.negative, work.states])
        self.extra = extra
        self.control = ControlNetResiduals(work.canvas, work.cut.lines) if work.canvas.controlnet is not None else None

    def plainly(self, latents: Latents, t: Tensor) -> Latents:
        """A copy: schedulers keep predictions, and a CUDA graph writes each into the place of the one before."""
        return self.ask(latents, t, self.plain).clone()

    def guided(self, latents: Latents, t: Tensor) -> Latents:
        """Classifier-free guidance; both halves in one call. Source: Ho & Salimans 2022, arXiv 2207.12598, eq. 6."""
        without, with_prompt = self.ask(torch.cat([latents] * 2), t, self.both).chunk(2)
        predicted = without + self.settings.guidance_scale * (with_prompt - without)
        share = self.settings.guidance_rescale
        return rescale_guidance(predicted, with_prompt, share) if share > 0 else predicted

    def ask(self, latents: Latents, t: Tensor, states: TextStates) -> Latents:
        seen = self.parts.scheduler.scale_model_input(latents, t)
        led = {} if self.control is None else self.control(seen, t, states)
        if self.extra is not None:
            seen = torch.cat([seen, self.extra.repeat(len(seen) // len(self.extra), 1, 1, 1)], dim=1)
        at = t.to(self.parts.device, non_blocking=True)  # a number on the CPU would keep the call out of a CUDA graph
        return self.parts.unet(seen, at, encoder_hidden_states=states, return_dict=False, **led)[0]


def rescale_guidance(predicted: Latents, with_prompt: Latents, share: float) -> Latents:
    """With the spread of the prediction with the prompt, by `share`. Source: Lin et al. 2023, arXiv 2305.08891, 3.4."""
    dims = list(range(1, predicted.ndim))
    wanted, has = with_prompt.std(dim=dims, keepdim=True), predicted.std(dim=dims, keepdim=True)
    return share * (predicted * (wanted / has)) + (1 - share) * predicted


class ControlNetResiduals:
    """A ControlNet's residuals for the U-Net. Source: Zhang et al. 2023, arXiv 2302.05543."""

    def __init__(self, canvas: ConditioningImages, lines: Tensor | None) -> None:
        assert lines is not None
        self.network, self.scale = canvas.controlnet, canvas.control_scale
        self.lines = lines.to(self.network.device, self.network.dtype)

    def __call__(self, seen: Latents, t: Tensor, states: TextStates) -> dict[str, Any]:
        lines = self.lines.repeat(len(seen), 1, 1, 1)
        down, middle = self.network(
            seen,
            t,
            encoder_hidden_states=states,
            controlnet_cond=lines,
            conditioning_scale=self.scale,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def check_strength(steps: int, strength: float) -> None:
    """Raises InputError when no step would be made."""
    if int(steps * strength) < 1:
        what = f"{strength:g} of {steps} steps is none"
        raise InputError(what, where="--strength", allowed=f"{1 / steps:.3g} to 1 at {steps} steps")
