"""What a network predicts about x_t, in every form: x_0, the noise eps, v, and the mean and variance of x_{t-1}.

A *network* takes (B, C, H, W) images at (B,) timesteps and returns a tensor. A Parametrization knows what that tensor
means, and turns a network into a *denoiser*: `predict(xt, t) -> Prediction`. Samplers, bounds and scores take the form
that their formula needs from the Prediction.

    predict = prediction.eps(network, schedule)
    predict(xt, t).x0

Equation numbers without a paper are those of Ho et al. 2020, arXiv 2006.11239.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from data.errors import InputError, check_choice
from data.shapes import Images, Table, Timesteps
from train.ddpm import diffusion
from train.ddpm.diffusion import gather, wide
from train.ddpm.schedule import Schedule

Network = Callable[[Images, Timesteps], Tensor]  # (B, C, H, W), (B,) -> (B, C, H, W), or (B, 2C, H, W)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for x_t. All images are (B, C, H, W); t is (B,) and indexes the schedule's tables.

    x0 and eps belong together: xt = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, to rounding.
    fraction: where a learned variance lies, from 0 (log beta~_t) to 1 (log beta_t), or None. It is stored instead of
    the variance because a respaced chain has other ends (arXiv 2102.09672, section 4).
    """

    schedule: Schedule
    xt: Images
    t: Timesteps
    x0: Images
    eps: Images
    fraction: Images | None = None

    @cached_property
    def v(self) -> Images:
        """The direction in which x_t turns from image to noise. Source: arXiv 2202.00512, section 4."""
        return diffusion.velocity(self.schedule, self.x0, self.eps, self.t)

    @cached_property
    def mean(self) -> Images:
        """mu_theta(x_t, t), the mean of x_{t-1}. Source: eq. 7 with the predicted x_0, equal to eq. 11."""
        return diffusion.posterior(self.schedule, self.x0, self.xt, self.t)[0]

    def clipped(self, low: float = -1.0, high: float = 1.0) -> Prediction:
        """x_0 clipped to [low, high], and eps recomputed from it.

        Images are in [-1, 1], and at high noise x_0 is often far outside: x_0 = (x_t - ...) / sqrt(abar_t) divides by
        0.006 at the linear schedule's end. The paper does not mention it; its code clips in every sampler.
        """
        x0 = self.x0.clamp(low, high)
        return replace(self, x0=x0, eps=diffusion.eps_from_x0(self.schedule, self.xt, x0, self.t))

    def detached(self) -> Prediction:
        """The same mean without its gradient; a learned variance keeps its own. Source: arXiv 2102.09672, 3.1."""
        return replace(self, x0=self.x0.detach(), eps=self.eps.detach())


Denoiser = Callable[[Images, Timesteps], Prediction]  # (B, C, H, W) x_t, (B,) t
Target = Callable[[Schedule, Images, Images, Timesteps], Images]  # schedule, x_0, eps, t
Read = Callable[[Schedule, Images, Tensor, Timesteps], Images]  # schedule, x_t, output, t


@dataclass(frozen=True)
class Parametrization:
    """What a network's output means.

    target(schedule, x0, eps, t): the correct output for x_t = q(x_0, eps).
    read_x0, read_eps (schedule, xt, output, t): x_0 and eps from an output.
    needs_signal: InputError on a schedule with zero terminal SNR, where x_0 = (x_T - eps) / 0.
    learns_variance: the network has 2C channels, and the second half is Prediction.fraction.
    """

    name: str
    target: Target
    read_x0: Read
    read_eps: Read
    needs_signal: bool = False
    learns_variance: bool = False

    def __call__(self, network: Network, schedule: Schedule) -> Denoiser:
        """The denoiser of a network; the schedule is on the network's device."""
        self.check(schedule)
        return lambda xt, t: self.predict(schedule, xt, network(xt, t), t)

    def predict(self, schedule: Schedule, xt: Images, output: Tensor, t: Timesteps) -> Prediction:
        """The prediction that `output`, the network's answer to (xt, t), stands for."""
        fraction = None
        if self.learns_variance:
            assert output.shape[1] == 2 * xt.shape[1], f"2C channels, not {tuple(output.shape)} for {tuple(xt.shape)}"
            output, between = output.chunk(2, dim=1)
            # the network's output is in [-1, 1]; v = (output + 1) / 2
            fraction = (between + 1.0) / 2.0
        x0, eps = (read(schedule, xt, output, t) for read in (self.read_x0, self.read_eps))
        return Prediction(schedule, xt, t, x0, eps, fraction)

    def check(self, schedule: Schedule) -> None:
        """Raise InputError where this cannot be learned."""
        if self.needs_signal:
            diffusion.check_signal(schedule)


