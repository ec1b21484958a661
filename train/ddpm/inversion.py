"""From a picture to the noise that deterministic DDIM would make it from, and between two pictures through it.

Source: Song et al. 2021 (DDIM), arXiv 2010.02502, section 4.3 and eq. 14.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from data.errors import InputError
from data.shapes import Images, PerSample
from train.ddpm import respacing
from train.ddpm.noise import Noise
from train.ddpm.prediction import Denoiser
from train.ddpm.samplers import shares
from train.ddpm.schedule import Schedule
from train.ddpm.walk import FINISHED, Sampler, State, Walk, last


@dataclass(frozen=True)
class Inversion:
    """DDIM's steps (eta 0) taken upwards. count, spacing: those of the sampler that will come down again.

    refinements: a step up uses eps at the step below, for that of the step it leads to is not known yet. Each
    refinement asks again where the step led, which converges to the exact inverse; 0 is the usual inversion.
    """

    count: int | None = field(default=None, kw_only=True)
    spacing: str = field(default="linspace", kw_only=True)
    refinements: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.refinements < 0:
            raise InputError(f"{self.refinements} refinements", allowed="0 or more")

    @torch.no_grad()
    def steps(self, predict: Denoiser, schedule: Schedule, picture: Images) -> Iterator[State]:
        """The picture, (B, C, H, W) in [-1, 1], and every state up from it; the last one is x_T."""
        chain = respacing.chain(schedule, self.count, self.spacing)
        walk = Walk(chain, predict, nothing_new)
        x, t, seen = picture, FINISHED, walk.look(0, picture)
        for i in range(len(chain)):
            yield State(t, x, seen.x0 if i else picture)
            above = step_up(walk, i, x, seen.eps)
            for _ in range(self.refinements):
                above = step_up(walk, i, x, walk.look(i, above).eps)
            x, t, seen = above, chain.timesteps[i], walk.look(i, above)
        yield State(t, x, seen.x0)


def step_up(walk: Walk, i: int, below: Images, eps: Images) -> Images:
    """x at step i, from x at step i - 1 and the noise in it: eq. 14 of arXiv 2010.02502, solved for x_t."""
    A, P = shares(walk.chain, i)
    # x_t / sqrt(abar_t) = x_{t-1} / sqrt(abar_{t-1}) + (s_t - s_{t-1}) eps, s = sqrt((1 - abar) / abar)
    return math.sqrt(A / P) * below + (math.sqrt(1 - A) - math.sqrt(A * (1 - P) / P)) * eps


def nothing_new(*position: int | str) -> Images:
    """The noise of a way that has none."""
    raise AssertionError(f"no new noise on the way up, asked for at {position}")


# ---- between two pictures


def linear(first: Images, second: Images, share: PerSample) -> Images:
    """(1 - share) first + share second, for two (C, H, W) and (S,) shares -> (S, C, H, W)."""
    share = share.to(first).reshape(-1, *[1] * first.ndim)
    # (1 - lambda) x_t + lambda x_t'
    return (1.0 - share) * first + share * second


def spherical(first: Images, second: Images, share: PerSample) -> Images:
    """Along the arc between two (C, H, W) of noise, so that what lies between is noise of the same size too.

    Source: arXiv 2010.02502, section 5.3 and appendix D. InputError if they point in opposite directions.
    """
    a, b = first.flatten().double(), second.flatten().double()
    theta = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1.0, 1.0)).item()
    if math.pi - theta < 1e-4:
        raise InputError("an arc between two opposite noises", allowed="noises of different seeds")
    if theta < 1e-4:
        return linear(first, second, share)
    share = share.double().reshape(-1, *[1] * first.ndim)
    # sin((1 - lambda) theta) / sin(theta) x + sin(lambda theta) / sin(theta) x'
    weights = torch.sin((1.0 - share) * theta) / math.sin(theta), torch.sin(share * theta) / math.sin(theta)
    return weights[0].to(first) * first + weights[1].to(first) * second


def interpolated(
    sampler: Sampler,
    predict: Denoiser,
    schedule: Schedule,
    pictures: tuple[Images, Images],
    share: PerSample,
    start: int,
    noise: Noise,
) -> Images:
    """Two (C, H, W) pictures noised up to step `start` of the sampler's chain, mixed there, and drawn down again.

    share: (S,) of the second picture; the result is (S, C, H, W). noise: of one seed S times, so that both pictures
    and all shares get the same noise; then 0 and 1 give the two reconstructions. With start at the chain's end little
    of the pictures is left. Source: Ho et al. 2020, arXiv 2006.11239, section 4.3 and figure 8.
    """
    chain = sampler.chain(schedule)
    if not 0 <= start < len(chain):
        raise InputError(f"interpolation at step {start}", allowed=f"0 to {len(chain) - 1}")
    abar = chain.schedule.alphas_cumprod[start].item()
    # x_t ~ q(x_t | x_0) of both pictures with one noise, then (1 - lambda) x_t + lambda x_t'
    mixed = linear(*pictures, share)
    xt = math.sqrt(abar) * mixed + math.sqrt(1.0 - abar) * noise("diffuse")
    return last(sampler.walk(Walk(chain, predict, noise), xt, start))
