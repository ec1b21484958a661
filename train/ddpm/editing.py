"""Editing with a trained network: DDIM inversion, interpolation between two images, inpainting by mask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from data.errors import InputError
from data.shapes import Images, PerSample
from train.ddpm import samplers
from train.ddpm.prediction import Denoiser, Prediction
from train.ddpm.samplers import FINISHED, Chain, Noise, Sampler, SamplerState, SamplingContext, abar_and_previous
from train.ddpm.schedule import Schedule

# ---- inversion: the noise from which deterministic DDIM would generate an image. Source: Song et al. 2021 (DDIM),
# arXiv 2010.02502, section 4.3 and eq. 14


@dataclass(frozen=True)
class Inversion:
    """DDIM's steps (eta 0) taken upwards. count, spacing: those of the sampler that will come down again.

    refinements: a step up uses eps at the step below, because eps at the step above is not known yet. Each refinement
    predicts again at the step reached, which converges to the exact inverse; 0 is the usual inversion.
    """

    count: int | None = field(default=None, kw_only=True)
    spacing: str = field(default="linspace", kw_only=True)
    refinements: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.refinements < 0:
            raise InputError(f"{self.refinements} refinements", allowed="0 or more")

    @torch.no_grad()
    def steps(self, predict: Denoiser, schedule: Schedule, image: Images) -> Iterator[SamplerState]:
        """The image, (B, C, H, W) in [-1, 1], and every state up from it; the last one is x_T."""
        chain = samplers.respace(schedule, self.count, self.spacing)
        context = SamplingContext(chain, predict, no_noise)
        x, t, prediction = image, FINISHED, context.predict_at(0, image)
        for i in range(len(chain)):
            yield SamplerState(t, x, prediction.x0 if i else image)
            above = invert_step(context, i, x, prediction.eps)
            for _ in range(self.refinements):
                above = invert_step(context, i, x, context.predict_at(i, above).eps)
            x, t, prediction = above, chain.timesteps[i], context.predict_at(i, above)
        yield SamplerState(t, x, prediction.x0)


def invert_step(context: SamplingContext, i: int, below: Images, eps: Images) -> Images:
    """x at step i, from x at step i - 1 and the noise in it: eq. 14 of arXiv 2010.02502, solved for x_t."""
    A, P = abar_and_previous(context.chain, i)
    # x_t / sqrt(abar_t) = x_{t-1} / sqrt(abar_{t-1}) + (s_t - s_{t-1}) eps, s = sqrt((1 - abar) / abar)
    return math.sqrt(A / P) * below + (math.sqrt(1 - A) - math.sqrt(A * (1 - P) / P)) * eps


def no_noise(*position: int | str) -> Images:
    raise AssertionError(f"inversion is deterministic, noise was requested at {position}")


# ---- between two images


def lerp(first: Images, second: Images, share: PerSample) -> Images:
    """(1 - share) first + share second, for two (C, H, W) and (S,) shares -> (S, C, H, W)."""
    share = share.to(first).reshape(-1, *[1] * first.ndim)
    # (1 - lambda) x_t + lambda x_t'
    return (1.0 - share) * first + share * second


def interpolate(
    sampler: Sampler,
    predict: Denoiser,
    schedule: Schedule,
    images: tuple[Images, Images],
    share: PerSample,
    start: int,
    noise: Noise,
) -> Images:
    """Two (C, H, W) images noised up to step `start` of the sampler's chain, mixed there, and denoised again.

    share: (S,) of the second image; the result is (S, C, H, W). noise: of one seed S times, so that both images and all
    shares get the same noise; then 0 and 1 give the two reconstructions. With start at the chain's end little of the
    images is left. Source: Ho et al. 2020, arXiv 2006.11239, section 4.3 and figure 8.
    """
    chain = sampler.chain(schedule)
    if not 0 <= start < len(chain):
        raise InputError(f"interpolation at step {start}", allowed=f"0 to {len(chain) - 1}")
    abar = chain.schedule.alphas_cumprod[start].item()
    # x_t ~ q(x_t | x_0) of both images with one noise, then (1 - lambda) x_t + lambda x_t'
    xt = math.sqrt(abar) * lerp(*images, share) + math.sqrt(1.0 - abar) * noise("diffuse")
    return samplers.final_images(sampler.steps_from(SamplingContext(chain, predict, noise), xt, start))


# ---- inpainting with a network that was not trained for it. Source: Lugmayr et al. 2022 (RePaint), arXiv 2201.09865,
# algorithm 1


@dataclass(frozen=True, eq=False)
class Inpainting(Sampler):
    """Another sampler's steps, with the known part taken from the image at every step.

    sampler: its count and spacing apply. image: (B, C, H, W) in [-1, 1]. mask: the same shape, or 1 along an axis; 1
    where the image is known, 0 where it is generated. repeats: how often each step is taken, noised again in between,
    so that the generated part can follow the known one; the paper takes 10.
    """

    sampler: Sampler
    image: Images
    mask: torch.Tensor
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.sampler.corruption != "gaussian":
            raise InputError("inpainting with a sampler of the linear mix", allowed="a sampler of the Gaussian process")
        if self.repeats < 1:
            raise InputError(f"{self.repeats} repeats of each inpainting step", allowed="1 or more")
        mask, image = self.mask.shape, self.image.shape
        if len(mask) != len(image) or any(m not in (1, size) for m, size in zip(mask, image, strict=True)):
            what = f"a mask of shape {tuple(mask)} for images of {tuple(image)}"
            raise InputError(what, allowed="the images' own shape, or 1 along an axis where it is the same for all")

    def chain(self, schedule: Schedule) -> Chain:
        return self.sampler.chain(schedule)

    def step(self, context: SamplingContext, i: int, now: Prediction, before: Prediction | None) -> Images:
        x = self.with_known(context, i, self.sampler.step(context, i, now, before))
        for repeat in range(1, self.repeats if i > 0 else 1):
            again = replace(context, noise=lambda *place, repeat=repeat: context.noise("repeat", repeat, *place))
            beta = context.chain.schedule.betas[i].item()
            # x_t ~ N(sqrt(1 - beta_t) x_{t-1}, beta_t)                                                      line 10
            xt = math.sqrt(1 - beta) * x + math.sqrt(beta) * again.noise("up", i)
            x = self.with_known(again, i, self.sampler.step(again, i, again.predict_at(i, xt), None))
        return x

    def with_known(self, context: SamplingContext, i: int, generated: Images) -> Images:
        """The image where it is known, noised to the step of `generated`, and `generated` elsewhere."""
        _, P = abar_and_previous(context.chain, i)
        # x_{t-1}^known = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1}) eps                                    line 5
        known = math.sqrt(P) * self.image + (math.sqrt(1 - P) * context.noise("known", i) if i else 0.0)
        # x_{t-1} = m x_{t-1}^known + (1 - m) x_{t-1}^unknown                                                line 8
        return torch.where(self.mask > 0.5, known, generated)
