"""Every sampler of the table on Gaussian data, where the exact answer is known, and against diffusers' schedulers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from torch import Tensor

from data import rng
from tests import analytic
from tests.gaussian_data import close, column, gaussian_mix, moments, perfect
from train.ddpm import diffusion, prediction, samplers
from train.ddpm import schedule as schedules
from train.ddpm.samplers import FINISHED, SamplingContext, SeededNoise, seeded_noise
from train.ddpm.schedule import Schedule

LINEAR = schedules.linear(1000)
F64 = torch.float64


def no_noise(*position: int | str) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


# ---------------------------------------------------------------- what holds for every row of the table


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_contract_gaussian_data_are_drawn_with_their_mean_and_spread(name: str) -> None:
    sampler = samplers.make_sampler(name)
    mean, std = moments(sampler, perfect(sampler, LINEAR, 0.3, 0.5), LINEAR)
    assert mean == pytest.approx(0.3, abs=0.005)
    assert std == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_contract_gaussian_data_at_zero_terminal_snr(name: str) -> None:
    schedule = schedules.zero_terminal_snr(schedules.linear(200))
    for spacing in ("linspace", "trailing"):
        sampler = samplers.make_sampler(name, count=150, spacing=spacing)
        mean, std = moments(sampler, perfect(sampler, schedule, 0.3, 0.5), schedule)
        assert mean == pytest.approx(0.3, abs=1e-12), "no trace of x_0 is missing at the start"
        assert std == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize("count", [1, 2, 7, 53, None])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_contract_a_point_is_found_from_anywhere(name: str, count: int | None) -> None:
    for spacing in samplers.SPACINGS:
        sampler = samplers.make_sampler(name, count=count, spacing=spacing)
        schedule = schedules.cosine(100)
        noise = SeededNoise((1, 2), (1, 2, 2), dtype=F64)
        found = samplers.generate(sampler, perfect(sampler, schedule, -0.7, 0.0), schedule, noise.start(), noise)
        close(found, torch.full_like(found, -0.7), atol=1e-9)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_contract_every_state_is_shown(name: str) -> None:
    sampler, noise = samplers.make_sampler(name, count=10), seeded_noise(5, 3, (1, 4, 4))
    x_T = noise.start()
    states = list(sampler.steps(perfect(sampler, LINEAR, 0.0, 0.5), LINEAR, x_T, noise))
    assert [state.t for state in states] == [*reversed(sampler.chain(LINEAR).timesteps), FINISHED]
    assert states[0].xt is x_T
    assert states[-1].xt is states[-1].x0
    assert all(state.xt.shape == state.x0.shape == x_T.shape for state in states)
    assert all(state.xt.dtype == torch.float32 for state in states), "the dtype of x_T is kept"
    assert states[0].x0.std() < states[-1].x0.std(), "the progressive prediction starts at the mean"


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_22_contract_an_image_follows_from_its_seed_alone(name: str) -> None:
    sampler, shape = samplers.make_sampler(name, count=20), (3, 8, 8)
    predict = perfect(sampler, LINEAR, 0.1, 0.4)

    def drawn(start: int, count: int) -> Tensor:
        noise = seeded_noise(start, count, shape)
        return samplers.generate(sampler, predict, LINEAR, noise.start(), noise)

    together = drawn(40, 6)
    for split in ([1] * 6, [2, 4], [5, 1]):
        starts = [40 + sum(split[:k]) for k in range(len(split))]
        apart = torch.cat([drawn(start, count) for start, count in zip(starts, split, strict=True)])
        assert torch.equal(together, apart)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_contract_no_gradient_is_kept_and_a_walk_can_stop_early(name: str) -> None:
    sampler, noise = samplers.make_sampler(name, count=10), seeded_noise(0, 1, (1, 2, 2))
    weight = torch.ones((), requires_grad=True)
    inner = perfect(sampler, LINEAR, 0.0, 0.5)
    looks = 0

    def predict(xt: Tensor, t: Tensor) -> prediction.Prediction:
        nonlocal looks
        looks += 1
        return inner(xt * weight, t)

    states = sampler.steps(predict, LINEAR, noise.start(), noise)
    next(states)
    assert looks == 1, "nothing is computed before it is asked for"
    assert not next(states).xt.requires_grad
    assert torch.is_grad_enabled(), "between two states gradients are as they were"


# ---------------------------------------------------------------- test 8: samplers as linear maps

# count, what fixed-large and fixed-small draw for data ~ N(0, 0.1^2)
COLLAPSE = [(10, 0.354, 0.027), (100, 0.113, 0.079), (1000, 0.1008, 0.0963)]


@pytest.mark.parametrize(("count", "large", "small"), COLLAPSE)
def test_08_a_sampler_is_a_linear_map(count: int, large: float, small: float) -> None:
    chain = samplers.respace(LINEAR, count)
    for name, published in (("fixed-large", large), ("fixed-small", small)):
        closed = analytic.ancestral_std(chain, 0.1, prediction.get_variance(name))
        assert round(closed, 4 if count == 1000 else 3) == published
        sampler = samplers.make_sampler(name, count=count)
        mean, std = moments(sampler, analytic.gaussian_denoiser(LINEAR, std=0.1), LINEAR)
        assert (mean, std) == (0.0, pytest.approx(closed, rel=1e-10))


@pytest.mark.parametrize(("count", "n"), [(10, 40_000), (100, 40_000), (1000, 8_000)])
@pytest.mark.parametrize("name", ["fixed-large", "fixed-small"])
def test_08_monte_carlo_agrees_to_three_standard_errors(name: str, count: int, n: int) -> None:
    sampler = samplers.make_sampler(name, count=count)
    noise = SeededNoise((1,), (n,), dtype=F64)
    drawn = samplers.generate(sampler, analytic.gaussian_denoiser(LINEAR, std=0.1), LINEAR, noise.start(), noise)
    closed = analytic.ancestral_std(sampler.chain(LINEAR), 0.1, prediction.get_variance(name))
    assert drawn.var().item() == pytest.approx(closed**2, rel=3 * math.sqrt(2 / n))
    assert drawn.mean().item() == pytest.approx(0, abs=3 * closed / math.sqrt(n))


def test_08_without_noise_images_fall_towards_the_mean() -> None:
    silent = samplers.make_sampler("fixed-small", noise_scale=0.0)
    mean, std = moments(silent, analytic.gaussian_denoiser(LINEAR, 0.3, 0.5), LINEAR)
    assert mean == pytest.approx(0.3, abs=0.002)
    assert std < 0.01  # against 0.5


# ---------------------------------------------------------------- test 9: DDIM and the probability flow


def gain(sampler: samplers.Sampler, schedule: Schedule, std: float) -> float:
    """What a deterministic sampler multiplies x_T with."""
    return samplers.generate(
        sampler, analytic.gaussian_denoiser(schedule, std=std), schedule, column(1.0), no_noise
    ).item()


@pytest.mark.parametrize(("count", "known"), [(50, 0.963383), (1000, 0.998124)])
def test_09_ddim_turns_by_angles(count: int, known: float) -> None:
    chain = samplers.respace(LINEAR, count)
    # cos(theta) = sqrt(abar): a step multiplies by cos(theta_s - theta_t)
    theta = torch.acos(chain.schedule.alphas_cumprod.sqrt()).tolist()
    product = math.prod(math.cos(b - a) for a, b in zip([0.0, *theta[:-1]], theta, strict=True))
    assert gain(samplers.make_sampler("ddim", count=count), LINEAR, 1.0) == pytest.approx(product, abs=1e-12)
    assert round(product, 6) == known
    assert analytic.ddim_gain(chain, 1.0) == pytest.approx(product, abs=1e-12)


def test_09_the_limit_is_the_probability_flow() -> None:
    for std in (0.1, 2.0):
        for name, within in (("ddim", 2e-2), ("heun", 5e-3), ("dpm++", 5e-3)):
            assert gain(samplers.make_sampler(name), LINEAR, std) == pytest.approx(
                analytic.flow_gain(LINEAR, std), rel=within
            )


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpm++", 2)])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_09_order_of_convergence(name: str, order: int, std: float) -> None:
    errors = []
    for count in (50, 100, 200):
        # log SNR falls evenly from 16 to -10, so that every step shrinks when there are more of them
        schedule = analytic.even_in_log_snr(count + 1, 16, -10)
        errors.append(abs(gain(samplers.make_sampler(name), schedule, std) - analytic.flow_gain(schedule, std)))
    for coarse, half in pairwise(errors):  # twice the steps, 2^order less error
        assert math.log2(coarse / half) == pytest.approx(order, abs=0.2)


# ---------------------------------------------------------------- test 10: DDIM with eta 1


@pytest.mark.parametrize("count", [None, 7, 50, 999])
def test_10_ddim_with_eta_one_is_ancestral(count: int | None) -> None:
    chain = samplers.respace(LINEAR, count)
    s = chain.schedule
    A, P = s.alphas_cumprod, s.alphas_cumprod_prev
    sigma2 = (1 - P) / (1 - A) * (1 - A / P)
    close(sigma2, s.posterior_variance, atol=1e-14)
    weight_xt = ((1 - P - sigma2).clamp(min=0) / (1 - A)).sqrt()
    # 1 - abar is 1e-4 at the first step, so its rounding counts 10,000 times
    close(weight_xt[1:], s.posterior_mean_coef_xt[1:], atol=5e-13)
    close(P.sqrt() - A.sqrt() * weight_xt, s.posterior_mean_coef_x0, atol=5e-13)


@pytest.mark.parametrize("count", [None, 7, 50, 999])
def test_10_the_two_samplers_draw_the_same(count: int | None) -> None:
    schedule, noise = schedules.cosine_capped(1000), SeededNoise((3, 4), (1, 3, 3), dtype=F64)
    predict = prediction.clipped(
        analytic.gaussian_denoiser(schedule, 0.2, 2.0), -1.0, 1.0
    )  # clipped often, and eps derived again
    both = [
        samplers.generate(sampler, predict, schedule, noise.start(), noise)
        for sampler in (
            samplers.make_sampler("ddim", eta=1.0, count=count),
            samplers.make_sampler("fixed-small", count=count),
        )
    ]
    close(*both, atol=1e-12)
    assert both[0].abs().max() <= 1.0


# ---------------------------------------------------------------- test 11: respacing


@pytest.mark.parametrize("count", [1, 2, 7, 53, 100, 999, 1000])
@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_11_a_short_chain_keeps_the_noise_levels_it_visits(spacing: str, count: int) -> None:
    for name in ("linear", "cosine"):
        schedule = schedules.make_schedule(name, 1000)
        chain = samplers.respace(schedule, count, spacing)
        assert len(chain) == count == len(set(chain.timesteps))
        assert list(chain.timesteps) == sorted(chain.timesteps)
        close(chain.schedule.alphas_cumprod, schedule.alphas_cumprod[list(chain.timesteps)], atol=1e-15)


def test_11_all_steps_are_the_schedule_itself() -> None:
    for spacing in samplers.SPACINGS:
        assert samplers.spaced_timesteps(1000, 1000, spacing) == tuple(range(1000))
        assert torch.equal(samplers.respace(LINEAR, 1000, spacing).schedule.betas, LINEAR.betas)


def test_11_spacings_by_hand() -> None:
    assert samplers.spaced_timesteps(10, 4, "linspace") == (0, 3, 6, 9)
    assert samplers.spaced_timesteps(10, 3, "linspace") == (0, 4, 9)  # 4.5 goes to the even number
    assert samplers.spaced_timesteps(10, 1, "linspace") == (9,)
    assert samplers.spaced_timesteps(10, 4, "leading") == (0, 2, 4, 6)
    assert samplers.spaced_timesteps(10, 4, "trailing") == (1, 4, 7, 9)  # 2.5 to 2, 7.5 to 8; less one
    assert samplers.spaced_timesteps(10, 3, "trailing") == (2, 6, 9)


@pytest.mark.parametrize("count", [7, 10, 50, 53, 999])
@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_11_spacings_are_those_of_diffusers(spacing: str, count: int) -> None:
    theirs: Any = DDIMScheduler.from_config({"num_train_timesteps": 1000, "timestep_spacing": spacing})
    theirs.set_timesteps(count)
    found = theirs.timesteps.flip(0).tolist()
    if (spacing, count) == ("trailing", 999):
        found = found[-999:]  # numpy's arange gives one too many
    if (spacing, count) == ("linspace", 53):
        found[26] = 500  # 499.5, of which numpy's floats fall short
    assert list(samplers.spaced_timesteps(1000, count, spacing)) == found


# ---------------------------------------------------------------- test 16: one step of diffusers' schedulers

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
SHAPE = (2, 3, 4, 4)
STEP_TOLERANCE = {1: 5e-4, 10: 5e-4, 50: 1e-5, 500: 1e-5, 999: 1e-5}  # diffusers' tables are float32


def one_step(sampler: samplers.Sampler, t: int, fraction: Tensor | None = None) -> tuple[Tensor, ...]:
    """x_{t-1}, with the x_t and eps that it was made from and the noise that was added."""
    schedule, steps = schedules.from_diffusers(SD), torch.full((2,), t)
    xt, eps = (rng.normal(SHAPE, "one step", name).double() for name in ("xt", "eps"))
    seen = prediction.eps.predict(schedule, xt, eps, steps)
    seen = prediction.Prediction(schedule, xt, steps, seen.x0, seen.eps, fraction)
    noise = torch.randn(SHAPE, generator=rng.generator(t), dtype=F64)
    walk = SamplingContext(sampler.chain(schedule), lambda xt, t: seen, lambda *position: noise)
    return sampler.step(walk, t, seen, None), xt, eps, noise


@pytest.mark.parametrize("t", STEP_TOLERANCE)
@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range"])
def test_16_an_ancestral_step_is_that_of_diffusers(kind: str, t: int) -> None:
    learned = rng.normal(SHAPE, "learned").double().tanh() if kind == "learned_range" else None
    fraction = None if learned is None else (learned + 1) / 2
    ours, xt, eps, _ = one_step(samplers.make_sampler(kind.replace("_", "-")), t, fraction)
    theirs: Any = DDPMScheduler.from_config(SD | {"variance_type": kind})
    output = eps if learned is None else torch.cat([eps, learned], dim=1)
    close(ours, theirs.step(output, t, xt, generator=rng.generator(t)).prev_sample, atol=STEP_TOLERANCE[t])


@pytest.mark.parametrize("t", STEP_TOLERANCE)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_16_a_ddim_step_is_that_of_diffusers(eta: float, t: int) -> None:
    ours, xt, eps, noise = one_step(samplers.make_sampler("ddim", eta=eta), t)
    theirs: Any = DDIMScheduler.from_config(SD | {"set_alpha_to_one": True})
    theirs.set_timesteps(1000)
    close(ours, theirs.step(eps, t, xt, eta=eta, variance_noise=noise).prev_sample, atol=STEP_TOLERANCE[t])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers, with numpy 2
@pytest.mark.parametrize(("name", "solver"), [("dpm++", DPMSolverMultistepScheduler), ("heun", HeunDiscreteScheduler)])
def test_16_a_solver_is_that_of_diffusers(name: str, solver: Any) -> None:
    config = {key: value for key, value in SD.items() if key != "clip_sample"}
    theirs = solver(**config, timestep_spacing="trailing")
    theirs.set_timesteps(20)
    schedule, x_T = schedules.from_diffusers(SD), rng.normal(SHAPE, "solver")
    predict, scaled = analytic.gaussian_denoiser(schedule, 0.2, 0.5), name == "heun"  # in units of x_0 (Karras et al.)
    x = x_T / schedule.sqrt_alphas_cumprod[-1].item() if scaled else x_T
    for t in theirs.timesteps:
        seen = predict(theirs.scale_model_input(x, t), torch.full((2,), int(t)))
        x = theirs.step(seen.eps, t, x).prev_sample
    sampler = samplers.make_sampler(name, count=20, spacing="trailing")
    close(samplers.generate(sampler, predict, schedule, x_T, no_noise), x, atol=1e-4)


# ---------------------------------------------------------------- the linear mix, and mistakes


def test_the_naive_sampler_leaves_the_mix_that_it_claims() -> None:
    # with the right image predicted, the noise share falls to (t + 1) / T of the next timestep, and to nothing
    schedule, picture, z = schedules.linear(10), column(0.4), column(-1.3)
    states = list(
        samplers.make_sampler("naive", count=5, spacing="trailing").steps(
            gaussian_mix(schedule, 0.4, 0.0), schedule, diffusion.linear_mix(picture, z, torch.ones(1)), no_noise
        )
    )
    for state in states[:-1]:
        close(
            state.xt,
            diffusion.linear_mix(picture, z, diffusion.mix_amount(torch.tensor([state.t]), 10).double()),
            atol=1e-7,
        )
    close(states[-1].xt, picture, atol=1e-12)


def test_the_amount_of_a_mix_can_be_chosen() -> None:
    picture, z = torch.ones(3, 1, 2, 2), rng.normal((3, 1, 2, 2), "mix")
    mixed = diffusion.linear_mix(picture, diffusion.mix_noise(z, uniform=False), torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(mixed[0], picture[0])
    close(mixed[1], 0.75 + 0.25 * z[1], atol=1e-7)
    assert torch.equal(mixed[2], z[2])
    even = diffusion.mix_noise(rng.normal((1, 1, 100, 100), "even"), uniform=True).flatten()
    assert -1 <= even.min() < even.max() <= 1
    counts = even.histc(10, -1, 1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.9  # chi-square with 9 degrees of freedom, one in a thousand
