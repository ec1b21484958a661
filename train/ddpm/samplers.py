"""Samplers: from noise to a picture with the network's help. NAMED is the table of them; to add one, add a row.

i counts the steps of the chain and 0 is the last one taken. A is abar at step i, P is abar at step i - 1, and 1 where
that is the picture. Coefficients are Python numbers out of float64 tables. The tests run every row of NAMED on Gaussian
data, where the exact answer is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from data.errors import InputError, choose, suggest
from data.shapes import Images
from train.ddpm import variance as variances
from train.ddpm.prediction import Prediction
from train.ddpm.respacing import Chain
from train.ddpm.walk import Sampler, State, Walk, run

__all__ = ["NAMED", "Sampler", "State", "make", "run"]


def shares(chain: Chain, i: int) -> tuple[float, float]:
    """A and P: abar at step i of the chain, and at the step below it."""
    return chain.schedule.alphas_cumprod[i].item(), chain.schedule.alphas_cumprod_prev[i].item()


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Draw from p_theta(x_{t-1} | x_t), step by step. Source: Ho et al. 2020, arXiv 2006.11239, algorithm 2.

    variance: a name of variance.NAMED. noise_scale: 1 is the algorithm; 0 leaves the noise out, and pictures fall
    towards the mean of the data.
    """

    variance: str = "fixed-large"
    noise_scale: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        variances.named(self.variance)
        if not self.noise_scale >= 0:
            raise InputError(f"noise_scale {self.noise_scale:g}", allowed="0 (no noise) and above; 1 is the algorithm")

    def step(self, walk: Walk, i: int, now: Prediction, before: Prediction | None) -> Images:
        schedule = walk.chain.schedule
        # mu = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0 + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t     eq. 7
        # with x_0 of eq. 15: 1 / sqrt(alpha_t) (x_t - beta_t / sqrt(1 - abar_t) eps)                             eq. 11
        c1, c2 = schedule.posterior_mean_coef_x0[i].item(), schedule.posterior_mean_coef_xt[i].item()
        mean = c1 * now.x0 + c2 * now.xt
        if i == 0 or self.noise_scale == 0:
            return mean  # z = 0 at the last step
        log_variance = variances.named(self.variance).of_step(now, schedule, i)
        sigma = (log_variance / 2).exp() if isinstance(log_variance, Tensor) else math.exp(log_variance / 2)
        # x_{t-1} = mu + sigma_t z                                                               algorithm 2, line 4
        return mean + self.noise_scale * sigma * walk.noise(i)


