"""Samplers: from noise to an image, step by step. SAMPLERS is the registry; to add one, add an entry.

p_theta(x_0..x_T) is the product of p(x_T) = N(0, 1) and every p_theta(x_{t-1} | x_t). Source: Ho et al. 2020, arXiv
2006.11239, eq. 1.
A sampler is a frozen object with a `step`. Its generator `steps` yields the state before each step and then the image.
i counts the steps of the chain and 0 is the last one taken. A is abar at step i, P is abar at step i - 1, and 1 for the
image. The contract tests run every entry of SAMPLERS on Gaussian data, where the exact answer is known.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from data import rng
from data.errors import InputError, check_choice
from data.shapes import Images, Timesteps
from train.ddpm.prediction import Denoiser, Prediction, get_variance
from train.ddpm.schedule import Schedule

# ---- noise

Noise = Callable[..., Images]  # position (integers and words) -> (B, C, H, W) standard normal noise, always the same


@dataclass(frozen=True)
class SeededNoise:
    """Noise that follows from each image's own seed and a position, so that an image is the same alone or in a batch.

    seeds: one number an image. shape: (C, H, W). Drawn on the CPU, so that a GPU gets the same.
    """

    seeds: tuple[int, ...]
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def __call__(self, *position: int | str) -> Images:
        noise = [rng.normal(self.shape, seed, "ddpm", *position) for seed in self.seeds]
        return torch.stack(noise).to(self.device, self.dtype)

    def start(self) -> Images:
        """x_T, the (B, C, H, W) noise that sampling starts from."""
        return self("start")


def seeded_noise(start: int, count: int, shape: Sequence[int], device: torch.device | str = "cpu") -> SeededNoise:
    """Noise for `count` images with the seeds start, start + 1, ..."""
    return SeededNoise(tuple(range(start, start + count)), tuple(shape), device)


# ---- respacing: a short chain through some timesteps of the long one. q(x_t | x_0) at these timesteps is what the
# network learned; with a schedule of their own every formula holds again.
# Source: Nichol & Dhariwal 2021, arXiv 2102.09672, section 4; Song et al. 2021, arXiv 2010.02502, section 4.2


@dataclass(frozen=True, eq=False)
class Chain:
    """A schedule of n steps, on the CPU, and the n increasing timesteps that the network knows them by."""

    schedule: Schedule
    timesteps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.timesteps)

    def t(self, i: int, like: Images) -> Timesteps:
        """(B,) the network's timestep of step i, for the batch `like`."""
        return torch.full((len(like),), self.timesteps[i], dtype=torch.int64, device=like.device)


def respace(schedule: Schedule, count: int | None = None, spacing: str = "linspace") -> Chain:
    """The chain through `count` timesteps of `schedule`, all of them if None. Raises InputError.

    A schedule with zero terminal SNR must keep its last step, where sampling starts (arXiv 2305.08891, section 3.3).
    """
    T = schedule.steps
    kept = tuple(range(T)) if count is None else spaced_timesteps(T, count, spacing)
    if kept[-1] != T - 1 and not schedule.has_signal_left:
        what = f"{spacing} spacing of {count} of {T} steps leaves out the last one, where zero terminal SNR starts"
        raise InputError(what, allowed="linspace or trailing")
    if len(kept) == T:
        return Chain(Schedule(schedule.betas.cpu().double()), kept)  # exact, not only to rounding
    abar = schedule.alphas_cumprod.cpu().double()[list(kept)]
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    # beta'_i = 1 - abar_{tau_i} / abar_{tau_{i-1}}
    return Chain(Schedule(1.0 - abar / before), kept)


def spaced_timesteps(T: int, count: int, spacing: str) -> tuple[int, ...]:
    """`count` increasing timesteps of [0, T); InputError for an unknown spacing or count."""
    place = SPACINGS[check_choice(spacing, SPACINGS, what="spacing")]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= T:
        raise InputError(f"{count!r} sampling steps", allowed=f"a whole number from 1 to {T}")
    return place(T, count)


