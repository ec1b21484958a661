"""Out of memory in the middle of a step: the same weights as if there had been enough."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.dataset import Batch, BatchLayout
from data.errors import InputError
from tests.unit.test_loop import prepare, weights
from train import checkpoint, device
from train.losses import DenoisingLoss
from train.metrics import MetricsLogger
from train.trainer import fit


def batch_of(size: int) -> Batch:
    rows = torch.arange(float(size))
    column = rows[:, None]
    return Batch(column, column, column, column, rows.double(), [str(i) for i in range(size)], [False] * size)


@pytest.mark.parametrize(("size", "count", "sizes"), [(4, 1, [4]), (4, 2, [2, 2]), (5, 2, [3, 2]), (3, 4, [1, 1, 1])])
def test_pieces_are_the_batch_in_order(size: int, count: int, sizes: list[int]) -> None:
    parts = device.split_batch(batch_of(size), count)
    assert [len(part.sample_ids) for part in parts] == sizes
    assert torch.cat([part.latents for part in parts]).flatten().tolist() == list(range(size))
    assert torch.cat([part.timestep_uniforms for part in parts]).tolist() == list(range(size))
    assert [name for part in parts for name in part.sample_ids] == [str(i) for i in range(size)]


def injected(monkeypatch: pytest.MonkeyPatch, *, fits: int, from_step: int) -> list[int]:
    """Batches of more than `fits` samples run out of memory after their backward pass has begun."""
    tried: list[int] = []
    original = DenoisingLoss.__call__

    def limited(self: DenoisingLoss, denoiser: Any, batch: Batch, teacher: Any = None) -> Tensor:
        tried.append(len(batch.sample_ids))
        losses = original(self, denoiser, batch, teacher)
        if len(tried) > from_step and len(batch.sample_ids) > fits:
            losses.mean().backward()  # half of the work is done when it happens
            raise torch.OutOfMemoryError("injected")
        return losses

    monkeypatch.setattr(DenoisingLoss, "__call__", limited)
    return tried


@pytest.mark.parametrize(("batch", "accumulate", "fits"), [(4, 1, 1), (4, 2, 1), (3, 2, 2)])
def test_out_of_memory_ends_in_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    batch: int,
    accumulate: int,
    fits: int,
) -> None:
    """Pieces of unequal sizes among them, which must not count alike."""
    whole, whole_task = prepare(tmp_path / "whole", batch_size=batch, accumulate=accumulate)
    assert fit(whole, whole_task, MetricsLogger())
    tried = injected(monkeypatch, fits=fits, from_step=3)
    cut, task = prepare(tmp_path / "cut", batch_size=batch, accumulate=accumulate)
    assert fit(cut, task, MetricsLogger())
    assert tried[-1] == 1 and cut.splits == 4 // fits
    for ours, theirs in zip(weights(cut), weights(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert capsys.readouterr().out.count("out of memory: ") == 3 - fits, "said once for each halving"


def test_a_resumed_run_keeps_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    injected(monkeypatch, fits=2, from_step=0)
    state, task = prepare(tmp_path, max_steps=2)
    assert fit(state, task, MetricsLogger())
    resumed, task = prepare(tmp_path)
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, "this run")
    assert kept is not None
    resumed.load(kept, task.checkpoints)
    assert resumed.splits == 2


def test_what_does_not_fit_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    injected(monkeypatch, fits=0, from_step=0)
    state, task = prepare(tmp_path)
    with pytest.raises(InputError, match="a single image does not fit"):
        fit(state, task, MetricsLogger())


def test_several_processes_are_told_which_batch_is_the_same() -> None:
    with pytest.raises(InputError, match="--batch-size 4 --accumulate 6: the same batch"):
        device.split_further(1, BatchLayout(8, 3, processes=2))


def test_no_room_for_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, task = prepare(tmp_path)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(state.optimizer, "step", full)
    with pytest.raises(InputError, match="the optimiser's state does not fit"):
        fit(state, task, MetricsLogger())