def mean_target(schedule: Schedule, x0: Images, eps: Images, t: Timesteps) -> Images:
    """mu~_t(x_t, x_0). Source: eq. 7; the regression of eq. 8."""
    return diffusion.posterior(schedule, x0, diffusion.add_noise(schedule, x0, eps, t), t)[0]


def output_itself(schedule: Schedule, xt: Images, output: Tensor, t: Timesteps) -> Images:
    """Where the network predicts what is wanted."""
    return output


# eps: eq. 14. x0: section 3.2, which found it worse than eps early on. v: arXiv 2202.00512, section 4
eps = Parametrization("eps", lambda schedule, x0, eps, t: eps, diffusion.x0_from_eps, output_itself, needs_signal=True)
x0 = Parametrization("x0", lambda schedule, x0, eps, t: x0, output_itself, diffusion.eps_from_x0)
v = Parametrization("v", diffusion.velocity, diffusion.x0_from_v, diffusion.eps_from_v)
mean = Parametrization("mean", mean_target, diffusion.x0_from_mean, diffusion.eps_from_mean)

PARAMETRIZATIONS: dict[str, Parametrization] = {each.name: each for each in (eps, x0, v, mean)}


def get_parametrization(name: str, *, learned_range: bool = False) -> Parametrization:
    """The parametrization `name` of PARAMETRIZATIONS; InputError with a suggestion for an unknown one.

    learned_range: for a network with 2C channels. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15.
    """
    found = PARAMETRIZATIONS[check_choice(name, PARAMETRIZATIONS, what="prediction")]
    return replace(found, learns_variance=learned_range)


def clipped(predict: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """A denoiser whose x_0 is clipped to [low, high]; its eps, v and mean follow. See Prediction.clipped."""
    if not low < high:
        raise InputError(f"x_0 clipped to [{low:g}, {high:g}]", allowed="low < high")
    return lambda xt, t: predict(xt, t).clipped(low, high)


# ---- the variance of a reverse step, sigma_t^2: fixed at one of its two extremes, or learned between them

LogTable = Callable[[Schedule], Table]  # a schedule of T steps -> (T,) natural logarithms


@dataclass(frozen=True)
class Variance:
    """log sigma_t^2 at `low`, or at the network's fraction between `low` and `high`.

    beta_t is optimal for data of variance 1, beta~_t for a single point (section 3.2).
    """

    low: LogTable
    high: LogTable | None = None

    def of_step(self, prediction: Prediction, schedule: Schedule, i: int) -> float | Tensor:
        """log sigma^2 of step i for a whole batch, a number if it is fixed. The schedule is on the CPU."""
        high = self.high(schedule)[i].item() if self.high else None
        return interpolate_log_variance(prediction, self.low(schedule)[i].item(), high)

    def of_each(self, prediction: Prediction, schedule: Schedule, i: Tensor) -> Tensor:
        """log sigma^2 for (B,) steps of the schedule on their device: (B, 1, ...), if learned (B, C, H, W). float64."""
        like = wide(prediction.xt)  # a divergence is a small difference of these logarithms
        high = gather(self.high(schedule), i, like) if self.high else None
        return interpolate_log_variance(prediction, gather(self.low(schedule), i, like), high)


def interpolate_log_variance(prediction: Prediction, low: Any, high: Any) -> Any:
    """log Sigma = v log beta_t + (1 - v) log beta~_t. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15."""
    if high is None:
        return low
    if prediction.fraction is None:
        what = "learned-range variance with a network that learned none"
        raise InputError(what, allowed=", ".join(FIXED_VARIANCES), fix="Or train one with twice the output channels.")
    return prediction.fraction * high + (1.0 - prediction.fraction) * low


def log_variance_small(schedule: Schedule) -> Table:
    """log beta~_t, with beta~_2 at the first step, as beta~_1 = 0. Source: eq. 7 and the released code."""
    return schedule.posterior_log_variance


def log_variance_large(schedule: Schedule) -> Table:
    """log beta_t, with beta~_2 at the first step "for a better decoder log likelihood", as in the released code."""
    return torch.cat([schedule.posterior_log_variance[:1], schedule.betas[1:].log()])


def log_variance_beta(schedule: Schedule) -> Table:
    """log beta_t at every step, the first too, as in the paper. Exact for data ~ N(0, 1)."""
    return schedule.betas.log()


FIXED_VARIANCES = {
    "fixed-large": Variance(log_variance_large),
    "fixed-small": Variance(log_variance_small),
    "beta": Variance(log_variance_beta),
}
VARIANCES = {**FIXED_VARIANCES, "learned-range": Variance(log_variance_small, log_variance_beta)}


def get_variance(name: str) -> Variance:
    """The variance `name` of VARIANCES; InputError with a suggestion for an unknown one."""
    return VARIANCES[check_choice(name, VARIANCES, what="variance")]
