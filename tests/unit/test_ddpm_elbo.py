"""The variational bound against closed forms: on Gaussian data every term, and the sum, is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from data import rng
from tests import analytic
from tests.gaussian_data import (
    EVERY_SCHEDULE,
    NOISE,
    best_variance,
    close,
    column,
    data,
    divergence,
    entropy,
    quadrature_noise,
)
from train.ddpm import diffusion, elbo, losses, prediction, samplers
from train.ddpm import schedule as schedules
from train.ddpm.losses import HISTORY_LENGTH, TimestepSampler
from train.ddpm.prediction import Variance
from train.ddpm.schedule import Schedule

LINEAR = schedules.linear(1000)
F64 = torch.float64
HALF_LOG2_2_PI_E = 2.047095585180641  # the entropy of N(0, 1) in bits


def expected_bits(
    schedule: Schedule, sigma: Variance, mean: float = 0.0, std: float = 1.0, **chain: Any
) -> elbo.ElboTerms:
    """The bound's terms for the four rows whose average is the expectation over N(mean, std^2), exact denoiser."""
    predict, x0 = analytic.gaussian_denoiser(schedule, mean, std), data(mean, std)
    return elbo.bits_per_dim(predict, schedule, x0, quadrature_noise, sigma=sigma, decoder=elbo.log_density, **chain)


# ---------------------------------------------------------------- test 4: loss weights


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_04_loss_weights_agree_in_every_form(name: str) -> None:
    s = schedules.make_schedule(name, 1000)
    A, c1 = s.alphas_cumprod, s.posterior_mean_coef_x0
    for kind in prediction.FIXED_VARIANCES:
        w = elbo.elbo_weights(s, prediction.get_variance(kind))
        # |x0 error|^2 = (1 - A) / A |eps error|^2
        close(w["eps"], c1**2 * (1 - A) / A * w["mean"], rtol=1e-11)
        close(w["x0"] * (1 - A) / A, w["eps"], rtol=1e-11)
        close(w["v"], w["x0"] * (1 - A), rtol=1e-12)
    small = elbo.elbo_weights(s, prediction.get_variance("fixed-small"))
    close(small["x0"][1:], (s.snr[:-1] - s.snr[1:]) / 2, rtol=1e-11)


@pytest.mark.parametrize("kind", prediction.FIXED_VARIANCES)
@pytest.mark.parametrize("t", [1, 2, 30, 500, 999])
def test_04_the_generic_divergence_is_weight_times_error(kind: str, t: int) -> None:
    sigma, steps = prediction.get_variance(kind), torch.tensor([t, t])
    x0, eps, wrong = (rng.normal((2, 3, 4, 4), "weights", part).double() for part in ("x0", "eps", "wrong"))
    xt = diffusion.add_noise(LINEAR, x0, eps, steps)
    seen = prediction.eps.predict(LINEAR, xt, eps + 0.1 * wrong, steps)
    found = elbo.step_term(seen, LINEAR, steps, x0, sigma, decoder=None) * math.log(2)
    error = (0.1 * wrong).square().mean(dim=(1, 2, 3))
    ratio = LINEAR.posterior_variance[t] / sigma.low(LINEAR)[t].exp()
    constant = (ratio - 1 - ratio.log()) / 2  # of the two variances; 0 for fixed-small
    close(found, elbo.elbo_weights(LINEAR, sigma)["eps"][t] * error + constant, rtol=1e-9)
    assert (constant.item() == pytest.approx(0, abs=1e-15)) == (kind == "fixed-small")


# ---------------------------------------------------------------- test 5: which variance is right for what


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_05_large_is_exact_for_standard_normal_data(name: str) -> None:
    s = schedules.make_schedule(name, 1000)
    close(best_variance(s, 1.0), s.betas, atol=1e-14)
    terms = expected_bits(schedules.make_schedule(name, 50), prediction.get_variance("beta"))
    # E KL(q(x_{t-1} | x_t, x_0) || q(x_{t-1} | x_t)) is the information that x_0 still adds: log(b / B) / 2
    s = schedules.make_schedule(name, 50)
    information = (s.betas[1:] / s.posterior_variance[1:]).log2() / 2
    close(terms.steps[:, 1:].mean(0), information, atol=1e-12)


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_05_small_is_exact_for_a_point(name: str) -> None:
    terms = expected_bits(
        schedules.make_schedule(name, 100), prediction.get_variance("fixed-small"), mean=-0.4, std=0.0
    )
    close(terms.steps[:, 1:], torch.zeros(4, 99, dtype=F64), atol=1e-13)


# ---------------------------------------------------------------- test 6: the ELBO identity


