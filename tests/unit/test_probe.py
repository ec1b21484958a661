"""The probe times real steps and leaves no trace."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.tiny import tiny_unet
from train import adapters, estimate, optim
from train.config import Config, LoraOptions, OptimOptions
from train.estimate import UnetInput


def adamw(weights: Any) -> torch.optim.Optimizer:
    return optim.adamw(weights, OptimOptions())


def test_it_leaves_weights_gradients_generators_and_optimiser_as_they_were() -> None:
    unet: Any = tiny_unet(16)
    adapters.inject(unet, LoraOptions(rank=2), 0)
    unet.train()
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer, accelerator = adamw(trained), Accelerator(cpu=True)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    generator = torch.get_rng_state()
    timing = estimate.probe_steps(unet, UnetInput(2, 16, 16), accelerator, adamw)
    assert timing.steps == estimate.PROBE_STEPS
    assert timing.micro > 0 and timing.update > 0
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    assert all(weight.grad is None for weight in unet.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not optimizer.state and unet.training


def test_a_long_step_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    assert estimate.timed(lambda: None, torch.device("cpu")) == [20.0]


def test_gradients_go_even_if_the_probe_fails() -> None:
    unet: Any = tiny_unet(16)
    adapters.inject(unet, LoraOptions(rank=2), 0)

    def broken(weights: Any) -> torch.optim.Optimizer:
        raise torch.OutOfMemoryError("no room")

    accelerator = Accelerator(cpu=True)
    with pytest.raises(torch.OutOfMemoryError):
        estimate.probe_steps(unet, UnetInput(1, 8, 8), accelerator, broken)
    assert all(weight.grad is None for weight in unet.parameters())


def test_the_flag_is_a_switch() -> None:
    assert Config().probe
