"""The variational bound on -log p(x_0), term by term, in bits per dimension.

    L = L_T + sum_{t=2}^{T} L_{t-1} + L_0                                                                        eq. 5

Equation numbers without a paper are those of Ho et al. 2020, arXiv 2006.11239. A step i counts from 0, as everywhere
here: step 0 has the paper's L_0, step i its L_i, and L_T belongs to no step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.special import log_ndtr

from data.errors import InputError
from data.shapes import Images, PerSample, Table, Timesteps
from train.ddpm import diffusion, losses, samplers
from train.ddpm.diffusion import gather, wide
from train.ddpm.losses import per_sample
from train.ddpm.prediction import FIXED_VARIANCES, VARIANCES, Denoiser, Prediction, Variance
from train.ddpm.samplers import Noise
from train.ddpm.schedule import Schedule

LOG_2 = math.log(2.0)
GREY_LEVELS = 127.5  # of 255 in one unit of [-1, 1]
HALF_BIN = 1.0 / 255.0  # in [-1, 1], where 256 levels lie 2 / 255 apart
HYBRID_WEIGHT = 1e-3  # lambda of arXiv 2102.09672, eq. 16

# ---- the last step, p_theta(x_0 | x_1): a probability of each of 256 grey levels, or a density. Source: section 3.3

Decoder = Callable[[Images, Images, Tensor], Tensor]  # x_0, mean, log variance -> (B, C, H, W) natural log-likelihoods


def log_bin(x0: Images, mean: Images, log_variance: Tensor) -> Tensor:
    """log of the mass of N(mean, exp(log_variance)) within 1/255 of x0, one of 256 levels of [-1, 1]. Source: eq. 13.

    The bins at -1 and 1 are open outwards, so that all 256 sum to 1. Computed in float64 from log_ndtr: finite however
    far off the mean and however small the variance.
    """
    x0, mean, scale = wide(x0), wide(mean), (-wide(log_variance) / 2.0).exp()
    centre = x0 - mean
    # Phi(b) - Phi(a) = Phi(-a) - Phi(-b): on the side where both are small, nothing cancels
    flip = torch.where(centre > 0, -1.0, 1.0)
    lower, upper = (flip * centre - HALF_BIN) * scale, (flip * centre + HALF_BIN) * scale
    # log(Phi(b) - Phi(a)) = log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b)))
    below, above = log_ndtr(lower), log_ndtr(upper)
    inside = above + torch.log(-torch.expm1(below - above))
    # delta_+(1) = infinity, delta_-(-1) = -infinity
    at_one, at_minus_one = log_ndtr((HALF_BIN - centre) * scale), log_ndtr((centre + HALF_BIN) * scale)
    return torch.where(x0 > 1.0 - HALF_BIN, at_one, torch.where(x0 < HALF_BIN - 1.0, at_minus_one, inside))


def log_density(x0: Images, mean: Images, log_variance: Tensor) -> Tensor:
    """log N(x0; mean, exp(log_variance)), for continuous data."""
    # -(log 2 pi + log s^2 + (x - m)^2 / s^2) / 2
    return -(math.log(2.0 * math.pi) + log_variance + (x0 - mean).square() * (-log_variance).exp()) / 2.0


def check_levels(x0: Images) -> None:
    """Raise InputError unless every value is one of 256 evenly spaced levels of [-1, 1]."""
    level = (x0.float() + 1.0) * 127.5
    off = (level - level.round()).abs().max().item()
    low, high = x0.min().item(), x0.max().item()
    if off > 0.01 or low < -1.0 - 1e-6 or high > 1.0 + 1e-6:
        what = f"bits per dimension of values from {low:g} to {high:g}, up to {off:.2g} of a grey level off the levels"
        raise InputError(what, allowed="8-bit images, level / 127.5 - 1")


# ---- the terms


@dataclass(frozen=True, eq=False)
class ElboTerms:
    """The bound of each image, in bits per dimension; float64 on the CPU.

    prior: (B,) L_T. steps: (B, T) L_0, L_1 ... L_{T-1}. x0_mse, eps_mse: (B, T) the mean squared error of x_0 and of
    eps at each step, in units of [-1, 1].
    """

    prior: PerSample
    steps: Tensor
    x0_mse: Tensor
    eps_mse: Tensor

    @cached_property
    def total(self) -> PerSample:
        """(B,) the whole bound; an image's code would be at most this long."""
        return self.prior + self.steps.sum(dim=1)

    @cached_property
    def decoder(self) -> PerSample:
        """(B,) L_0, the distortion."""
        return self.steps[:, 0]

    @cached_property
    def rate(self) -> PerSample:
        """(B,) L_1 + ... + L_T: all but L_0. Source: section 4.3."""
        return self.prior + self.steps[:, 1:].sum(dim=1)


