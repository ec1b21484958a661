"""The variance of a reverse step, sigma_t^2: fixed at one of its two extremes, or learned between them.

Of data about which nothing is known but its variance 1, beta_t is right; of a single point, beta~_t (Ho et al. 2020,
arXiv 2006.11239, section 3.2). beta~_1 = 0 has no likelihood: the first step takes beta~_2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.errors import InputError, choose
from data.shapes import Table
from train.ddpm.prediction import Prediction
from train.ddpm.process import gather, wide
from train.ddpm.schedule import Schedule

LogTable = Callable[[Schedule], Table]  # a schedule of T steps -> (T,) natural logarithms


@dataclass(frozen=True)
class Variance:
    """log sigma_t^2 at `low`, or where the network says between `low` and `high`."""

    low: LogTable
    high: LogTable | None = None

    def of_step(self, seen: Prediction, schedule: Schedule, i: int) -> float | Tensor:
        """log sigma^2 of step i for a whole batch, a number if it is fixed. The schedule is on the CPU."""
        high = self.high(schedule)[i].item() if self.high else None
        return between(seen, self.low(schedule)[i].item(), high)

    def of_each(self, seen: Prediction, schedule: Schedule, i: Tensor) -> Tensor:
        """log sigma^2 for (B,) steps of the schedule on their device: (B, 1, ...), if learned (B, C, H, W). float64."""
        like = wide(seen.xt)  # a divergence is a small difference of these logarithms
        high = gather(self.high(schedule), i, like) if self.high else None
        return between(seen, gather(self.low(schedule), i, like), high)


def between(seen: Prediction, low: Any, high: Any) -> Any:
    """log Sigma = v log beta_t + (1 - v) log beta~_t. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15."""
    if high is None:
        return low
    if seen.fraction is None:
        what = "learned-range variance with a network that learned none"
        raise InputError(what, allowed=", ".join(FIXED), fix="Or train one whose output has twice the channels.")
    return seen.fraction * high + (1.0 - seen.fraction) * low


def small(schedule: Schedule) -> Table:
    """log beta~_t, with beta~_2 at the first step. Source: arXiv 2006.11239, eq. 7 and the released code."""
    return schedule.posterior_log_variance


def large(schedule: Schedule) -> Table:
    """log beta_t, with beta~_2 at the first step "for a better decoder log likelihood", as the released code has it."""
    return torch.cat([schedule.posterior_log_variance[:1], schedule.betas[1:].log()])


def beta(schedule: Schedule) -> Table:
    """log beta_t at every step, the first too: what the paper says. Exact for data ~ N(0, 1)."""
    return schedule.betas.log()


FIXED = {"fixed-large": Variance(large), "fixed-small": Variance(small), "beta": Variance(beta)}
NAMED = {**FIXED, "learned-range": Variance(small, beta)}


def named(name: str) -> Variance:
    """The variance `name` of NAMED; InputError with a suggestion for an unknown one."""
    return NAMED[choose(name, NAMED, what="variance")]
