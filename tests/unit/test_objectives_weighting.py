"""Weights of timesteps against formulas in plain numbers, against the conversions themselves, and against diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from data import rng
from data.errors import InputError
from train.config import Epsilon, Objective, Sample, Velocity
from train.ddpm import diffusion, losses
from train.ddpm import schedule as schedules
from train.ddpm.schedule import Schedule
from train.losses import build_criterion

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EVERY = {name: schedules.make_schedule(name, 1000) for name in schedules.SCHEDULES if name != "quadratic"}
EVERY |= {f"{name}, rescaled": schedules.zero_terminal_snr(schedule) for name, schedule in EVERY.items()}
FORMS = ("sample", "epsilon", "v_prediction")


def on_x0(name: str, snr: float, gamma: float) -> float:
    """The weight on the error of x_0, as the papers write it."""
    return min(snr, gamma) if name == "min-snr" else snr * gamma / (snr + gamma)


def expected(name: str, form: str, snr: float, gamma: float) -> float:
    """eps: w / SNR, in the limit 1 at SNR 0; v: w / (SNR + 1)."""
    w = on_x0(name, snr, gamma)
    if form == "epsilon":
        return w / snr if snr > 0 else 1.0
    return w / (snr + 1) if form == "v_prediction" else w


@pytest.mark.parametrize("gamma", [0.3, 1.0, 5.0, 1e3])
@pytest.mark.parametrize("name", losses.WEIGHTINGS)
@pytest.mark.parametrize("curve", EVERY)
def test_weights_are_the_papers_at_every_timestep(curve: str, name: str, gamma: float) -> None:
    alphas = [1.0 - beta for beta in EVERY[curve].betas.tolist()]
    for form in FORMS:
        found = losses.timestep_weights(name, EVERY[curve], gamma, form)
        assert found.dtype == torch.float64 and found.shape == (1000,)
        assert bool(found.isfinite().all()) and bool((found >= 0).all())
        abar = 1.0
        for t, weight in enumerate(found.tolist()):
            abar *= alphas[t]
            assert weight == pytest.approx(expected(name, form, abar / (1 - abar), gamma), rel=1e-9, abs=1e-300), t


@pytest.mark.parametrize("name", losses.WEIGHTINGS)
def test_zero_terminal_snr_has_its_limits(name: str) -> None:
    rescaled = EVERY["scaled_linear, rescaled"]
    last = {form: losses.timestep_weights(name, rescaled, 5.0, form)[-1].item() for form in FORMS}
    assert last == {"sample": 0.0, "epsilon": 1.0, "v_prediction": 0.0}


def test_hardly_any_noise_is_finite_too() -> None:
    """A beta so small that abar_1 is 1 as a float64: SNR is infinite, its weights are not."""
    schedule = Schedule(torch.tensor([1e-20, 0.5, 1.0], dtype=torch.float64))
    assert schedule.snr[0].isinf()
    for name in losses.WEIGHTINGS:
        first = {form: losses.timestep_weights(name, schedule, 5.0, form)[0].item() for form in FORMS}
        assert first == {"sample": 5.0, "epsilon": 0.0, "v_prediction": 0.0}


@pytest.mark.parametrize("name", losses.WEIGHTINGS)
def test_the_three_forms_are_one_objective(name: str) -> None:
    """The same wrong answer, said in x_0, eps and v by the process' own conversions, costs the same."""
    schedule, t = schedules.from_diffusers(SD), torch.arange(1000)
    x0, eps, wrong = (rng.normal((1000, 1, 2, 2), "weighting", part).double() for part in ("x0", "eps", "wrong"))
    xt = diffusion.add_noise(schedule, x0, eps, t)
    targets = {"sample": x0, "epsilon": eps, "v_prediction": diffusion.velocity(schedule, x0, eps, t)}
    wrong_eps = diffusion.eps_from_x0(schedule, xt, wrong, t)
    said = {"sample": wrong, "epsilon": wrong_eps, "v_prediction": diffusion.velocity(schedule, wrong, wrong_eps, t)}
    costs = {}
    for objective in (Sample, Epsilon, Velocity):
        form = objective.predicts
        criterion = build_criterion(objective.model_validate({"weighting": name, "gamma": 5.0}), schedule)
        costs[form] = criterion(said[form], targets[form], t)
    torch.testing.assert_close(costs["epsilon"], costs["sample"], rtol=1e-9, atol=0)
    torch.testing.assert_close(costs["v_prediction"], costs["sample"], rtol=1e-9, atol=0)