def bits_per_dim(
    predict: Denoiser,
    schedule: Schedule,
    x0: Images,
    noise: Noise,
    *,
    sigma: Variance = FIXED_VARIANCES["fixed-large"],
    decoder: Decoder = log_bin,
    count: int | None = None,
    spacing: str = "linspace",
    together: int = 1,
    progress: Callable[[Iterator[Any]], Iterable[Any]] = iter,
) -> ElboTerms:
    """Every term of the bound for images x0 (B, C, H, W) in [-1, 1], one sample of x_t a step. Source: eq. 3, 5.

    noise(i): the noise in x_t at step i. sigma: the variance of the reverse steps. count, spacing: of a shorter chain.
    together: steps per batch, which is faster for few images; only for unconditional networks, as rows of the batch
    then do not correspond to images. progress: wraps the iterator over steps. decoder: log_bin, for 8-bit images (else
    InputError), or log_density.
    """
    if decoder is log_bin:
        check_levels(x0)
    chain = samplers.respace(schedule, count, spacing)
    prior = prior_term(chain.schedule, x0)
    columns = zip(*progress(iterate_terms(predict, chain, x0, noise, sigma, decoder, together)), strict=True)
    return ElboTerms(prior.cpu().double(), *(torch.stack(column, dim=1).cpu().double() for column in columns))


@torch.no_grad()
def iterate_terms(
    predict: Denoiser, chain: samplers.Chain, x0: Images, noise: Noise, sigma: Variance, decoder: Decoder, together: int
) -> Iterator[tuple[PerSample, ...]]:
    """(B,) L_i, mean squared error of x_0, and of eps, for i = 0, 1 ... of the chain."""
    schedule, timesteps = chain.schedule.to(x0.device), torch.tensor(chain.timesteps)
    for steps in torch.arange(len(chain)).split(together):
        i, t = (each.repeat_interleave(len(x0)).to(x0.device) for each in (steps, timesteps[steps]))
        images, eps = x0.repeat(len(steps), 1, 1, 1), torch.cat([noise(step) for step in steps.tolist()])
        prediction = predict(diffusion.add_noise(schedule, images, eps, i), t)
        terms = step_term(prediction, schedule, i, images, sigma, decoder=None)
        if steps[0] == 0:
            terms = torch.where(i == 0, step_term(prediction, schedule, i, images, sigma, decoder), terms)
        columns = terms, losses.mse(prediction.x0, images), losses.mse(prediction.eps, eps)
        yield from zip(*(column.reshape(len(steps), len(x0)) for column in columns), strict=True)


def prior_term(schedule: Schedule, x0: Images) -> PerSample:
    """L_T = KL(q(x_T | x_0) || N(0, 1)) in bits per dimension, (B,) float64. It has no parameters."""
    abar = schedule.alphas_cumprod[-1].item()
    # q(x_T | x_0) = N(sqrt(abar_T) x_0, 1 - abar_T)
    mean, zero = math.sqrt(abar) * wide(x0), torch.zeros_like(wide(x0))
    return per_sample(normal_kl(mean, zero + math.log1p(-abar), zero, zero)) / LOG_2


