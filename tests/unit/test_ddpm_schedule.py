"""Noise schedules against closed forms, and against diffusers' schedulers built from the same numbers."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from tests.gaussian_data import EVERY_SCHEDULE, close
from train.ddpm import schedule as schedules
from train.ddpm.schedule import Schedule

F64 = torch.float64


@pytest.mark.parametrize("T", [1, 2, 10, 1000])
@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_01_the_chain_of_single_steps_is_the_closed_form(name: str, T: int) -> None:
    # eq. 2 iterated on a Gaussian: mean m <- sqrt(alpha) m, variance v <- alpha v + beta, from a point mass at 1
    schedule = schedules.make_schedule(name, T)
    mean, variance = 1.0, 0.0
    for t in range(T):
        mean = math.sqrt(1.0 - schedule.betas[t].item()) * mean
        variance = (1.0 - schedule.betas[t].item()) * variance + schedule.betas[t].item()
        assert mean == pytest.approx(schedule.sqrt_alphas_cumprod[t].item(), abs=2e-15)
        assert variance == pytest.approx(1.0 - schedule.alphas_cumprod[t].item(), abs=2e-15)
        assert math.sqrt(variance) == pytest.approx(schedule.sqrt_one_minus_alphas_cumprod[t].item(), abs=2e-13)


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_02_posterior_weights_are_consistent(name: str) -> None:
    # x_{t-1} = c1 x_0 + c2 x_t + sqrt(B) z must have the mean and variance of q(x_{t-1} | x_0)
    s = schedules.make_schedule(name, 1000)
    c1, c2, B, A, P = weights(s)
    close(c1 + c2 * A.sqrt(), P.sqrt(), atol=1e-12)
    close(c2**2 * (1 - A) + B, 1 - P, atol=1e-12)
    # Bayes: precisions of q(x_t | x_{t-1}) and q(x_{t-1} | x_0) add up; there is none at the first step
    a, b = s.alphas[1:], s.betas[1:]
    close(1 / B[1:], a / b + 1 / (1 - P[1:]), rtol=1e-11)


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_signal_to_noise_ratio_falls_and_its_logarithm_agrees(name: str) -> None:
    s = schedules.make_schedule(name, 1000)
    assert bool((s.snr[1:] < s.snr[:-1]).all())
    close(s.log_snr, s.snr.log(), atol=1e-12)
    close(torch.sigmoid(s.log_snr), s.alphas_cumprod, atol=1e-14)


def test_log_variance_takes_the_second_step_at_the_first() -> None:
    s = schedules.linear(1000)
    assert s.posterior_log_variance[0] == s.posterior_variance[1].log()
    assert torch.equal(s.posterior_log_variance[1:], s.posterior_variance[1:].log())
    assert schedules.linear(1).posterior_log_variance.item() == pytest.approx(math.log(1e-4))


# the last two columns: |d beta| and relative d abar, what is left by diffusers' float32
@pytest.mark.parametrize(
    ("kind", "beta", "abar"),
    [("linear", 1e-8, 1e-6), ("scaled_linear", 1e-8, 1e-6), ("sigmoid", 1e-8, 1e-6), ("squaredcos_cap_v2", 2e-5, 2e-5)],
)
def test_15_betas_are_those_of_diffusers(kind: str, beta: float, abar: float) -> None:
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule=kind)  # pyright: ignore[reportArgumentType]
    ours = schedules.from_diffusers(theirs.config)
    close(ours.betas, theirs.betas.to(F64), atol=beta)
    close(ours.alphas_cumprod, theirs.alphas_cumprod.to(F64), rtol=abar)


def test_the_scheduler_of_stable_diffusion_v1() -> None:
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    ours = schedules.from_diffusers(config | {"_class_name": "PNDMScheduler", "trained_betas": None, "steps_offset": 1})
    assert ours.steps == 1000
    close(ours.betas[[0, -1]], torch.tensor([0.00085, 0.012], dtype=F64), atol=1e-18)
    # the square root is what rises evenly: the middle of 999 intervals lies between steps 499 and 500
    middle = ((math.sqrt(0.00085) + math.sqrt(0.012)) / 2) ** 2
    assert ours.betas[499].item() < middle < ours.betas[500].item()
    # sqrt(abar_T) = 0.0683 is the signal that Lin et al. (arXiv 2305.08891, table 2) report is left in it
    assert ours.sqrt_alphas_cumprod[-1].item() == pytest.approx(0.068265, abs=1e-6)


def test_trained_betas_of_a_config_are_taken_as_they_are() -> None:
    ours = schedules.from_diffusers({"beta_schedule": "linear", "trained_betas": [0.1, 0.2, 0.3]})
    assert ours.betas.tolist() == [0.1, 0.2, 0.3]


def test_15_the_two_cosines_differ_at_fourteen_steps() -> None:
    different = schedules.cosine(1000).betas != schedules.cosine_capped(1000).betas
    assert different.nonzero().flatten().tolist() == [*range(13), 999]


def test_cosine_keeps_its_promise_about_the_cumulative_product() -> None:
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    expected = torch.tensor([f[t] / f[0] for t in range(1, 1000)], dtype=F64)  # without the capped last step
    close(schedules.cosine_capped(1000).alphas_cumprod[:-1], expected, rtol=1e-11)


def test_terminal_signal_of_the_named_schedules() -> None:
    left = {name: schedules.make_schedule(name, 1000).alphas_cumprod[-1].item() for name in EVERY_SCHEDULE}
    assert left["linear"] == pytest.approx(4.04e-5, rel=2e-3)
    assert left["scaled_linear"] == pytest.approx(7.33e-4, rel=2e-3)
    assert left["sigmoid"] == pytest.approx(3.97e-5, rel=2e-3)
    assert left["cosine_capped"] == pytest.approx(2.4e-9, rel=2e-2)
    assert left["cosine"] == pytest.approx(2.4e-10, rel=2e-2)


@pytest.mark.parametrize("name", EVERY_SCHEDULE)
def test_17_zero_terminal_snr(name: str) -> None:
    before = schedules.make_schedule(name, 1000)
    after = schedules.zero_terminal_snr(before)
    assert after.alphas_cumprod[-1].item() == 0.0
    assert after.betas[-1].item() == 1.0
    assert after.alphas_cumprod[0].item() == before.alphas_cumprod[0].item()
    assert before.has_signal_left
    assert not after.has_signal_left
    # sqrt(abar) is moved and stretched, so the differences keep their proportions
    kept = before.sqrt_alphas_cumprod.diff() / before.sqrt_alphas_cumprod.diff()[0]
    close(after.sqrt_alphas_cumprod.diff() / after.sqrt_alphas_cumprod.diff()[0], kept, rtol=1e-7)
    c1, c2, B, A, P = weights(after)  # the posterior survives abar_T = 0
    close(c1 + c2 * A.sqrt(), P.sqrt(), atol=1e-12)
    close(c2**2 * (1 - A) + B, 1 - P, atol=1e-12)
    assert after.log_snr[-1].item() == -math.inf


def test_17_zero_terminal_snr_is_that_of_diffusers() -> None:
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    config["rescale_betas_zero_snr"] = True
    theirs: Any = DDPMScheduler.from_config(config)
    ours = schedules.from_diffusers(config)
    close(ours.alphas_cumprod, theirs.alphas_cumprod.to(F64), atol=1e-6)


def test_15_quadratic_is_another_name_and_options_pass_through() -> None:
    assert schedules.SCHEDULES["quadratic"] is schedules.SCHEDULES["scaled_linear"]
    narrow, wide = schedules.make_schedule("sigmoid", 50, span=3.0), schedules.make_schedule("sigmoid", 50)
    assert narrow.betas[0] > wide.betas[0]
    assert schedules.make_schedule("linear", 5, beta_end=0.5).betas[-1].item() == 0.5


def test_moved_tables_are_the_same_and_all_there() -> None:
    here = schedules.linear(10)
    there = here.to("cpu")
    tables = {name: table for name, table in vars(there).items() if isinstance(table, torch.Tensor)}
    assert len(tables) == 12
    assert all(torch.equal(table, getattr(here, name)) and table.dtype == F64 for name, table in tables.items())
    away = [table for table in vars(here.to("meta")).values() if isinstance(table, torch.Tensor)]
    assert all(table.device.type == "meta" for table in away)
    assert here.betas.device.type == "cpu"
    assert here.to("meta").has_signal_left  # asked before the move: nothing is read from the device


def weights(s: Schedule) -> tuple[torch.Tensor, ...]:
    """c1, c2, B, A, P: the posterior's weights of x_0 and x_t, its variance, abar_t and abar_{t-1}."""
    back = s.posterior_mean_coef_x0, s.posterior_mean_coef_xt, s.posterior_variance
    return *back, s.alphas_cumprod, s.alphas_cumprod_prev


def test_betas_in_single_precision_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="float64"):
        Schedule(torch.tensor([0.1, 0.2]))