@pytest.mark.parametrize("T", [1, 2, 10, 50, 1000])
@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_06_the_bound_is_the_entropy(name: str, T: int) -> None:
    # the sum telescopes: any wrong factor, index or base breaks it
    terms = expected_bits(schedules.make_schedule(name, T), prediction.get_variance("beta"))
    assert terms.total.mean().item() == pytest.approx(HALF_LOG2_2_PI_E, abs=1e-12)
    assert terms.steps.shape == (4, T)


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("count", [7, 53])
def test_06_the_identity_survives_respacing(spacing: str, count: int) -> None:
    # leading spacing starts below T, and L_T with it
    terms = expected_bits(schedules.linear(400), prediction.get_variance("beta"), count=count, spacing=spacing)
    assert terms.total.mean().item() == pytest.approx(HALF_LOG2_2_PI_E, abs=1e-12)


# ---------------------------------------------------------------- test 7: any Gaussian


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.7, 0.1), (-2.0, 1.5)])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_07_with_the_right_variance_nothing_is_lost(name: str, mean: float, std: float) -> None:
    schedule = schedules.make_schedule(name, 300)
    right = Variance(lambda s: best_variance(s, std).log())
    found = expected_bits(schedule, right, mean, std).total.mean().item()
    assert found == pytest.approx(entropy(std) + divergence(schedule, mean, std), abs=1e-9)


def test_07_what_the_fixed_variances_cost() -> None:
    # sigma_1^2 = beta_1 costs a hundredth of what beta~_2 does on continuous data; fixed-small costs most
    floor = entropy(0.5) + divergence(LINEAR, 0.0, 0.5)
    excess = {
        name: expected_bits(LINEAR, prediction.get_variance(name), std=0.5).total.mean() - floor
        for name in prediction.FIXED_VARIANCES
    }
    assert excess["beta"].item() == pytest.approx(0.0016, abs=5e-5)
    assert excess["fixed-large"].item() == pytest.approx(0.1654, abs=5e-5)
    assert excess["fixed-small"].item() == pytest.approx(0.822, abs=5e-4)


def test_terms_by_name_and_the_rate_distortion_curve() -> None:
    terms = expected_bits(schedules.linear(200), prediction.get_variance("beta"), std=0.5)
    close(terms.rate + terms.decoder, terms.total, atol=1e-13)
    schedule = schedules.linear(200)
    A = schedule.alphas_cumprod
    floor = 0.25 * (1 - A) / (A * 0.25 + 1 - A)  # Var[x_0 | x_t]
    close(terms.x0_mse.mean(0), floor, rtol=1e-11)
    close(terms.eps_mse.mean(0), floor * A / (1 - A), rtol=1e-11)
    assert elbo.rate_distortion(expected_bits(schedules.linear(1), prediction.get_variance("beta")))[0].shape == (1,)
    rate, rmse = elbo.rate_distortion(terms)
    assert rate[0] == terms.prior.mean()
    assert rate[-1].item() == pytest.approx(terms.rate.mean().item(), abs=1e-12)
    assert (rate.diff() > 0).all()
    assert (rmse.diff() < 0).all()
    close(rmse.flip(0), floor.sqrt() * 127.5, rtol=1e-11)
    assert rmse[0].item() == pytest.approx(0.5 * 127.5, rel=0.03)  # knowing nothing, the data's own spread


