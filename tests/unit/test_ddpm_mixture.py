"""A mixture of Gaussians in two dimensions, where the score is known; and the floor that L_simple cannot go below."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from data import rng
from tests import analytic
from tests.gaussian_data import DATA, NOISE
from train.ddpm import diffusion, elbo, losses, prediction, samplers
from train.ddpm import schedule as schedules
from train.ddpm.samplers import SeededNoise
from train.ddpm.schedule import Schedule

F64 = torch.float64
WEIGHTS, STDS = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.1, 0.2, 0.05], dtype=F64)
MEANS = torch.tensor([[-0.8, 0.0], [0.6, 0.7], [0.5, -0.6]], dtype=F64)
MIXTURE = analytic.Mixture(WEIGHTS, MEANS.reshape(3, 2, 1, 1), STDS)
LINEAR = schedules.linear(1000)


def drawn(count: int) -> Tensor:
    """(count, 2, 1, 1) points of the mixture."""
    part = torch.multinomial(WEIGHTS, count, replacement=True, generator=rng.generator("part"))
    noise = rng.normal((count, 2, 1, 1), "points").double()
    return MIXTURE.means[part] + STDS[part].reshape(-1, 1, 1, 1) * noise


def test_12_the_exact_denoiser_is_the_score() -> None:
    # E[eps | x_t] = -sqrt(1 - abar) grad log q(x_t), by automatic differentiation of the density of x_t
    for t in (0, 10, 300, 999):
        steps, abar = torch.full((50,), t), LINEAR.alphas_cumprod[t]
        xt = diffusion.add_noise(LINEAR, drawn(50), rng.normal((50, 2, 1, 1), "eps").double(), steps).requires_grad_()
        one = torch.ones(50, dtype=F64)
        log_q = MIXTURE.log_parts(xt, abar.sqrt() * one, (1 - abar) * one).logsumexp(1)
        (score,) = torch.autograd.grad(log_q.sum(), xt)
        eps = MIXTURE.denoiser(LINEAR)(xt.detach(), steps).eps
        torch.testing.assert_close(eps, -(1 - abar).sqrt() * score, rtol=1e-9, atol=1e-9)


# how far each sampler may be off beyond chance, as a share of a standard deviation: its error of discretisation
SAMPLERS = {"fixed-large": (300, 0.12), "fixed-small": (300, 0.2), "ddim": (400, 0.1), "heun": (100, 0.05)}
SAMPLERS |= {"dpm++": (100, 0.05)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_12_samples_have_the_modes_of_the_mixture(name: str) -> None:
    count, off = SAMPLERS[name]
    n, noise = 2500, SeededNoise((3,), (2500, 2), dtype=F64)

    def position_noise(*position: int | str) -> Tensor:
        return noise(*position).reshape(n, 2, 1, 1)

    sampler = samplers.make_sampler(name, count=count)
    found = samplers.generate(sampler, MIXTURE.denoiser(LINEAR), LINEAR, position_noise("start"), position_noise)
    points = found.reshape(n, 2)
    nearest = torch.cdist(points, MEANS).argmin(1)
    for k, (weight, mean, std) in enumerate(zip(WEIGHTS.tolist(), MEANS, STDS.tolist(), strict=True)):
        mine = points[nearest == k]
        assert len(mine) / n == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / n))
        torch.testing.assert_close(mine.mean(0), mean, rtol=0, atol=4 * std / math.sqrt(len(mine)) + 0.002)
        covariance = torch.cov(mine.T) / std**2
        chance = 4 * math.sqrt(2 / len(mine))
        torch.testing.assert_close(covariance, torch.eye(2, dtype=F64), rtol=0, atol=chance + 2 * off)


def test_12_the_bound_is_above_the_exact_likelihood() -> None:
    x0 = drawn(400)
    exact_bits = -MIXTURE.log_density(x0) / math.log(2) / 2

    def noise(*position: int | str) -> Tensor:
        return rng.normal((400, 2, 1, 1), "bound", *position).double()

    schedule, gaps = schedules.linear(500, 2e-4, 0.04), {}
    for name in ("beta", "fixed-small"):
        terms = elbo.bits_per_dim(
            MIXTURE.denoiser(schedule),
            schedule,
            x0,
            noise,
            sigma=prediction.get_variance(name),
            decoder=elbo.log_density,
        )
        gaps[name] = terms.total - exact_bits
    error = gaps["beta"].std().item() / 20  # of a mean over 400
    assert gaps["beta"].mean().item() > -3 * error
    assert gaps["beta"].mean().item() < 0.1, "and near it"
    assert gaps["fixed-small"].mean() > gaps["beta"].mean()


# ---------------------------------------------------------------- test 13: the floor of L_simple


def l_simple(schedule: Schedule, gains: Tensor, std: float) -> Tensor:
    """E |eps - w_t x_t|^2 averaged over t, by quadrature, through the library's own path from network to loss."""
    T = schedule.steps
    t = torch.arange(T).repeat_interleave(4)
    x0, eps = (std * DATA).repeat(T, 1, 1, 1), NOISE.repeat(T, 1, 1, 1)
    xt = diffusion.add_noise(schedule, x0, eps, t)
    answer = prediction.eps(lambda xt, t: gains[t].reshape(-1, 1, 1, 1) * xt, schedule)(xt, t)
    return losses.mse(answer.eps, eps).mean()


FLOORS = {"linear": 0.2755, "scaled_linear": 0.4227, "sigmoid": 0.4285, "cosine_capped": 0.4956}


@pytest.mark.parametrize("name", FLOORS)
def test_13_the_floor_of_l_simple_is_the_mean_of_abar(name: str) -> None:
    schedule = schedules.make_schedule(name, 1000)
    A = schedule.alphas_cumprod
    for std in (0.3, 1.0):
        best = (1 - A).sqrt() / (A * std**2 + 1 - A)
        floor = (A * std**2 / (A * std**2 + 1 - A)).mean()
        torch.testing.assert_close(l_simple(schedule, best, std), floor, rtol=1e-11, atol=0)
    assert A.mean().item() == pytest.approx(FLOORS[name], abs=5e-5)


@pytest.mark.parametrize("std", [0.5, 1.0])
def test_13_a_trained_linear_model_reaches_the_floor(std: float) -> None:
    A = LINEAR.alphas_cumprod
    gains = torch.zeros(1000, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([gains], lr=0.1)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.97**step
        optimizer.zero_grad()
        l_simple(LINEAR, gains, std).backward()
        optimizer.step()
    reached = l_simple(LINEAR, gains, std).item()
    floor = (A * std**2 / (A * std**2 + 1 - A)).mean().item()
    assert reached == pytest.approx(floor, abs=1e-4)
    assert reached >= floor - 1e-12, "nothing is below it"
