"""The last step, p_theta(x_0 | x_1): a probability of each of 256 grey levels, or a density.

Source: Ho et al. 2020, arXiv 2006.11239, section 3.3 and eq. 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.special import log_ndtr

from data.errors import InputError
from data.shapes import Images, PerSample, Table, Timesteps
from train.ddpm import diffusion, losses, prediction, samplers
from train.ddpm.diffusion import gather, wide
from train.ddpm.losses import per_sample
from train.ddpm.prediction import Denoiser, Prediction, Variance
from train.ddpm.samplers import Noise
from train.ddpm.schedule import Schedule

HALF_BIN = 1.0 / 255.0  # in [-1, 1], where 256 levels lie 2 / 255 apart


@dataclass(frozen=True)
class Decoder:
    """log_likelihood(x0, mean, log_variance): (B, C, H, W), natural. check(x0): InputError for what it cannot judge."""

    log_likelihood: Callable[[Images, Images, Tensor], Tensor]
    check: Callable[[Images], None]


def log_bin(x0: Images, mean: Images, log_variance: Tensor) -> Tensor:
    """log of the mass that N(mean, exp(log_variance)) has within 1/255 of x0, one of 256 levels of [-1, 1]; eq. 13.

    The bins at -1 and 1 are open outwards, so that all 256 sum to 1. In float64 and from logarithms of the normal
    distribution function: finite however far off the mean and however small the variance.
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
    """log N(x0; mean, exp(log_variance)), for data that are not of 256 levels."""
    # -(log 2 pi + log s^2 + (x - m)^2 / s^2) / 2
    return -(math.log(2.0 * math.pi) + log_variance + (x0 - mean).square() * (-log_variance).exp()) / 2.0


def check_levels(x0: Images) -> None:
    """Raise InputError unless every value is one of 256 even levels of [-1, 1]: others have no probability."""
    level = (x0.float() + 1.0) * 127.5
    off = (level - level.round()).abs().max().item()
    low, high = x0.min().item(), x0.max().item()
    if off > 0.01 or low < -1.0 - 1e-6 or high > 1.0 + 1e-6:
        raise InputError(
            f"bits per dimension of values from {low:g} to {high:g}, up to {off:.2g} of a grey level off the levels",
            allowed="8-bit pictures, level / 127.5 - 1",
        )


def accept_any(x0: Images) -> None:
    """Every value has a density."""


discretised = Decoder(log_bin, check_levels)
continuous = Decoder(log_density, accept_any)
DECODERS: dict[str, Decoder] = {"discretised": discretised, "continuous": continuous}


LOG_2 = math.log(2.0)
GREY_LEVELS = 127.5  # of 255 in one unit of [-1, 1]
HYBRID_WEIGHT = 1e-3  # lambda of arXiv 2102.09672, eq. 16


@dataclass(frozen=True, eq=False)
class ElboTerms:
    """The bound of each picture, in bits per dimension.

    prior: (B,) L_T. steps: (B, T) L_0, L_1 ... L_{T-1}. x0_mse, eps_mse: (B, T) the mean squared error of x_0 and of
    eps at each step, in units of [-1, 1]. float64 on the CPU.
    """

    prior: PerSample
    steps: Tensor
    x0_mse: Tensor
    eps_mse: Tensor

    @cached_property
    def total(self) -> PerSample:
        """(B,) the whole bound; a picture's code would be at most this long."""
        return self.prior + self.steps.sum(dim=1)

    @cached_property
    def decoder(self) -> PerSample:
        """(B,) L_0: the distortion's part."""
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
    sigma: Variance = prediction.FIXED_VARIANCES["fixed-large"],
    decoder: Decoder = discretised,
    count: int | None = None,
    spacing: str = "linspace",
) -> ElboTerms:
    """Every term of the bound for pictures x0 (B, C, H, W) in [-1, 1], one draw of x_t a step. Source: eq. 3, 5.

    noise(i): the noise in x_t at step i. sigma: the variance of the reverse steps. count, spacing: of a shorter chain.
    InputError for pictures that are not of 256 levels, where the discretised decoder is asked for.
    """
    prior = prior_term(samplers.respace(schedule, count, spacing).schedule, x0)  # a chain may start lower
    looks = list(
        iterate_terms(predict, schedule, x0, noise, sigma=sigma, decoder=decoder, count=count, spacing=spacing)
    )
    steps, x0_mse, eps_mse = (torch.stack(column, dim=1).cpu().double() for column in zip(*looks, strict=True))
    return ElboTerms(prior.cpu().double(), steps, x0_mse, eps_mse)


@torch.no_grad()
def iterate_terms(
    predict: Denoiser,
    schedule: Schedule,
    x0: Images,
    noise: Noise,
    *,
    sigma: Variance,
    decoder: Decoder,
    count: int | None = None,
    spacing: str = "linspace",
) -> Iterator[tuple[PerSample, PerSample, PerSample]]:
    """(B,) L_i, mean squared error of x_0, and of eps, for i = 0, 1 ... of the chain: one by one, to show progress."""
    decoder.check(x0)
    chain = samplers.respace(schedule, count, spacing)
    on_device = chain.schedule.to(x0.device)
    for i in range(len(chain)):
        step = torch.full((len(x0),), i, dtype=torch.int64, device=x0.device)
        eps = noise(i)
        xt = diffusion.add_noise(on_device, x0, eps, step)
        seen = predict(xt, chain.t(i, xt))
        term = step_term(seen, on_device, step, x0, sigma, decoder if i == 0 else None)
        yield term, losses.mse(seen.x0, x0), losses.mse(seen.eps, eps)


