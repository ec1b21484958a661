"""Timesteps are spread evenly over the schedule; targets are the papers' formulas."""

import math
from typing import Any

import pytest
import torch

from data.errors import InputError
from train.config import Epsilon, Objective, Sample, Velocity
from train.ddpm import schedule
from train.losses import OBJECTIVES, build_criterion, build_loss, check_prediction_type, uniform_timesteps

KINDS: list[Any] = [Epsilon(), Velocity(), Sample()]
TABLE = schedule.linear(10, 0.01, 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_timestep_has_the_same_share(dtype: torch.dtype) -> None:
    uniforms = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t = uniform_timesteps(uniforms.to(dtype), TABLE)
    assert t.dtype == torch.int64
    assert torch.bincount(t, minlength=10).tolist() == [400] * 10


def test_the_borders_belong_to_the_step_above() -> None:
    uniforms = torch.arange(10, dtype=torch.float64) / 10
    assert uniform_timesteps(uniforms + 1e-12, TABLE).tolist() == list(range(10))
    assert uniform_timesteps(uniforms[1:] - 1e-12, TABLE).tolist() == list(range(9))


def test_the_last_number_below_one_stays_in_the_table() -> None:
    """As float32 a number a hair below 1 is 1, or its product with T is T."""
    hair = math.nextafter(1.0, 0.0)
    below = torch.tensor([hair], dtype=torch.float64)
    assert uniform_timesteps(below, TABLE).tolist() == [9]
    assert below.float().item() == 1.0
    assert uniform_timesteps(below.float(), TABLE).tolist() == [9]
    assert uniform_timesteps(torch.tensor([0.0]), TABLE).tolist() == [0]


@pytest.mark.parametrize("objective", KINDS, ids=lambda objective: objective.predicts)
def test_objectives_draw_all_timesteps(objective: Objective) -> None:
    uniforms = torch.tensor([0.0, 0.35, 0.999])
    assert build_loss(objective, TABLE).timesteps(uniforms).tolist() == [0, 3, 9]


def pictures(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


T = torch.tensor([0, 4, 9])


def test_epsilon_is_the_noise() -> None:
    x0, eps = pictures(0), pictures(1)
    assert torch.equal(OBJECTIVES[Epsilon().kind].target(TABLE, x0, eps, T), eps)


def test_velocity_is_its_formula() -> None:
    """v = sqrt(abar) eps - sqrt(1 - abar) x_0, with abar as the product that defines it."""
    x0, eps = pictures(0), pictures(1)
    found = OBJECTIVES[Velocity().kind].target(TABLE, x0, eps, T)
    for row, t in enumerate(T.tolist()):
        abar = math.prod(1 - (0.01 + (0.3 - 0.01) * step / 9) for step in range(t + 1))
        want = math.sqrt(abar) * eps[row] - math.sqrt(1 - abar) * x0[row]
        assert (found[row] - want).abs().max() < 1e-12


def test_sample_is_the_picture() -> None:
    x0, eps = pictures(0), pictures(1)
    assert torch.equal(OBJECTIVES[Sample().kind].target(TABLE, x0, eps, T), x0)


@pytest.mark.parametrize("objective", KINDS, ids=lambda objective: objective.predicts)
def test_losses_are_one_mean_square_a_sample(objective: Objective) -> None:
    predicted, target = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    target[1] = torch.tensor([[1.0, 2.0], [-3.0, 0.0]])
    assert build_criterion(objective, TABLE)(predicted, target, T[:2]).tolist() == [0.0, 14 / 4]


def test_a_model_goes_on_predicting_what_it_learnt() -> None:
    check_prediction_type(Epsilon(), "epsilon")
    check_prediction_type(Velocity(), "v_prediction")
    check_prediction_type(Sample(), "sample")


@pytest.mark.parametrize(
    ("objective", "prediction_type", "allowed"),
    [
        (Velocity(), "epsilon", "epsilon"),
        (Epsilon(), "v_prediction", "velocity"),
        (Epsilon(), "sample", "sample"),
        (Epsilon(), "flow_prediction", None),
    ],
)
def test_another_prediction_is_refused(objective: Objective, prediction_type: str, allowed: str | None) -> None:
    with pytest.raises(InputError) as caught:
        check_prediction_type(objective, prediction_type)
    error = caught.value
    assert (error.where, error.allowed, error.fix is None) == ("--objective.kind", allowed, allowed is not None)
    assert repr(prediction_type) in error.what and repr(objective.predicts) in error.what
