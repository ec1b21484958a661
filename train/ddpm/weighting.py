"""How much each timestep counts: (T,) float64 tables, made from a schedule's final alphas.

A squared error of x_0, said in eps, is SNR(t) times as large, and SNR(t) + 1 times said in v. So a weight w(t) on the
error of x_0 is w / SNR on that of eps and w / (SNR + 1) on that of v: one objective in three forms. Written in
a = abar_t and b = 1 - abar_t instead of SNR = a / b, each is finite at every t, a = 0 (zero terminal SNR) included.
Source of the three forms: Salimans & Ho 2022, arXiv 2202.00512, section 4; Hang et al. 2023, arXiv 2303.09556.
"""

from collections.abc import Callable, Mapping

from data.errors import choose
from data.shapes import Table
from train.ddpm.schedule import Schedule

# a schedule and gamma > 0 -> a table for each of diffusers' prediction types
Weighting = Callable[[Schedule, float], Mapping[str, Table]]


def min_snr(schedule: Schedule, gamma: float) -> Mapping[str, Table]:
    """w = min(SNR, gamma): timesteps with little noise count no more than gamma.

    At zero SNR the forms for x_0 and v are 0: that step is not learnt. Source: arXiv 2303.09556, with gamma 5.
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


def table(name: str, schedule: Schedule, gamma: float, prediction_type: str) -> Table:
    """(T,) the weight at each timestep of squared errors in the space that the network predicts in."""
    forms = WEIGHTINGS[choose(name, WEIGHTINGS, what="weighting")](schedule, gamma)
    return forms[choose(prediction_type, forms, what="prediction type")]
