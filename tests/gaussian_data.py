"""Gaussian data without chance: expectations by quadrature, and samplers by their responses to single impulses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests import analytic
from train.ddpm import samplers
from train.ddpm.prediction import Denoiser, Prediction
from train.ddpm.schedule import SCHEDULES, Schedule

F64 = torch.float64
EVERY_SCHEDULE = sorted(set(SCHEDULES) - {"quadratic"})


def close(found: Tensor, expected: Tensor, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def column(*values: float) -> Tensor:
    """(B, 1, 1, 1) float64: images of one pixel."""
    return torch.tensor(values, dtype=F64).reshape(-1, 1, 1, 1)


# Two-point Gauss-Hermite quadrature in each of x_0 and eps: exact for every polynomial of degree 3 in either, as all
# terms of the bound are for a linear denoiser. The mean over these four rows is the expectation.
DATA, NOISE = column(1, 1, -1, -1), column(1, -1, 1, -1)


def data(mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Four images over which averages are expectations over N(mean, std^2)."""
    return mean + std * DATA


def quadrature_noise(*position: int | str) -> Tensor:
    return NOISE


def entropy(std: float = 1.0) -> float:
    """Of N(mean, std^2), in bits."""
    return math.log2(2 * math.pi * math.e * std**2) / 2


def divergence(schedule: Schedule, mean: float, std: float) -> float:
    """KL(q(x_T) || N(0, 1)) in bits for data ~ N(mean, std^2)."""
    abar = schedule.alphas_cumprod[-1].item()
    m, v = math.sqrt(abar) * mean, abar * std**2 + 1 - abar
    return (v + m**2 - 1 - math.log(v)) / 2 / math.log(2)


@dataclass
class Impulses:
    """Noise of a batch in which each row but the first is 1 at one place and 0 elsewhere.

    Row 0 has none anywhere; row 1 is 1 in x_T; every further place takes the next row, as it is first asked for.
    """

    rows: int
    taken: dict[tuple[int | str, ...], int] = field(default_factory=dict)

    def start(self) -> Tensor:
        return self.unit(1)

    def __call__(self, *position: int | str) -> Tensor:
        return self.unit(self.taken.setdefault(position, 2 + len(self.taken)))

    def unit(self, row: int) -> Tensor:
        impulse = torch.zeros(self.rows, 1, 1, 1, dtype=F64)
        impulse[row] = 1.0
        return impulse


def moments(sampler: samplers.Sampler, predict: Denoiser, schedule: Schedule) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler draws, without drawing.

    With an affine denoiser the result is affine in x_T and all step noises: row 0 is its mean, the differences to it
    are the gains, and the variance is the sum of their squares.
    """
    noise = Impulses(rows=len(sampler.chain(schedule)) + 2)
    found = samplers.generate(sampler, predict, schedule, noise.start(), noise).flatten()
    return found[0].item(), (found[1:] - found[0]).norm().item()


def gaussian_mix(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> Denoiser:
    """The exact denoiser for the linear mix of mix.py, where a = (t + 1) / T of the noise is there."""

    def predict(xt: Tensor, t: Tensor) -> Prediction:
        a = ((t.to(xt.dtype) + 1.0) / schedule.steps).reshape(-1, *[1] * (xt.ndim - 1))
        # x ~ N((1 - a) mean, (1 - a)^2 std^2 + a^2)
        off, spread = xt - (1.0 - a) * mean, (1.0 - a) ** 2 * std**2 + a**2
        return Prediction(schedule, xt, t, x0=mean + (1.0 - a) * std**2 / spread * off, eps=a / spread * off)

    return predict


def perfect(sampler: samplers.Sampler, schedule: Schedule, mean: float, std: float) -> Denoiser:
    """The exact denoiser for the process whose noise the sampler removes; with the exact variance, if std <= 1."""
    inner = {"gaussian": analytic.gaussian_denoiser, "mix": gaussian_mix}[sampler.corruption](schedule, mean, std)
    chain = sampler.chain(schedule)
    low, high = chain.schedule.posterior_log_variance, chain.schedule.betas.log()
    right = best_variance(chain.schedule, std).log()
    share = ((right - low) / (high - low)).nan_to_num()  # at a first step with beta~_2 > beta_1 too
    steps = {t: share[i].item() for i, t in enumerate(chain.timesteps)}

    def predict(xt: Tensor, t: Tensor) -> Prediction:
        seen = inner(xt, t)
        return Prediction(schedule, xt, t, seen.x0, seen.eps, fraction=torch.full_like(xt, steps[int(t[0])]))

    return predict


def best_variance(schedule: Schedule, std: float) -> Tensor:
    """Var[x_{t-1} | x_t] for data ~ N(., std^2): beta~_t + c_1^2 Var[x_0 | x_t]."""
    abar, c1 = schedule.alphas_cumprod, schedule.posterior_mean_coef_x0
    return schedule.posterior_variance + c1**2 * std**2 * (1 - abar) / (abar * std**2 + 1 - abar)