def step_term(
    prediction: Prediction, schedule: Schedule, i: Timesteps, x0: Images, sigma: Variance, decoder: Decoder | None
) -> PerSample:
    """L_i in bits per dimension, (B,): -log p(x_0 | x_1) with a decoder, else KL(q(x_{t-1} | x_t, x_0) || p_theta).

    schedule: the chain's, whose (B,) steps are i; on the device of the images.
    """
    x0, xt = wide(x0), wide(prediction.xt)
    mean = diffusion.posterior(schedule, wide(prediction.x0), xt, i)[0]
    log_variance = sigma.of_each(prediction, schedule, i)
    if decoder is not None:
        # L_0 = -log p_theta(x_0 | x_1)
        return -per_sample(decoder(x0, mean, log_variance)) / LOG_2
    true_mean, _ = diffusion.posterior(schedule, x0, xt, i)
    true_log_variance = gather(schedule.posterior_log_variance, i, like=x0)
    # L_{t-1} = KL(N(mu~_t, beta~_t) || N(mu_theta, sigma_t^2))
    return per_sample(normal_kl(true_mean, true_log_variance, mean, log_variance)) / LOG_2


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(other_mean, exp(other_log_variance))) in nats, element by element."""
    # KL = (log s2^2 - log s1^2 + s1^2 / s2^2 - 1 + (m1 - m2)^2 / s2^2) / 2
    ratio = other_log_variance - log_variance
    return (ratio + torch.expm1(-ratio) + (mean - other_mean).square() * (-other_log_variance).exp()) / 2.0


# ---- as a training loss


def variational_term(prediction: Prediction, x0: Images, sigma: Variance, decoder: Decoder = log_bin) -> PerSample:
    """L_t of each image at its own prediction.t, in bits per dimension, (B,), with gradients.

    For uniform timesteps, T times its mean estimates the bound without L_T. Source: eq. 5; eq. 12 is its form for a
    fixed variance.
    """
    between = step_term(prediction, prediction.schedule, prediction.t, x0, sigma, decoder=None)
    first = step_term(prediction, prediction.schedule, prediction.t, x0, sigma, decoder)
    return torch.where(prediction.t == 0, first, between)


def hybrid_loss(
    error: PerSample,
    prediction: Prediction,
    x0: Images,
    sigma: Variance = VARIANCES["learned-range"],
    decoder: Decoder = log_bin,
) -> PerSample:
    """L_simple + lambda L_vlb, (B,): the mean learns from `error` alone, a learned variance from the bound.

    error: L_simple of each image. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 16, lambda 0.001 on the whole
    bound, which is T times the mean of `variational_term`.
    """
    T = prediction.schedule.steps
    # L_hybrid = L_simple + lambda L_vlb, with a stop-gradient on mu_theta in L_vlb
    return error + HYBRID_WEIGHT * T * variational_term(prediction.detached(), x0, sigma, decoder)


def elbo_weights(schedule: Schedule, sigma: Variance) -> Mapping[str, Table]:
    """(T,) the weight of a mean squared error in L_{t-1}, in nats, for each parametrization; fixed variances only.

    From the mean to eps: eq. 9 writes x_t as a function of x_0 and eps, eq. 10 compares mu_theta with that mean.
    L_simple leaves these weights out (eq. 14). At zero terminal SNR that of eps is infinite.
    """
    assert sigma.high is None, "the weight of a learned variance is not a table"
    c1, noise = schedule.posterior_mean_coef_x0, 1.0 - schedule.alphas_cumprod
    per_variance = torch.exp(-sigma.low(schedule)) / 2.0
    return {
        # 1 / (2 sigma^2)                                                                                      eq. 8
        "mean": per_variance,
        # beta^2 / (2 sigma^2 alpha (1 - abar))                                                                eq. 12
        "eps": schedule.betas.square() / (schedule.alphas * noise) * per_variance,
        # c_1^2 / (2 sigma^2), c_1 of eq. 7; with sigma^2 = beta~ it is (SNR(t - 1) - SNR(t)) / 2
        "x0": c1.square() * per_variance,
        # the same, as x_0 = sqrt(abar) x_t - sqrt(1 - abar) v
        "v": c1.square() * noise * per_variance,
    }


# ---- rate and distortion


def rate_distortion(terms: ElboTerms) -> tuple[Tensor, Tensor]:
    """What a receiver knows after each reverse step, t = T ... 1. Source: section 4.3, figure 5 and table 4.

    rate: (T,) bits per dimension sent until x_t is known. rmse: (T,) root mean squared error of the x_0 predicted then,
    in grey levels of 255.
    """
    prior, steps = terms.prior.mean(), terms.steps.mean(dim=0)
    # to know x_t: L_T + sum_{s > t} L_{s-1}; sent from the noisy end
    rate = torch.cat([prior[None], steps[1:].flip(0)]).cumsum(0)
    return rate, terms.x0_mse.mean(dim=0).sqrt().flip(0) * GREY_LEVELS
