"""Threads that share a micro-batch: the same gradients, losses and masks as one thread, and the same bits each time."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.small_runs import Toy, advance, equal, seeded_unet, small_run, trained, unet_run
from train import loop, workers
from train.adapters import base as adapters
from train.loop import State, Task
from train.workers import OneByOne, SideBySide


def side_by_side(state: State, count: int = 2) -> State:
    state.workers = SideBySide(count, count, list(adapters.trainable(state.plain_unet()).values()))
    return state


def step_gradients(state: State, task: Task) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batches = task.batches(0, 1)
    losses = loop.gradients(state, task, [next(batches) for _ in range(task.layout.accumulate)])
    weights = adapters.trainable(state.plain_unet())
    return losses, {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference of two gradients, in parts of the largest number of the second."""
    assert found.keys() == expected.keys() and expected
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((found[name] - gradient).abs().max()) for name, gradient in expected.items()) / largest


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_of_a_step_is_that_of_one_thread(tmp_path: Path, adapter: str, accumulate: int) -> None:
    sizes: dict[str, Any] = {"batch_size": 3, "accumulate": accumulate}
    losses, alone = step_gradients(*unet_run(tmp_path, adapter, **sizes))
    state, task = unet_run(tmp_path, adapter, **sizes)
    shared_losses, shared = step_gradients(side_by_side(state), task)
    assert torch.allclose(losses, shared_losses, rtol=1e-5)
    assert furthest(shared, alone) < 1e-5


def test_the_same_machine_repeats_its_bits(tmp_path: Path) -> None:
    runs = [unet_run(tmp_path, "lora", batch_size=4) for _ in range(2)]
    found = [(advance(side_by_side(state, 4), task, 3), trained(state))[1] for state, task in runs]
    assert equal(*found)


def test_a_dropped_input_is_that_of_its_position(tmp_path: Path) -> None:
    changes: Any = {"adapter": {"kind": "lora", "dropout": 0.5}, "batch_size": 4, "shapes": [(4, 4, 4)]}
    _, alone = step_gradients(*small_run(tmp_path, seeded_unet(), **changes))
    state, task = small_run(tmp_path, seeded_unet(), **changes)
    _, shared = step_gradients(side_by_side(state), task)
    assert furthest(shared, alone) < 1e-5


def test_out_of_memory_in_a_thread_cuts_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, task = small_run(tmp_path, Toy(), batch_size=4)
    _, expected = step_gradients(side_by_side(whole), task)
    sample_losses = loop.sample_losses

    def limited(denoiser: Any, task: Task, batch: Any, **others: Any) -> torch.Tensor:
        if len(batch.sample_ids) > 1:
            raise torch.OutOfMemoryError("injected")
        return sample_losses(denoiser, task, batch, **others)

    monkeypatch.setattr(loop, "sample_losses", limited)
    state, task = small_run(tmp_path, Toy(), batch_size=4)
    _, found = step_gradients(side_by_side(state), task)
    assert state.pieces == 2
    assert furthest(found, expected) < 1e-5


def test_weights_that_nothing_asks_have_no_gradient(tmp_path: Path) -> None:
    state, task = small_run(tmp_path, Toy(), batch_size=2)
    unasked = nn.Parameter(torch.zeros(3))
    state.workers = SideBySide(2, 2, [*state.plain_unet().parameters(), unasked])
    step_gradients(state, task)
    assert unasked.grad is None


def test_a_picture_is_measured_as_in_one_thread(tmp_path: Path) -> None:
    state, task = unet_run(tmp_path, "lora", shapes=[(4, 4, 4), (4, 4, 8)])
    alone = task.validator.measure(state.denoiser, state.accelerator.device)
    side_by_side(state)
    shared = task.validator.measure(state.denoiser, state.accelerator.device, state.crew.each)
    assert np.allclose(alone["held-out"].values, shared["held-out"].values, rtol=1e-5)


def machine(kind: str = "cpu", processes: int = 1, precision: str = "no") -> Accelerator:
    facts = {"device": torch.device(kind), "num_processes": processes, "mixed_precision": precision}
    return cast(Accelerator, SimpleNamespace(**facts))


@pytest.mark.parametrize(
    ("accelerator", "batch_size", "compiled", "weights"),
    [
        (machine("cuda"), 8, False, 10),
        (machine(processes=2), 8, False, 10),
        (machine(precision="bf16"), 8, False, 10),
        (machine(), 3, False, 10),
        (machine(), 8, True, 10),
        (machine(), 8, False, workers.SMALL + 1),
    ],
)
def test_elsewhere_one_thing_is_done_after_the_other(
    monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator, batch_size: int, compiled: bool, weights: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    network = nn.ParameterList([nn.Parameter(torch.empty(weights, device="meta"))])
    assert isinstance(workers.suited(accelerator, network, batch_size, compiled=compiled), OneByOne)


@pytest.mark.parametrize(("threads", "batch_size", "count"), [(2, 8, 2), (16, 8, 4), (3, 5, 2)])
def test_as_many_as_threads_and_pictures_allow(
    monkeypatch: pytest.MonkeyPatch, threads: int, batch_size: int, count: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    crew = workers.suited(machine(), Toy(), batch_size, compiled=False)
    assert isinstance(crew, SideBySide) and (crew.count, crew.threads) == (count, threads)


def test_parts_share_the_threads(tmp_path: Path) -> None:
    crew = SideBySide(2, 6, [])
    assert list(crew.each(lambda _: torch.get_num_threads(), range(4))) == [3, 3, 3, 3]
