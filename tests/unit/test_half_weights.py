"""Weights that are rounded to bfloat16 together: every bit is that of autocast, which rounds them one by one."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.small_runs import advance, seeded_unet, small_run, trained
from train import half_weights, optim, probe
from train.half_weights import HalfWeights
from train.optim import OptimConfig
from train.skeleton import Question
from train.state import State, Task
from train.workers import OneByOne


def unet_state(folder: Path, accelerator: Accelerator, **changes: Any) -> tuple[State, Task]:
    plain: dict[str, Any] = {"shapes": [(4, 4, 4)], "adapter": {"kind": "full"}, "learning_rate": 1e-3}
    return small_run(folder, seeded_unet(), accelerator=accelerator, **{**plain, **changes})


def half_of(state: State) -> HalfWeights:
    assert isinstance(state.workers, HalfWeights)
    return state.workers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 3},
        {"memory": {"gradient_checkpointing": True}},
        {"adapter": {"kind": "full", "blocks": ["last-layers"]}},
        {"optim": {"clip_norm": 1e-3}, "ema": {"decay": 0.9}},
    ],
)
def test_the_bits_of_autocast(changes: dict[str, Any], tmp_path: Path, bf16_on_cpu: Accelerator) -> None:
    """Losses and weights after three steps."""
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for own in (True, False):
        state, task = unet_state(tmp_path, bf16_on_cpu, **changes)
        assert len(half_of(state).swaps) > 20
        state.workers = state.workers if own else OneByOne(bf16_on_cpu)
        window = advance(state, task, 3)
        found.append((torch.stack(window.losses), trained(state)))
    (losses, weights), (expected, theirs) = found
    assert torch.equal(losses, expected) and losses.isfinite().all()
    assert all(torch.equal(weights[name], theirs[name]) for name in theirs)


def test_layers_are_asked_with_copies_of_the_newest_weights(tmp_path: Path, bf16_on_cpu: Accelerator) -> None:
    """What autocast rounds is rounded; norms keep float32; every weight is asked about once."""
    state, task = unet_state(tmp_path, bf16_on_cpu)
    advance(state, task, 1)
    half, unet = half_of(state), state.plain_unet()
    before = dict(unet.named_parameters())
    with half.in_place():
        for name, weight in unet.named_parameters():
            rounds = type(unet.get_submodule(name.rpartition(".")[0])) in (nn.Linear, nn.Conv2d)
            assert weight.dtype == (torch.bfloat16 if rounds else torch.float32)
            assert torch.equal(weight, before[name].to(weight.dtype)) and weight.stride() == before[name].stride()
    assert all(weight is before[name] for name, weight in unet.named_parameters())
    assert len({id(weight) for weight in half.asked}) == len(optim.weights(state.optimizer))


def test_the_probe_leaves_nothing_behind(tmp_path: Path, bf16_on_cpu: Accelerator) -> None:
    """The step after it has the bits of one without it."""
    found = []
    for probed in (False, True):
        state, task = unet_state(tmp_path, bf16_on_cpu)
        if probed:
            build = partial(optim.build, config=OptimConfig(), joined=True)
            probe.probe(state.unet, Question(2, 4, 4, 5), bf16_on_cpu, build, half_of(state))
        found.append((torch.stack(advance(state, task, 2).norms), trained(state)))
    (norms, weights), (expected, theirs) = found
    assert torch.equal(norms, expected) and all(torch.equal(weights[name], theirs[name]) for name in theirs)


def test_after_an_error_the_weights_are_back(tmp_path: Path, bf16_on_cpu: Accelerator) -> None:
    state, task = unet_state(tmp_path, bf16_on_cpu)
    before = dict(state.plain_unet().named_parameters())

    def broken(batch: Any) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        half_of(state).backward(broken, next(task.batches(0, 1)), 2)
    assert all(weight is before[name] for name, weight in state.plain_unet().named_parameters())
    assert all(weight.grad is None for weight in before.values())


def alike(precision: str = "bf16", processes: int = 1) -> Accelerator:
    return cast(Accelerator, SimpleNamespace(mixed_precision=precision, num_processes=processes))


@pytest.mark.parametrize(
    ("accelerator", "kind", "trains_base", "expected"),
    [
        (alike(), "adamw", True, True),
        (alike("no"), "adamw", True, False),
        (alike("fp16"), "adamw", True, False),
        (alike(processes=2), "adamw", True, False),
        (alike(), "adafactor", True, False),
        (alike(), "adamw", False, False),
    ],
)
def test_where_it_is_used(accelerator: Accelerator, kind: str, trains_base: bool, expected: bool) -> None:
    network = nn.Linear(3, 3)
    config = OptimConfig.model_validate({"kind": kind})
    optimizer = optim.build(network.parameters(), config, joined=True)
    found = half_weights.suited(accelerator, network, optimizer, trains_base=trains_base)
    assert isinstance(found, HalfWeights) == expected