@torch.no_grad()
def total_bits(
    predict: Denoiser, schedule: Schedule, x0: Images, noise: Noise, *, sigma: Variance, together: int = 16
) -> PerSample:
    """(B,) bits_per_dim(...).total, with `together` steps in one batch: many times faster for few pictures.

    predict: of a network that is told no classes, since the places in the batch are not those of the pictures.
    """
    discretised.check(x0)
    on_device, total = schedule.to(x0.device), prior_term(schedule, x0).cpu().double()
    for steps in torch.arange(schedule.steps).split(together):
        t = steps.repeat_interleave(len(x0)).to(x0.device)
        some, eps = x0.repeat(len(steps), 1, 1, 1), torch.cat([noise(i) for i in steps.tolist()])
        terms = variational_term(predict(diffusion.add_noise(on_device, some, eps, t), t), some, sigma)
        total += terms.cpu().double().reshape(len(steps), len(x0)).sum(dim=0)
    return total


def prior_term(schedule: Schedule, x0: Images) -> PerSample:
    """L_T = KL(q(x_T | x_0) || N(0, 1)) in bits per dimension, (B,) float64. Nothing in it can be learnt."""
    abar = schedule.alphas_cumprod[-1].item()
    # q(x_T | x_0) = N(sqrt(abar_T) x_0, 1 - abar_T)
    mean, zero = math.sqrt(abar) * wide(x0), torch.zeros_like(wide(x0))
    return per_sample(normal_kl(mean, zero + math.log1p(-abar), zero, zero)) / LOG_2


def step_term(
    seen: Prediction, schedule: Schedule, i: Timesteps, x0: Images, sigma: Variance, decoder: Decoder | None
) -> PerSample:
    """L_i in bits per dimension, (B,): -log p(x_0 | x_1) with a decoder, else KL(q(x_{t-1} | x_t, x_0) || p_theta).

    schedule: the chain's, whose (B,) steps are i; on the device of the pictures.
    """
    x0, xt = wide(x0), wide(seen.xt)
    mean, log_variance = diffusion.posterior(schedule, wide(seen.x0), xt, i)[0], sigma.of_each(seen, schedule, i)
    if decoder is not None:
        # L_0 = -log p_theta(x_0 | x_1)
        return -per_sample(decoder.log_likelihood(x0, mean, log_variance)) / LOG_2
    true_mean, _ = diffusion.posterior(schedule, x0, xt, i)
    true_log_variance = gather(schedule.posterior_log_variance, i, like=x0)
    # L_{t-1} = KL(N(mu~_t, beta~_t) || N(mu_theta, sigma_t^2))
    return per_sample(normal_kl(true_mean, true_log_variance, mean, log_variance)) / LOG_2


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(other_mean, exp(other_log_variance))) in nats, element by element."""
    # KL = (log s2^2 - log s1^2 + s1^2 / s2^2 - 1 + (m1 - m2)^2 / s2^2) / 2
    ratio = other_log_variance - log_variance
    return (ratio + torch.expm1(-ratio) + (mean - other_mean).square() * (-other_log_variance).exp()) / 2.0


# ---- to train on


def variational_term(seen: Prediction, x0: Images, sigma: Variance, decoder: Decoder = discretised) -> PerSample:
    """L_t of each picture at its own seen.t, in bits per dimension, (B,), with gradients.

    For timesteps drawn evenly, T times its mean estimates the bound but for L_T. Source: eq. 5; eq. 12 is its form for
    a fixed variance. seen: what the network said about x_t made of x0.
    """
    between = step_term(seen, seen.schedule, seen.t, x0, sigma, decoder=None)
    first = step_term(seen, seen.schedule, seen.t, x0, sigma, decoder)
    return torch.where(seen.t == 0, first, between)


def hybrid_loss(
    error: PerSample,
    seen: Prediction,
    x0: Images,
    sigma: Variance = prediction.VARIANCES["learned-range"],
    decoder: Decoder = discretised,
) -> PerSample:
    """L_simple + lambda L_vlb: the mean learns from `error` alone, a learned variance from the bound. (B,).

    error: L_simple of each picture. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 16, lambda 0.001 on the whole
    bound, which is T times the mean of `variational`.
    """
    T = seen.schedule.steps
    # L_hybrid = L_simple + lambda L_vlb, with a stop-gradient on mu_theta in L_vlb
    return error + HYBRID_WEIGHT * T * variational_term(seen.detached(), x0, sigma, decoder)


def elbo_weights(schedule: Schedule, sigma: Variance) -> Mapping[str, Table]:
    """(T,) what a mean squared error counts in L_{t-1}, in nats, said in each parametrization; fixed variances only.

    From the mean to eps: eq. 9 writes x_t as a function of x_0 and eps, eq. 10 compares mu_theta with that mean.
    L_simple is what is left without these weights (eq. 14). At zero terminal SNR that of eps is infinite.
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


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """What a receiver knows after each reverse step. Source: section 4.3, figure 5 and table 4.

    rate: (T,) bits per dimension sent until x_t is known, t = T ... 1. rmse: (T,) root mean squared error of the x_0
    that it would predict then, in grey levels of 255.
    """

    rate: Tensor
    rmse: Tensor


def rate_distortion(terms: ElboTerms) -> RateDistortion:
    """The curve of a batch, from pure noise to the last step."""
    prior, steps = terms.prior.mean(), terms.steps.mean(dim=0)
    # to know x_t: L_T + sum_{s > t} L_{s-1}; sent from the noisy end
    rate = torch.cat([prior[None], steps[1:].flip(0)]).cumsum(0)
    return RateDistortion(rate, terms.x0_mse.mean(dim=0).sqrt().flip(0) * GREY_LEVELS)
