"""Stopped, saved, read back and continued: every optimiser ends in the bits of a run that was never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from data.errors import InputError
from tests.small_runs import Toy, advance, equal, seeded_unet, small_run, trained
from train import checkpoint, optim, trainer
from train.trainer import TrainContext, TrainState

KINDS = sorted(optim.BUILDERS)
EMA = {"decay": 0.9}


def settings(kind: str, **more: Any) -> dict[str, Any]:
    rate = 1.0 if kind == "prodigy" else 1e-3
    return {"learning_rate": rate, "optim": {"kind": kind, "warmup": 3, "weight_decay": 0.1}, "ema": EMA, **more}


def reopened(folder: Path, network: Any, **changes: Any) -> tuple[TrainState, TrainContext]:
    """The run as another process would find it."""
    state, task = small_run(folder, network, **changes)
    kept, skipped = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None and not skipped
    state.load(kept, task.checkpoints)
    return state, task


def everything(state: TrainState) -> dict[str, Any]:
    return {"weights": trained(state), "optimizer": state.optimizer.state_dict(), "ema": state.ema.state()}


@pytest.mark.parametrize("kind", KINDS)
def test_twice_resumed_toy(kind: str, tmp_path: Path) -> None:
    """With a convolution in channels-last, whose moments a file holds in another order."""
    whole, task = small_run(tmp_path, Toy(), **settings(kind), accumulate=2)
    expected = advance(whole, task, 6)
    parts, task = small_run(tmp_path, Toy(), **settings(kind), accumulate=2)
    losses = []
    for session, steps in enumerate((2, 1, 3)):
        if session:
            parts, task = reopened(tmp_path, Toy(), **settings(kind), accumulate=2)
        losses += advance(parts, task, steps).losses
        parts.save(task.checkpoints, task.identity)
    assert torch.equal(torch.stack(losses), torch.stack(expected.losses))
    assert equal(everything(parts), everything(whole))
    start = dict(Toy().named_parameters())
    assert not any(torch.equal(start[name], weight) for name, weight in trained(whole).items())


@pytest.mark.parametrize(
    ("adapter", "kind"), [*(("lora", kind) for kind in KINDS), ("full", "adamw-8bit"), ("full", "schedule-free")]
)
def test_resumed_unet(adapter: str, kind: str, tmp_path: Path) -> None:
    """With validation before every step, for which other weights are put into the network: it leaves no trace."""
    changes = settings(kind, adapter={"kind": adapter}, batch_size=1, shapes=[(4, 4, 4)])
    whole, task = small_run(tmp_path / "whole", seeded_unet(), **changes)
    expected = advance(whole, task, 4)
    parts, task = small_run(tmp_path, seeded_unet(), **changes)
    window = trainer.MetricBuffer()
    for session in range(2):
        if session:
            parts, task = reopened(tmp_path, seeded_unet(), **changes)
        batches = task.batches(parts.step, 4)
        for _ in range(2):
            with parts.evaluation_weights():
                task.validator.measure(parts.denoiser, parts.accelerator.device)
            trainer.train_step(parts, task, batches, window)
        parts.save(task.checkpoints, task.identity)
    assert torch.equal(torch.stack(window.losses), torch.stack(expected.losses))
    assert equal(everything(parts), everything(whole))


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_resumed_in_half_precision(adapter: str, tmp_path: Path, bf16_on_cpu: Accelerator) -> None:
    changes = settings("adamw", adapter={"kind": adapter}, shapes=[(4, 4, 4)], accelerator=bf16_on_cpu)
    whole, task = small_run(tmp_path / "whole", seeded_unet(), **changes)
    expected = advance(whole, task, 4)
    parts, task = small_run(tmp_path, seeded_unet(), **changes)
    losses = advance(parts, task, 2).losses
    parts.save(task.checkpoints, task.identity)
    parts, task = reopened(tmp_path, seeded_unet(), **changes)
    losses += advance(parts, task, 2).losses
    assert torch.equal(torch.stack(losses), torch.stack(expected.losses))
    assert equal(everything(parts), everything(whole))


@pytest.mark.parametrize("forget", ["optimizer", "ema"])
def test_it_would_be_seen(forget: str, tmp_path: Path) -> None:
    """The tests above can fail: without the optimiser's state, or the average's, the end is another."""
    whole, task = small_run(tmp_path, Toy(), **settings("schedule-free"))
    advance(whole, task, 2)
    whole.save(task.checkpoints, task.identity)
    advance(whole, task, 2)
    parts, task = small_run(tmp_path, Toy(), **settings("schedule-free"))
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None
    before = everything(parts)
    parts.load(kept, task.checkpoints)
    if forget == "optimizer":
        parts.optimizer.load_state_dict(before["optimizer"])
    else:
        parts.ema.load_state(before["ema"], tmp_path)
    advance(parts, task, 2)
    assert not equal(everything(parts)["weights" if forget == "optimizer" else "ema"], everything(whole)["weights"])
    assert not equal(everything(parts), everything(whole))


def test_a_checkpoint_of_before_there_were_averages(tmp_path: Path) -> None:
    """It has no ema.safetensors: it loads into a run without one, and is refused by name by a run with one."""
    plain, task = small_run(tmp_path, Toy())
    advance(plain, task, 1)
    plain.save(task.checkpoints, task.identity)
    (folder,) = checkpoint.list_checkpoints(task.checkpoints)
    assert not (folder / "ema.safetensors").exists()
    again, _ = reopened(tmp_path, Toy())
    assert equal(everything(again), everything(plain))
    averaged, _ = small_run(tmp_path, Toy(), ema=EMA)
    with pytest.raises(InputError, match=r"checkpoints: the checkpoint holds no average of the weights"):
        averaged.load(checkpoint.load_checkpoint(folder, task.identity), task.checkpoints)


def test_the_average_is_sealed_like_the_rest(tmp_path: Path) -> None:
    state, task = small_run(tmp_path, Toy(), ema=EMA)
    advance(state, task, 1)
    state.save(task.checkpoints, task.identity)
    (folder,) = checkpoint.list_checkpoints(task.checkpoints)
    content = bytearray((folder / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "ema.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged checkpoint \(ema.safetensors changed since it was written\)"):
        checkpoint.load_checkpoint(folder, task.identity)
    (folder / "ema.safetensors").unlink()
    with pytest.raises(InputError, match=r"torn checkpoint \(No such file or directory\)"):
        checkpoint.load_checkpoint(folder, task.identity)
