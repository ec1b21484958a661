"""The learning rate is a function of the step; AdamW is its paper's formula, in 32 bits and in 8."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from train import optim
from train.config import OptimOptions
from train.optim import learning_rate, set_learning_rate

PEAK = 3e-4


def settings(**given: object) -> OptimOptions:
    return OptimOptions.model_validate(given)


def rates(config: OptimOptions, max_steps: int) -> list[float]:
    return [learning_rate(step, config, PEAK, max_steps) for step in range(max_steps + 1)]


def test_constant_after_a_warm_up() -> None:
    found = rates(settings(warmup=4), 8)
    assert found == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, *[PEAK] * 6], rel=1e-15)


def test_no_warm_up_begins_at_the_peak() -> None:
    assert rates(settings(), 3) == [PEAK] * 4


def test_cosine_falls_to_zero_at_the_last_step() -> None:
    found = rates(settings(schedule="cosine", warmup=2), 10)
    assert found[:2] == pytest.approx([PEAK / 2, PEAK])
    assert found[2:] == pytest.approx([PEAK * math.cos(math.pi * k / 16) ** 2 for k in range(9)], abs=1e-18)
    assert found[6] == pytest.approx(PEAK / 2)
    assert found[10] == 0.0


def test_linear_falls_to_zero_at_the_last_step() -> None:
    found = rates(settings(schedule="linear", warmup=2), 10)
    assert found[2:] == pytest.approx([PEAK * (8 - k) / 8 for k in range(9)], abs=1e-18)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_it_never_rises_above_the_peak_nor_falls_below_zero(schedule: str) -> None:
    config = settings(schedule=schedule, warmup=7)
    found = [learning_rate(step, config, PEAK, 5) for step in range(40)]  # also past max_steps, and a warm-up too long
    assert all(0.0 <= rate <= PEAK for rate in found)


def test_it_remembers_nothing() -> None:
    config = settings(schedule="cosine", warmup=3)
    forwards = [learning_rate(step, config, PEAK, 20) for step in range(20)]
    backwards = [learning_rate(step, config, PEAK, 20) for step in reversed(range(20))]
    assert forwards == backwards[::-1]


def test_every_group_gets_the_rate() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def closed_form(weight: Tensor, gradients: list[Tensor], rate: float, config: OptimOptions) -> Tensor:
    """AdamW in float64. Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2."""
    weight = weight.double()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient.double() ** 2
        unbiased_mean = mean / (1 - config.beta1**step)
        unbiased_square = square / (1 - config.beta2**step)
        weight = weight - rate * config.weight_decay * weight
        weight = weight - rate * unbiased_mean / (unbiased_square.sqrt() + config.epsilon)
    return weight


def train(weight: nn.Parameter, gradients: list[Tensor], rate: float, config: OptimOptions) -> torch.optim.Optimizer:
    optimizer = optim.BUILDERS[config.kind]([weight], config)
    set_learning_rate(optimizer, rate)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return optimizer


def draws(count: int, *shape: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=draw) for _ in range(count)]


def test_adamw_is_its_formula() -> None:
    config = settings(beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.3)
    start, *gradients = draws(6, 5, 3)
    weight = nn.Parameter(start.clone())
    train(weight, gradients, 0.05, config)
    want = closed_form(start, gradients, 0.05, config)
    assert (weight.double() - want).abs().max() < 1e-6
    assert (want - start).abs().max() > 0.1


@pytest.mark.parametrize(("shape", "dtype"), [((64, 64), torch.uint8), ((63, 65), torch.float32)])
def test_only_large_tensors_are_kept_in_8_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """4096 numbers are the fewest that bitsandbytes quantises; 63 x 65 are one fewer."""
    config = settings(kind="adamw-8bit", weight_decay=0.1)
    start, *gradients = draws(4, *shape)
    weight = nn.Parameter(start.clone())
    slots = train(weight, gradients, 0.01, config).state[weight]
    assert slots["state1"].dtype == slots["state2"].dtype == dtype
    assert slots["state1"].shape == shape


def test_8_bit_adamw_follows_the_formula() -> None:
    config = settings(kind="adamw-8bit", weight_decay=0.1)
    start, *gradients = draws(4, 64, 64)
    weight = nn.Parameter(start.clone())
    train(weight, gradients, 0.01, config)
    moved, wanted = weight.detach() - start, closed_form(start, gradients, 0.01, config) - start
    assert torch.corrcoef(torch.stack([moved.flatten(), wanted.float().flatten()]))[0, 1] > 0.99
    assert (moved - wanted).abs().mean() < 0.05 * wanted.abs().mean()


@pytest.mark.parametrize("bad", [{"warmup": -1}, {"beta2": 1.0}, {"epsilon": 0.0}, {"clip_norm": 0.0}, {"kind": "sgd"}])
def test_values_that_cannot_be_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        OptimOptions.model_validate(bad)


def test_8_bit_state_lies_in_memory_as_its_weight_does() -> None:
    """bitsandbytes makes a weight contiguous at its first step; a state made before that would keep the old order."""
    weight = nn.Parameter(torch.ones(32, 16, 3, 3).to(memory_format=torch.channels_last))
    slots = train(weight, draws(1, 32, 16, 3, 3), 0.01, settings(kind="adamw-8bit")).state[weight]
    assert weight.is_contiguous()
    assert slots["state1"].stride() == slots["state2"].stride() == weight.stride()