def test_single_precision_and_a_batch_of_images() -> None:
    # what a network gives: float32 and many pixels; close to float64, and each image by itself
    schedule, shape = schedules.linear(100), (3, 2, 4, 4)
    x0 = ((rng.normal(shape, "x0").clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1

    def terms(pictures: slice, dtype: torch.dtype) -> elbo.ElboTerms:
        def noise(*position: int | str) -> Tensor:
            return rng.normal(shape, "noise", *position)[pictures].to(dtype)

        return elbo.bits_per_dim(analytic.gaussian_denoiser(schedule, std=0.6), schedule, x0[pictures].to(dtype), noise)

    wide, narrow, alone = terms(slice(3), F64), terms(slice(3), torch.float32), terms(slice(1, 2), F64)
    close(narrow.total, wide.total, atol=1e-4)
    close(alone.total, wide.total[1:2], atol=1e-12)


def test_the_prior_term_is_that_of_the_note() -> None:
    # linear, E x_0^2 = 1/4: 7.3e-6 bits per dimension
    assert elbo.prior_term(LINEAR, data(std=0.5)).mean().item() == pytest.approx(7.3e-6, rel=0.01)
    zero = schedules.zero_terminal_snr(LINEAR)
    assert elbo.prior_term(zero, data(std=0.5)).eq(0).all()


# ---------------------------------------------------------------- test 14: the discretised decoder

LEVELS = torch.arange(256, dtype=F64) / 127.5 - 1


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 4e-3, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("mean", [0.0, 0.3337, -1.0, 1.0, 1.7, -25.0])
def test_14_the_bins_sum_to_one(mean: float, scale: float) -> None:
    log_p = elbo.log_bin(LEVELS, torch.full_like(LEVELS, mean), torch.full_like(LEVELS, 2 * math.log(scale)))
    assert log_p.isfinite().all()
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_14_one_pixel_by_hand() -> None:
    # mean 0.1, sigma 0.01, level 140 -> x_0 = 0.098039: Phi(0.1961) - Phi(-0.5883)
    x0, mean, log_variance = column(140 / 127.5 - 1), column(0.1), column(2 * math.log(0.01))
    upper, lower = ((140 / 127.5 - 1 + side / 255 - 0.1) / 0.01 for side in (1, -1))
    phi = [(1 + math.erf(z / math.sqrt(2))) / 2 for z in (upper, lower)]
    assert elbo.log_bin(x0, mean, log_variance).item() == pytest.approx(math.log(phi[0] - phi[1]), abs=1e-13)
    seen = prediction.x0.predict(LINEAR, column(0.2), mean, torch.tensor([0]))
    narrow = Variance(lambda s: torch.full_like(s.betas, 2 * math.log(0.01)))
    bits = elbo.step_term(seen, LINEAR, torch.tensor([0]), x0, narrow, elbo.log_bin)
    assert bits.item() == pytest.approx(-math.log2(phi[0] - phi[1]), abs=1e-12)


def test_14_bits_are_averaged_over_dimensions() -> None:
    x0 = LEVELS[[0, 100, 255, 30]].reshape(1, 1, 2, 2)
    seen = prediction.x0.predict(LINEAR, x0, x0 + 0.003, torch.tensor([0]))
    each = elbo.log_bin(x0, x0 + 0.003, LINEAR.posterior_log_variance[0])
    bits = elbo.step_term(seen, LINEAR, torch.tensor([0]), x0, prediction.get_variance("fixed-small"), elbo.log_bin)
    assert bits.item() == pytest.approx(-each.sum().item() / 4 / math.log(2), rel=1e-10)


def test_14_edges_are_open() -> None:
    far = elbo.log_bin(column(1.0, -1.0), column(9.0, -9.0), column(-2.0, -2.0))
    assert far.abs().max().item() < 1e-100  # everything beyond belongs to the last level
    inner = elbo.log_bin(column(253 / 127.5 - 1), column(9.0), column(-2.0))
    assert inner.item() < -100


def test_14_far_from_the_mean_it_is_finite_with_a_gradient() -> None:
    mean = column(-1.0, 1.0, 0.5).requires_grad_()
    log_variance = torch.full_like(mean, 2 * math.log(1e-4)).requires_grad_()
    log_p = elbo.log_bin(column(1.0, -1.0, 128 / 127.5 - 1), mean, log_variance)
    assert log_p.isfinite().all()
    gradients = torch.autograd.grad(log_p.sum(), (mean, log_variance))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0].flatten().sign().tolist() == [1.0, -1.0, -1.0]  # towards x_0


# ---------------------------------------------------------------- test 19: weights, importance, hybrid


def test_19_min_snr_is_one_objective_in_three_forms() -> None:
    steps = torch.tensor([0, 100, 500, 999])
    table = losses.min_snr(LINEAR, 5.0)
    x0, eps = (rng.normal((4, 1, 2, 2), part).double() for part in ("x0", "eps"))
    xt = diffusion.add_noise(LINEAR, x0, eps, steps)
    seen = prediction.x0.predict(LINEAR, xt, x0 + 0.1 * rng.normal((4, 1, 2, 2), "error").double(), steps)
    pairs = {"sample": (seen.x0, x0), "epsilon": (seen.eps, eps)}
    pairs["v_prediction"] = (seen.v, diffusion.velocity(LINEAR, x0, eps, steps))
    snr = LINEAR.snr[steps]
    by_hand = snr.clamp(max=5.0) * (seen.x0 - x0).square().mean(dim=(1, 2, 3))
    for form, (found, right) in pairs.items():
        close(table[form][steps] * (found - right).square().mean(dim=(1, 2, 3)), by_hand, rtol=1e-10)


def test_19_importance_sampling_is_unbiased() -> None:
    losses, sampler = torch.tensor([5.0, 1.0, 0.125, 0.0], dtype=F64), TimestepSampler(4, True)
    for scale in (0.5, 1.5) * (HISTORY_LENGTH // 2):
        sampler.update(torch.arange(4), scale * losses)
    p = sampler.probabilities()
    root = losses * math.sqrt((0.25 + 2.25) / 2)
    close(p, 0.999 * root / root.sum() + 0.001 / 4, atol=1e-15)  # eq. 18, and none is forgotten
    t, weights = sampler.draw((torch.arange(10_000, dtype=F64) + 0.5) / 10_000)
    close(torch.bincount(t, minlength=4) / 10_000, p.float(), atol=2e-4)
    # E[L_t / (T p_t)] = mean L_t, over an even sweep of the uniforms
    assert (weights * losses[t]).mean().item() == pytest.approx(losses.mean().item(), rel=2e-3)
    close(weights.double(), 1 / (4 * p[t]), rtol=1e-6)
    # and less spread than even draws have
    assert (weights * losses[t]).var() < losses.var() / 10


def test_19_draws_are_even_until_every_timestep_was_seen() -> None:
    sampler = TimestepSampler(4, True)
    sampler.update(torch.tensor([0, 1, 1, 2]), torch.tensor([9.0, 1.0, 2.0, 3.0]))
    assert not sampler.complete
    assert sampler.probabilities().tolist() == [0.25] * 4
    t, weights = sampler.draw(torch.tensor([0.0, 0.3, 0.6, 0.999999]))
    assert (t.tolist(), weights.tolist()) == ([0, 1, 2, 3], [1.0] * 4)
    assert sampler.losses[1, -2:].tolist() == [1.0, 2.0], "newest last"


class TwoHeads(torch.nn.Module):
    """2C channels from two weights: one for the mean, one for the variance."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor(0.5, dtype=F64))
        self.spread = torch.nn.Parameter(torch.tensor(0.1, dtype=F64))

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return torch.cat([self.mean * xt, self.spread + 0 * xt], dim=1)


@pytest.mark.parametrize("t", [0, 1, 500])
def test_19_the_bound_does_not_reach_the_mean_in_hybrid(t: int) -> None:
    network, steps = TwoHeads(), torch.full((4,), t)
    x0 = LEVELS[[10, 100, 200, 255]].reshape(4, 1, 1, 1)
    xt = diffusion.add_noise(LINEAR, x0, NOISE, steps)
    seen = prediction.get_parametrization("eps", learned_range=True)(network, LINEAR)(xt, steps)
    simple = (seen.eps - NOISE).square().mean(dim=(1, 2, 3))
    total = elbo.hybrid_loss(simple, seen, x0)
    found = torch.autograd.grad(total.sum(), [network.mean, network.spread], retain_graph=True)
    alone = torch.autograd.grad(simple.sum(), network.mean, retain_graph=True)[0]
    assert found[0] == alone, "L_simple alone moves the mean"
    vlb = elbo.variational_term(seen, x0, prediction.get_variance("learned-range"))
    of_bound = torch.autograd.grad(vlb.sum(), [network.mean, network.spread])
    assert of_bound[0] != 0
    # lambda is 0.001 on the whole bound, which is T times a term; lambda on one term would be 1,000 times weaker
    close(found[1], 1e-3 * 1000 * of_bound[1], rtol=1e-12)
    close(total - simple, vlb, rtol=1e-12)
    if t > 1:
        assert of_bound[1].abs() > 0


def test_variational_terms_of_a_mixed_batch_are_those_of_the_bound() -> None:
    schedule, sigma = schedules.linear(20), prediction.get_variance("fixed-large")
    x0 = LEVELS[[10, 100, 200, 255]].reshape(4, 1, 1, 1)
    predict = analytic.gaussian_denoiser(schedule, std=0.5)
    terms = elbo.bits_per_dim(predict, schedule, x0, quadrature_noise, sigma=sigma)
    t = torch.tensor([0, 3, 0, 19])
    xt = diffusion.add_noise(schedule, x0, NOISE, t)
    close(elbo.variational_term(predict(xt, t), x0, sigma), terms.steps[range(4), t], atol=1e-12)


@pytest.mark.parametrize("together", [7, 64])
def test_steps_can_be_computed_in_one_batch(together: int) -> None:
    schedule = schedules.linear(20)
    x0 = LEVELS[[10, 100, 200, 255]].reshape(4, 1, 1, 1)

    def noise(*position: int | str) -> Tensor:
        return rng.normal((4, 1, 1, 1), "side by side", *position).double()

    predict = analytic.gaussian_denoiser(schedule, std=0.5)
    both = [elbo.bits_per_dim(predict, schedule, x0, noise, count=15, together=steps) for steps in (1, together)]
    close(both[0].steps, both[1].steps, atol=1e-10)
    close(both[0].total, both[1].total, atol=1e-10)
