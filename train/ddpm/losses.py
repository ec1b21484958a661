"""Training losses: distances between prediction and target, timestep weights, sampling of timesteps.

Distances are one number a sample, not averaged over the batch, so that timesteps can be weighted first. They are summed
in float32 (float64 for float64 inputs), because a squared half-precision error overflows above 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from data.errors import check_choice
from data.shapes import PerSample, Table, Timesteps
from train.ddpm.diffusion import gather
from train.ddpm.schedule import Schedule

Loss = Callable[[Tensor, Tensor], PerSample]


def mse(prediction: Tensor, target: Tensor) -> PerSample:
    """Mean squared error of each sample, (B, ...) and (B, ...) -> (B,). Source: arXiv 2006.11239, eq. 14 (L_simple)."""
    error = difference(prediction, target)
    # (1/n) sum_i e_i^2
    return per_sample(error.square())


def l1(prediction: Tensor, target: Tensor) -> PerSample:
    """Mean absolute error of each sample, (B, ...) and (B, ...) -> (B,)."""
    error = difference(prediction, target)
    # (1/n) sum_i |e_i|
    return per_sample(error.abs())


def huber(prediction: Tensor, target: Tensor, delta: float = 1.0) -> PerSample:
    """Squared near zero, absolute beyond delta > 0, (B, ...) and (B, ...) -> (B,). Source: Huber 1964.

    With delta = 1 it is the "smooth L1" of the annotated diffusion model; for small errors it is half of `mse`.
    """
    error = difference(prediction, target)
    # e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2)
    return per_sample(functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta))


def pseudo_huber(prediction: Tensor, target: Tensor, c: PerSample) -> PerSample:
    """Like `mse` for errors far below c > 0, 2 c times `l1` far above; smooth. (B, ...), (B, ...), (B,) -> (B,).

    Source: Khrapov et al. 2024, arXiv 2403.16728, with a c for each timestep; scaled as in kohya-ss/sd-scripts,
    so that a large c gives `mse` itself.
    """
    error = difference(prediction, target)
    c = c.to(error.dtype).reshape(-1, *[1] * (error.ndim - 1))
    # 2 c (sqrt(e^2 + c^2) - c), without subtracting two nearly equal numbers
    square = error.square()
    return per_sample(2.0 * c * square / ((square + c.square()).sqrt() + c))


def pseudo_smooth_l1(prediction: Tensor, target: Tensor, c: PerSample) -> PerSample:
    """`pseudo_huber` / c: 2 times `l1` for errors far above c, whatever c is. (B, ...), (B, ...), (B,) -> (B,)."""
    value = pseudo_huber(prediction, target, c)
    # 2 (sqrt(e^2 + c^2) - c)
    return value / c.to(value.dtype)


LOSSES: dict[str, Loss] = {"mse": mse, "l2": mse, "l1": l1, "huber": huber}  # l2: another name for mse


def get_loss(name: str) -> Loss:
    """The loss `name` of LOSSES; InputError with a suggestion for an unknown one."""
    return LOSSES[check_choice(name, LOSSES, what="loss")]


def difference(prediction: Tensor, target: Tensor) -> Tensor:
    """prediction - target in float32, or in float64 if one of them is."""
    shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}"
    assert prediction.shape == target.shape, f"broadcasting would hide a mistake: {shapes}"
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(wide) - target.to(wide)


def per_sample(error: Tensor) -> PerSample:
    """The mean over every axis but the first."""
    assert error.ndim >= 2, f"a batch of samples, not {tuple(error.shape)}"
    return error.mean(dim=tuple(range(1, error.ndim)))


# ---- criteria: a distance, perhaps with a width that follows the timestep, perhaps weighted; built before the loop

Criterion = Callable[[Tensor, Tensor, Timesteps], PerSample]  # (B, ...) prediction, target, (B,) timesteps -> (B,)


@dataclass(frozen=True)
class Plain:
    """The same distance at every timestep."""

    distance: Loss

    def __call__(self, prediction: Tensor, target: Tensor, t: Timesteps) -> PerSample:
        return self.distance(prediction, target)


@dataclass(frozen=True)
class Scheduled:
    """A distance that changes from squared to absolute at an error of widths[t]."""

    distance: Callable[[Tensor, Tensor, PerSample], PerSample]
    widths: Table

    def __call__(self, prediction: Tensor, target: Tensor, t: Timesteps) -> PerSample:
        return self.distance(prediction, target, gather(self.widths, t, like=prediction).flatten())


@dataclass(frozen=True)
class Weighted:
    """A criterion times weights[t]."""

    criterion: Criterion
    weights: Table

    def __call__(self, prediction: Tensor, target: Tensor, t: Timesteps) -> PerSample:
        errors = self.criterion(prediction, target, t)
        return gather(self.weights, t, like=errors) * errors


# ---- widths of Huber losses, c(t): (T,) float64. Source: Khrapov et al. 2024, arXiv 2403.16728; the curves as in
# kohya-ss/sd-scripts (pull request 1228)


def constant_delta(schedule: Schedule, c: float) -> Table:
    """c(t) = c."""
    return torch.full_like(schedule.betas, c)


def exponential_delta(schedule: Schedule, c: float) -> Table:
    """c(t) = c^(t / T): 1 without noise, about c at the noisy end."""
    t = torch.arange(schedule.steps, dtype=schedule.betas.dtype, device=schedule.betas.device)
    return (t / schedule.steps * math.log(c)).exp()


def snr_delta(schedule: Schedule, c: float) -> Table:
    """c(t) = (1 - c) / (1 + sigma_t)^2 + c, sigma_t^2 = 1 / SNR(t): from 1 without noise to exactly c at zero SNR."""
    sigma = ((1.0 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt()
    return (1.0 - c) / (1.0 + sigma) ** 2 + c


HUBER_SCHEDULES: dict[str, Callable[[Schedule, float], Table]] = {
    "constant": constant_delta,
    "exponential": exponential_delta,
    "snr": snr_delta,
}


def huber_deltas(name: str, schedule: Schedule, c: float) -> Table:
    """c(t) by the name of its curve; InputError with a suggestion for an unknown one."""
    return HUBER_SCHEDULES[check_choice(name, HUBER_SCHEDULES, what="Huber schedule")](schedule, c)


# ---- timestep weights, (T,) float64. A squared error of x_0 is SNR(t) times as large in eps, SNR(t) + 1 times in v. So
# a weight w(t) on the error of x_0 is w / SNR on that of eps and w / (SNR + 1) on that of v. Written in a = abar_t and
# b = 1 - abar_t instead of SNR = a / b, each is finite at every t, a = 0 (zero terminal SNR) included.
# Source: Salimans & Ho 2022, arXiv 2202.00512, section 4; Hang et al. 2023, arXiv 2303.09556

# a schedule and gamma > 0 -> a table for each of diffusers' prediction types
Weighting = Callable[[Schedule, float], Mapping[str, Table]]


def min_snr(schedule: Schedule, gamma: float) -> Mapping[str, Table]:
    """w = min(SNR, gamma): the weight of timesteps with little noise is capped at gamma.

    At zero SNR the forms for x_0 and v are 0: that step is not learned. Source: arXiv 2303.09556, with gamma 5.
    """
    a, b = schedule.alphas_cumprod, 1.0 - schedule.alphas_cumprod
    return {
        "sample": (a / b).clamp(max=gamma),  # min(SNR, gamma)
        "epsilon": (gamma * b / a).clamp(max=1.0),  # min(SNR, gamma) / SNR
        "v_prediction": a.minimum(gamma * b),  # min(SNR, gamma) / (SNR + 1)
    }


def soft_min_snr(schedule: Schedule, gamma: float) -> Mapping[str, Table]:
    """w = SNR gamma / (SNR + gamma), a smooth min_snr: half of it at SNR = gamma.

    Source: Crowson et al. 2024, arXiv 2401.11605: 1 / (sigma^2 + 1 / gamma) with sigma^2 = 1 / SNR, gamma 4.
    """
    a, b = schedule.alphas_cumprod, 1.0 - schedule.alphas_cumprod
    return {
        "sample": a * gamma / (a + gamma * b),  # SNR gamma / (SNR + gamma)
        "epsilon": gamma * b / (a + gamma * b),  # gamma / (SNR + gamma)
        "v_prediction": gamma * a * b / (a + gamma * b),  # SNR gamma / (SNR + gamma) / (SNR + 1)
    }


WEIGHTINGS: dict[str, Weighting] = {"min-snr": min_snr, "soft-min-snr": soft_min_snr}
DEFAULT_GAMMA = {"min-snr": 5.0, "soft-min-snr": 4.0}  # as in their papers


def timestep_weights(name: str, schedule: Schedule, gamma: float, prediction_type: str) -> Table:
    """(T,) the weight at each timestep of squared errors in the space that the network predicts in."""
    forms = WEIGHTINGS[check_choice(name, WEIGHTINGS, what="weighting")](schedule, gamma)
    return forms[check_choice(prediction_type, forms, what="prediction type")]


# ---- timesteps of a batch. By importance, those of large bound are drawn more often and weighted less: same mean, less
# variance. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.3, eq. 18

HISTORY_LENGTH = 10  # losses of each timestep
UNIFORM_SHARE = 1e-3  # share of uniform draws, so that no timestep is forgotten


@dataclass(eq=False)
class TimestepSampler:
    """Uniform timesteps, or with `importance` in proportion to the last losses.

    The losses are on the CPU, and every step waits for them: the next step's timesteps depend on them. They are the
    same in every process, because each adds the losses of all, in the order of their ranks: `gather` concatenates the
    (B,) tensors of all processes. With separate histories, processes would weight one timestep differently, and the
    mean of their gradients would belong to no one distribution.
    """

    steps: int
    importance: bool = False
    gather: Callable[[Tensor], Tensor] = torch.clone

    def __post_init__(self) -> None:
        self.losses = torch.zeros(self.steps, HISTORY_LENGTH, dtype=torch.float64)  # newest last
        self.counts = torch.zeros(self.steps, dtype=torch.int64)  # how many of them are filled

    @property
    def complete(self) -> bool:
        """Whether the losses of every timestep are filled. Until then draws are uniform."""
        return bool((self.counts == HISTORY_LENGTH).all())

    def probabilities(self) -> Tensor:
        """(T,) float64, p_t."""
        if not self.complete:
            return torch.full((self.steps,), 1.0 / self.steps, dtype=torch.float64)
        # p_t ~ sqrt(E[L_t^2])                                                                                eq. 18
        root = self.losses.square().mean(dim=1).sqrt()
        return (1.0 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / self.steps

    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        """(B,) numbers in [0, 1) -> (B,) timesteps, and the (B,) float32 weights of their losses, on the device."""
        if not self.importance:
            return (uniforms * self.steps).long().clamp(max=self.steps - 1), torch.ones_like(uniforms)
        p = self.probabilities()
        t = torch.searchsorted(p.cumsum(0), uniforms.cpu().double(), right=True).clamp(max=self.steps - 1)
        # the weight is 1 / (T p_t)
        return t.to(uniforms.device), (1.0 / (self.steps * p[t])).float().to(uniforms.device)

    def update(self, t: Timesteps, losses: PerSample) -> None:
        """Record the (B,) unweighted losses of this process at its (B,) timesteps, in the order of the batch."""
        if not self.importance:
            return
        steps, values = self.gather(t).tolist(), self.gather(losses.float()).double().tolist()
        for step, loss in zip(steps, values, strict=True):
            self.losses[step] = torch.cat([self.losses[step, 1:], self.losses.new_tensor([loss])])
            self.counts[step] = min(self.counts[step] + 1, HISTORY_LENGTH)

    def state(self) -> dict[str, Any]:
        """JSON for the checkpoint."""
        return {"losses": self.losses.tolist(), "counts": self.counts.tolist()} if self.importance else {}

    def load_state(self, saved: Mapping[str, Any]) -> None:
        if self.importance:
            self.losses = torch.tensor(saved["losses"], dtype=torch.float64)
            self.counts = torch.tensor(saved["counts"], dtype=torch.int64)
