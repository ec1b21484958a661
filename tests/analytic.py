"""Exact denoisers for data of known distribution, and what samplers generate with them, in closed form.

The figures of docs/ddpm.md and most tests are built on this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data.shapes import Images, Table, Timesteps
from train.ddpm import diffusion
from train.ddpm.diffusion import gather
from train.ddpm.prediction import Denoiser, Prediction, Variance
from train.ddpm.samplers import Chain
from train.ddpm.schedule import Schedule


def gaussian_denoiser(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> Denoiser:
    """E[x_0 | x_t] and E[eps | x_t] for images whose values are independent, N(mean, std^2); std 0: a point."""

    def predict(xt: Images, t: Timesteps) -> Prediction:
        abar = gather(schedule.alphas_cumprod, t, xt)
        # x_t ~ N(sqrt(abar) mean, abar std^2 + 1 - abar)
        off, spread = xt - abar.sqrt() * mean, abar * std**2 + (1.0 - abar)
        # E[x_0 | x_t] = mean + sqrt(abar) std^2 / spread (x_t - sqrt(abar) mean)
        # E[eps | x_t] = sqrt(1 - abar) / spread (x_t - sqrt(abar) mean)
        return Prediction(
            schedule, xt, t, x0=mean + abar.sqrt() * std**2 / spread * off, eps=(1.0 - abar).sqrt() / spread * off
        )

    return predict


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data ~ sum_k weights_k N(means_k, stds_k^2 I). weights, stds: (K,). means: (K, C, H, W). float64."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def log_parts(self, x: Images, signal: Tensor, noise_variance: Tensor) -> Tensor:
        """(B, K) log of weight times density of signal x_0 + noise at x, for (B,) signal and noise_variance."""
        variance = signal[:, None].square() * self.stds.square() + noise_variance[:, None]
        off = x[:, None] - signal.reshape(-1, *[1] * x.ndim) * self.means
        square, dims = off.flatten(2).square().sum(2), x[0].numel()
        return self.weights.log() - (square / variance + dims * (2 * math.pi * variance).log()) / 2

    def log_density(self, x0: Images) -> Tensor:
        """(B,) log p(x_0), natural, of whole images."""
        one = torch.ones(len(x0), dtype=x0.dtype)
        return torch.logsumexp(self.log_parts(x0, one, 0 * one), dim=1)

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """E[x_0 | x_t]: each part's own, weighted by how likely x_t came from it."""

        def predict(xt: Images, t: Timesteps) -> Prediction:
            abar = gather(schedule.alphas_cumprod, t, t.to(xt.dtype))
            parts = self.log_parts(xt, abar.sqrt(), 1.0 - abar).softmax(dim=1)
            gain = abar.sqrt()[:, None] * self.stds**2 / (abar[:, None] * self.stds**2 + 1.0 - abar[:, None])
            off = xt[:, None] - abar.sqrt().reshape(-1, *[1] * xt.ndim) * self.means
            gain, parts = (each.reshape(*each.shape, *[1] * (xt.ndim - 1)) for each in (gain, parts))
            x0 = (parts * (self.means + gain * off)).sum(1)
            return Prediction(schedule, xt, t, x0, diffusion.eps_from_x0(schedule, xt, x0, t))

        return predict


# ---- samplers on N(0, std^2) with the exact denoiser: linear maps, whose variance follows


def x0_gain(schedule: Schedule, std: float) -> Table:
    """(T,) g with E[x_0 | x_t] = g x_t."""
    abar = schedule.alphas_cumprod
    return abar.sqrt() * std**2 / (abar * std**2 + 1.0 - abar)


def ancestral_std(chain: Chain, std: float, sigma: Variance) -> float:
    """Standard deviation of ancestral samples, `std` itself for infinitely many steps.

    A short chain with the large variance adds far too much noise: why few-step fixed-large samples fall apart.
    """
    schedule, variance = chain.schedule, 1.0
    # x_{t-1} = (c_1 g + c_2) x_t + sigma z, so v <- (c_1 g + c_2)^2 v + sigma^2, and no noise at the last step
    gain = schedule.posterior_mean_coef_x0 * x0_gain(schedule, std) + schedule.posterior_mean_coef_xt
    added = sigma.low(schedule).exp()
    for i in reversed(range(len(chain))):
        variance = gain[i].item() ** 2 * variance + (added[i].item() if i else 0.0)
    return math.sqrt(variance)


def ddim_gain(chain: Chain, std: float) -> float:
    """The factor by which deterministic DDIM multiplies x_T."""
    schedule, total = chain.schedule, 1.0
    g = x0_gain(schedule, std)
    # x_{t-1} = sqrt(abar_{t-1}) g x_t + sqrt(1 - abar_{t-1}) (1 - sqrt(abar_t) g) / sqrt(1 - abar_t) x_t
    abar, before = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    gains = before.sqrt() * g + ((1.0 - before) / (1.0 - abar)).sqrt() * (1.0 - abar.sqrt() * g)
    for gain in gains.flip(0).tolist():
        total *= gain
    return total


def flow_gain(schedule: Schedule, std: float) -> float:
    """The factor by which the probability-flow ODE multiplies x_T: the limit of DDIM, Heun and DPM-Solver++."""
    last = schedule.alphas_cumprod[-1].item()
    # std / sqrt(abar_T std^2 + 1 - abar_T)
    return std / math.sqrt(last * std**2 + 1.0 - last)


def even_in_log_snr(count: int, first: float, last: float) -> Schedule:
    """`count` steps along which log SNR falls evenly from `first` (little noise) to `last`, natural logarithms.

    In these steps a solver's order shows: twice as many halve every one of them. In even timesteps the last ones stay
    large.
    """
    # abar = SNR / (1 + SNR)
    abar = torch.linspace(first, last, count, dtype=torch.float64).sigmoid()
    return Schedule(1.0 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]]))