def by_diffusers(snr: Tensor, form: str, gamma: float) -> Tensor:
    """As diffusers' examples/text_to_image writes it."""
    weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    return weights / snr if form == "epsilon" else weights / (snr + 1)


@pytest.mark.parametrize("form", ["epsilon", "v_prediction"])
def test_min_snr_is_that_of_diffusers(form: str) -> None:
    scheduler, t = DDPMScheduler.from_config(SD), torch.arange(1000)
    snr = compute_snr(scheduler, t)
    ours = schedules.from_diffusers(SD)
    torch.testing.assert_close(ours.snr.float(), snr, rtol=1e-4, atol=0)
    found = losses.timestep_weights("min-snr", ours, 5.0, form).float()
    torch.testing.assert_close(found, by_diffusers(snr, form, 5.0), rtol=1e-4, atol=0)


def test_tables_come_from_the_final_alphas() -> None:
    """Taken before the rescaling, as happened elsewhere, v weights are 1.15 and 4.8 times too large at 500 and 900."""
    before = schedules.from_diffusers(SD)
    final = schedules.from_diffusers(SD | {"rescale_betas_zero_snr": True})
    objective = Velocity(weighting="min-snr", zero_terminal_snr=True)
    ones, t = torch.ones(1000, 1, dtype=torch.float64), torch.arange(1000)
    found = build_criterion(objective, final)(ones, 0 * ones, t)
    assert torch.equal(found, losses.timestep_weights("min-snr", final, 5.0, "v_prediction"))
    early = losses.timestep_weights("min-snr", before, 5.0, "v_prediction") / found
    assert early[500].item() == pytest.approx(1.15, abs=0.01)
    assert early[900].item() == pytest.approx(4.8, abs=0.05)


@pytest.mark.parametrize(("name", "gamma"), [("min-snr", 5.0), ("soft-min-snr", 4.0)])
@pytest.mark.parametrize("objective", [Epsilon, Velocity, Sample])
def test_gamma_is_the_papers_unless_said(objective: type[Objective], name: str, gamma: float) -> None:
    schedule, t = EVERY["linear"], torch.tensor([0, 100, 999])
    ones = torch.ones(3, 4)
    found = build_criterion(objective.model_validate({"weighting": name}), schedule)(ones, 0 * ones, t)
    abar = schedule.alphas_cumprod[t]
    wanted = [expected(name, objective.predicts, a / (1 - a), gamma) for a in abar.tolist()]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)
    assert found.dtype == torch.float32


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="unknown weighting 'min_snr', did you mean 'min-snr'"):
        losses.timestep_weights("min_snr", EVERY["linear"], 5.0, "epsilon")
    with pytest.raises(InputError, match="unknown prediction type 'v'; allowed: sample, epsilon, v_prediction"):
        losses.timestep_weights("min-snr", EVERY["linear"], 5.0, "v")


def test_soft_is_half_of_hard_at_gamma_and_meets_it_far_away() -> None:
    abar = torch.tensor([1 - 1e-9, 5 / 6, 1e-9], dtype=torch.float64)  # SNR 1e9, 5, 1e-9
    alphas = torch.cat([abar[:1], abar[1:] / abar[:-1]])
    schedule = Schedule(1.0 - alphas)
    soft, hard = (losses.timestep_weights(name, schedule, 5.0, "sample") for name in ("soft-min-snr", "min-snr"))
    assert (soft / hard).tolist() == pytest.approx([1.0, 0.5, 1.0], rel=1e-7)
    assert math.isclose(hard[1].item(), 5.0, rel_tol=1e-9)