@dataclass(frozen=True)
class DDIM(Sampler):
    """The predicted picture, noised again to the step below. Source: Song et al. 2021, arXiv 2010.02502, eq. 12.

    eta: how much of that noise is new, from 0 (none: the picture is a function of x_T) to 1 (ancestral, fixed-small).
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta {self.eta:g}", allowed="0 (deterministic) to 1 (ancestral)")

    def step(self, walk: Walk, i: int, now: Prediction, before: Prediction | None) -> Images:
        A, P = shares(walk.chain, i)
        # sigma_t = eta sqrt((1 - abar_{t-1}) / (1 - abar_t)) sqrt(1 - abar_t / abar_{t-1})                      eq. 16
        sigma = self.eta * math.sqrt((1 - P) / (1 - A) * (1 - A / P))
        # x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1} - sigma_t^2) eps + sigma_t z                      eq. 12
        x = math.sqrt(P) * now.x0 + math.sqrt(max(1 - P - sigma**2, 0.0)) * now.eps
        return x + sigma * walk.noise(i) if sigma > 0 else x


@dataclass(frozen=True)
class Heun(Sampler):
    """The probability-flow ODE by Heun's second-order method. Source: Karras et al. 2022, arXiv 2206.00364, alg. 1.

    In their variables, x^ = x_t / sqrt(abar_t) and s = sqrt((1 - abar_t) / abar_t), it reads dx^ / ds = eps, and DDIM
    is its Euler step. Two looks a step, but one from s = infinity (zero terminal SNR) and one to s = 0 (the picture).
    """

    def step(self, walk: Walk, i: int, now: Prediction, before: Prediction | None) -> Images:
        A, P = shares(walk.chain, i)
        # Euler: x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1}) eps                         lines 4 and 5
        euler = math.sqrt(P) * now.x0 + math.sqrt(1 - P) * now.eps
        if i == 0 or A == 0:
            return euler
        there = walk.look(i - 1, euler)
        ds = math.sqrt((1 - P) / P) - math.sqrt((1 - A) / A)
        # x^_{t-1} = x^_t + (s_{t-1} - s_t) (eps_t + eps_{t-1}) / 2                                lines 7 and 8
        return math.sqrt(P) * (now.xt / math.sqrt(A) + ds * (now.eps + there.eps) / 2)


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M), second order with one look a step. Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.

    lambda = log(sqrt(abar) / sqrt(1 - abar)), half the log SNR. The first step and the last one, to lambda = infinity,
    are first order (DDIM's), as is the one after a zero terminal SNR.
    """

    def step(self, walk: Walk, i: int, now: Prediction, before: Prediction | None) -> Images:
        A, P = shares(walk.chain, i)
        x0 = now.x0
        if before is not None and i > 0:
            x0 = self.extrapolated(walk.chain, i, now, before)
        # x_{t-1} = s_{t-1} / s_t x_t - a_{t-1} (e^{-h} - 1) D, where e^{-h} = a_t s_{t-1} / (s_t a_{t-1}),
        # a_t = sqrt(abar_t), s_t = sqrt(1 - abar_t)
        ratio = math.sqrt((1 - P) / (1 - A))
        return ratio * now.xt + (math.sqrt(P) - math.sqrt(A) * ratio) * x0

    def extrapolated(self, chain: Chain, i: int, now: Prediction, before: Prediction) -> Images:
        """D, the x_0 that lies half a step ahead on the line through this look and the one before."""
        high, here, low = (chain.schedule.log_snr[k].item() / 2 for k in (i + 1, i, i - 1))
        # r = h_{i-1} / h_i, and 1 / r = 0 if the step before came from lambda = -infinity
        per_r = (low - here) / (here - high)
        # D = (1 + 1 / (2 r)) x_0(t) - 1 / (2 r) x_0(t + 1)
        return (1 + per_r / 2) * now.x0 - per_r / 2 * before.x0


@dataclass(frozen=True)
class Naive(Sampler):
    """Move a fraction of the way towards the predicted picture, again and again; for networks trained with mix.py.

    Source: Hugging Face's diffusion-models-class, unit 1: x <- x + (x_0 - x) / (steps left). For a linear mix of
    picture and noise that is DDIM: the share of the noise falls evenly to nothing. Only x_0 is used.
    """

    corruption = "mix"

    def step(self, walk: Walk, i: int, now: Prediction, before: Prediction | None) -> Images:
        here, below = walk.chain.timesteps[i] + 1, (walk.chain.timesteps[i - 1] + 1 if i > 0 else 0)
        # a_t = t / T of the noise is there; x_s = x_t + (1 - a_s / a_t) (x_0 - x_t)
        return now.xt + (1 - below / here) * (now.x0 - now.xt)


NAMED: dict[str, Sampler] = {
    "fixed-large": Ancestral("fixed-large"),
    "fixed-small": Ancestral("fixed-small"),
    "learned-range": Ancestral("learned-range"),
    "ddim": DDIM(),
    "heun": Heun(),
    "dpm++": DPMSolver(),
    "naive": Naive(),
}


def options(name: str) -> list[str]:
    """The options that the sampler `name` takes in `make`."""
    return [each.name for each in fields(NAMED[name]) if each.name != "variance"]


def make(name: str, **chosen: Any) -> Sampler:
    """The sampler `name` of NAMED with other options, e.g. make("ddim", eta=0.5, count=50, spacing="trailing").

    InputError with a suggestion for an unknown name or option, and for an option that cannot be.
    """
    choose(name, NAMED, what="sampler")
    refuse_unknown(name, chosen)
    return replace(NAMED[name], **chosen)


def refuse_unknown(name: str, chosen: Mapping[str, Any]) -> None:
    """Raise InputError for an option that the sampler does not have."""
    allowed = options(name)
    for option in chosen:
        if option not in allowed:
            what = f"unknown option {option!r} of sampler {name!r}{suggest(option, allowed)}"
            raise InputError(what, allowed=", ".join(allowed))