def linspace(T: int, count: int) -> tuple[int, ...]:
    """From 0 to T - 1, both included (for a single step, T - 1), evenly to rounding."""
    if count == 1:
        return (T - 1,)
    # i (T - 1) / (n - 1), in fractions: a half goes to the even number, as in numpy
    return tuple(round(Fraction(i * (T - 1), count - 1)) for i in range(count))


def leading(T: int, count: int) -> tuple[int, ...]:
    """0, k, 2k ... with k = floor(T / count): the last timesteps are never visited."""
    return tuple(i * (T // count) for i in range(count))


def trailing(T: int, count: int) -> tuple[int, ...]:
    """T - 1 and down from it by T / count, to rounding."""
    # i T / n - 1 for i = 1..n
    return tuple(round(Fraction(i * T, count)) - 1 for i in range(1, count + 1))


# names as in Lin et al. 2023, arXiv 2305.08891, section 3.3
SPACINGS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    each.__name__: each for each in (linspace, leading, trailing)
}

# ---- the sampling loop

FINISHED = -1  # the timestep of a finished image: one before the first


@dataclass(frozen=True, eq=False)
class SamplerState:
    """x_t, and the x_0 predicted from it.

    t: the network's timestep of xt, falling to FINISHED. xt, x0: (B, C, H, W); both are the image at FINISHED.
    The x0 of all states are the progressive prediction of Ho et al. 2020, arXiv 2006.11239, figure 6.
    """

    t: int
    xt: Images
    x0: Images


@dataclass(frozen=True, eq=False)
class SamplingContext:
    """What does not change from step to step."""

    chain: Chain
    predict: Denoiser
    noise: Noise

    def predict_at(self, i: int, xt: Images) -> Prediction:
        """The prediction for xt at step i of the chain."""
        return self.predict(xt, self.chain.t(i, xt))


@dataclass(frozen=True)
class Sampler(ABC):
    """Base class. count: number of steps, all of the schedule's if None. spacing: which ones, see SPACINGS."""

    corruption: ClassVar[str] = "gaussian"  # the process that it reverses: this, or "mix"

    count: int | None = field(default=None, kw_only=True)
    spacing: str = field(default="linspace", kw_only=True)

    @abstractmethod
    def step(self, context: SamplingContext, i: int, now: Prediction, before: Prediction | None) -> Images:
        """x at step i - 1 of the chain (at i = 0: the image), from the predictions at step i and at step i + 1.

        Noise of this step is context.noise(i).
        """

    def chain(self, schedule: Schedule) -> Chain:
        """The steps that this sampler takes; InputError for a count or spacing that is not possible."""
        return respace(schedule, self.count, self.spacing)

    def steps(self, predict: Denoiser, schedule: Schedule, x_T: Images, noise: Noise) -> Iterator[SamplerState]:
        """Every state from x_T (B, C, H, W) down to the image: n + 1 of them for n steps.

        schedule: the one that the network was trained on. noise(i): the noise of step i of the chain, (B, C, H, W).
        """
        return self.steps_from(SamplingContext(self.chain(schedule), predict, noise), x_T)

    @torch.no_grad()
    def steps_from(self, context: SamplingContext, xt: Images, start: int | None = None) -> Iterator[SamplerState]:
        """The states from step `start` of the chain, where xt is, down to the image; from the last step if None."""
        before = None
        for i in reversed(range(len(context.chain) if start is None else start + 1)):
            now = context.predict_at(i, xt)
            yield SamplerState(context.chain.timesteps[i], xt, now.x0)
            xt, before = self.step(context, i, now, before), now
        yield SamplerState(FINISHED, xt, xt)


def generate(sampler: Sampler, predict: Denoiser, schedule: Schedule, x_T: Images, noise: Noise) -> Images:
    """The generated images, (B, C, H, W) as x_T."""
    return final_images(sampler.steps(predict, schedule, x_T, noise))


def final_images(states: Iterable[SamplerState]) -> Images:
    """The images of the last state."""
    (state,) = deque(states, maxlen=1)  # holds one in memory
    return state.xt


# ---- the samplers


def abar_and_previous(chain: Chain, i: int) -> tuple[float, float]:
    """A and P: abar at step i of the chain, and at the step below it."""
    return chain.schedule.alphas_cumprod[i].item(), chain.schedule.alphas_cumprod_prev[i].item()


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Sample p_theta(x_{t-1} | x_t), step by step. Source: Ho et al. 2020, arXiv 2006.11239, algorithm 2.

    variance: a name of prediction.VARIANCES. noise_scale: 1 is the algorithm; with 0 images collapse to the mean.
    """

    variance: str = "fixed-large"
    noise_scale: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        get_variance(self.variance)
        if not self.noise_scale >= 0:
            raise InputError(f"noise_scale {self.noise_scale:g}", allowed="0 (no noise) and above; 1 is the algorithm")

    def step(self, context: SamplingContext, i: int, now: Prediction, before: Prediction | None) -> Images:
        schedule = context.chain.schedule
        # mu = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0 + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t     eq. 7
        # with x_0 of eq. 15: 1 / sqrt(alpha_t) (x_t - beta_t / sqrt(1 - abar_t) eps)                             eq. 11
        c1, c2 = schedule.posterior_mean_coef_x0[i].item(), schedule.posterior_mean_coef_xt[i].item()
        mean = c1 * now.x0 + c2 * now.xt
        if i == 0 or self.noise_scale == 0:
            return mean  # z = 0 at the last step
        log_variance = get_variance(self.variance).of_step(now, schedule, i)
        sigma = (log_variance / 2).exp() if isinstance(log_variance, Tensor) else math.exp(log_variance / 2)
        # x_{t-1} = mu + sigma_t z                                                               algorithm 2, line 4
        return mean + self.noise_scale * sigma * context.noise(i)


@dataclass(frozen=True)
class DDIM(Sampler):
    """The predicted image, noised again to the step below. Source: Song et al. 2021, arXiv 2010.02502, eq. 12.

    eta: how much of that noise is new, from 0 (none: the image is a function of x_T) to 1 (ancestral, fixed-small).
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta {self.eta:g}", allowed="0 (deterministic) to 1 (ancestral)")

    def step(self, context: SamplingContext, i: int, now: Prediction, before: Prediction | None) -> Images:
        A, P = abar_and_previous(context.chain, i)
        # sigma_t = eta sqrt((1 - abar_{t-1}) / (1 - abar_t)) sqrt(1 - abar_t / abar_{t-1})                      eq. 16
        sigma = self.eta * math.sqrt((1 - P) / (1 - A) * (1 - A / P))
        # x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1} - sigma_t^2) eps + sigma_t z                      eq. 12
        x = math.sqrt(P) * now.x0 + math.sqrt(max(1 - P - sigma**2, 0.0)) * now.eps
        return x + sigma * context.noise(i) if sigma > 0 else x


@dataclass(frozen=True)
class Heun(Sampler):
    """The probability-flow ODE by Heun's second-order method. Source: Karras et al. 2022, arXiv 2206.00364, alg. 1.

    In their variables, x^ = x_t / sqrt(abar_t) and s = sqrt((1 - abar_t) / abar_t), it reads dx^ / ds = eps, and DDIM
    is its Euler step. Two predictions a step, but one from s = infinity (zero terminal SNR) and one to s = 0.
    """

    def step(self, context: SamplingContext, i: int, now: Prediction, before: Prediction | None) -> Images:
        A, P = abar_and_previous(context.chain, i)
        # Euler: x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1}) eps                         lines 4 and 5
        euler = math.sqrt(P) * now.x0 + math.sqrt(1 - P) * now.eps
        if i == 0 or A == 0:
            return euler
        there = context.predict_at(i - 1, euler)
        ds = math.sqrt((1 - P) / P) - math.sqrt((1 - A) / A)
        # x^_{t-1} = x^_t + (s_{t-1} - s_t) (eps_t + eps_{t-1}) / 2                                lines 7 and 8
        return math.sqrt(P) * (now.xt / math.sqrt(A) + ds * (now.eps + there.eps) / 2)


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M), second order with one prediction a step. Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.

    lambda = log(sqrt(abar) / sqrt(1 - abar)), half the log SNR. The first step and the last one, to lambda = infinity,
    are first order (DDIM's), as is the one after a zero terminal SNR.
    """

    def step(self, context: SamplingContext, i: int, now: Prediction, before: Prediction | None) -> Images:
        A, P = abar_and_previous(context.chain, i)
        x0 = now.x0 if before is None or i == 0 else self.extrapolated_x0(context.chain, i, now, before)
        # x_{t-1} = s_{t-1} / s_t x_t - a_{t-1} (e^{-h} - 1) D, where e^{-h} = a_t s_{t-1} / (s_t a_{t-1}),
        # a_t = sqrt(abar_t), s_t = sqrt(1 - abar_t)
        ratio = math.sqrt((1 - P) / (1 - A))
        return ratio * now.xt + (math.sqrt(P) - math.sqrt(A) * ratio) * x0

    def extrapolated_x0(self, chain: Chain, i: int, now: Prediction, before: Prediction) -> Images:
        """D, the x_0 half a step ahead on the line through this prediction and the one before."""
        high, here, low = (chain.schedule.log_snr[k].item() / 2 for k in (i + 1, i, i - 1))
        # r = h_{i-1} / h_i, and 1 / r = 0 if the step before came from lambda = -infinity
        per_r = (low - here) / (here - high)
        # D = (1 + 1 / (2 r)) x_0(t) - 1 / (2 r) x_0(t + 1)
        return (1 + per_r / 2) * now.x0 - per_r / 2 * before.x0


@dataclass(frozen=True)
class Naive(Sampler):
    """Move a fraction of the way towards the predicted image; for networks trained on diffusion.linear_mix.

    Source: Hugging Face's diffusion-models-class, unit 1: x <- x + (x_0 - x) / (steps left). For a linear mix of
    image and noise that is DDIM: the share of the noise falls evenly to nothing. Only x_0 is used.
    """

    corruption = "mix"

    def step(self, context: SamplingContext, i: int, now: Prediction, before: Prediction | None) -> Images:
        timesteps = context.chain.timesteps
        here, below = timesteps[i] + 1, (timesteps[i - 1] + 1 if i > 0 else 0)
        # a_t = t / T of x_t is noise; x_s = x_t + (1 - a_s / a_t) (x_0 - x_t)
        return now.xt + (1 - below / here) * (now.x0 - now.xt)


SAMPLERS: dict[str, Sampler] = {
    "fixed-large": Ancestral("fixed-large"),
    "fixed-small": Ancestral("fixed-small"),
    "learned-range": Ancestral("learned-range"),
    "ddim": DDIM(),
    "heun": Heun(),
    "dpm++": DPMSolver(),
    "naive": Naive(),
}


def make_sampler(name: str, **options: Any) -> Sampler:
    """The sampler `name` of SAMPLERS with other options, e.g. make_sampler("ddim", eta=0.5, spacing="trailing").

    InputError with a suggestion for an unknown name or option, and for an invalid value.
    """
    sampler = SAMPLERS[check_choice(name, SAMPLERS, what="sampler")]
    allowed = [each.name for each in fields(sampler) if each.name != "variance"]
    for option in options:
        check_choice(option, allowed, what=f"option of sampler {name!r}:")
    return replace(sampler, **options)
