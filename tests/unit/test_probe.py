"""The probe times real steps and leaves no trace."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.tiny import tiny_unet
from train import adapters, estimate, optim
from train.config import Config, LoraOptions
from train.flops import UnetInput


def test_the_probe_changes_no_weight_gradient_generator_or_optimiser_state() -> None:
    unet: Any = tiny_unet(16)
    adapters.inject(unet, LoraOptions(rank=2), 0)
    unet.train()
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer, accelerator = optim.build_optimizer(trained, Config().optim), Accelerator(cpu=True)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    generator = torch.get_rng_state()
    timing = estimate.probe_steps(unet, UnetInput(2, 16, 16), accelerator, Config())
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


def test_gradients_are_cleared_even_if_the_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    unet: Any = tiny_unet(16)
    adapters.inject(unet, LoraOptions(rank=2), 0)

    def broken(*_: Any) -> torch.optim.Optimizer:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(optim, "build_optimizer", broken)
    accelerator = Accelerator(cpu=True)
    with pytest.raises(torch.OutOfMemoryError):
        estimate.probe_steps(unet, UnetInput(1, 8, 8), accelerator, Config())
    assert all(weight.grad is None for weight in unet.parameters())
