"""A run's state into a checkpoint and back, bit for bit."""

from __future__ import annotations

from pathlib import Path

from train import checkpoint
from train.adapters import base as adapters
from train.checkpoint import Checkpoint
from train.state import State, Task
from train.stopping import Progress


def save(state: State, task: Task) -> None:
    """Keep a checkpoint, then drop the oldest, but never the best one."""
    if state.accelerator.is_main_process:
        scaler = state.accelerator.scaler
        kept = Checkpoint(
            step=state.step,
            weights=adapters.state(state.plain_unet()),
            optimizer=state.optimizer.state_dict(),
            extra={
                "scaler": scaler.state_dict() if scaler is not None else None,
                "pieces": state.pieces,
                "progress": state.progress.to_json(),
            },
            average=state.ema.state(),
        )
        checkpoint.save(task.checkpoints, kept, task.identity)
        best = state.progress.best
        checkpoint.prune(task.checkpoints, task.config.checkpoints.keep, spare=[best.step] if best else [])
    state.accelerator.wait_for_everyone()


def restore(state: State, kept: Checkpoint, where: Path) -> None:
    """Go on from a checkpoint: bit for bit the state in which it was saved."""
    adapters.load_state(state.plain_unet(), kept.weights, where)
    state.optimizer.load_state_dict(dict(kept.optimizer))
    state.ema.load_state(kept.average, where)
    if state.accelerator.scaler is not None and kept.extra["scaler"]:
        state.accelerator.scaler.load_state_dict(dict(kept.extra["scaler"]))
    state.progress = Progress.from_json(kept.extra.get("progress"))
    state.step, state.pieces = kept.step, kept.extra.get("pieces", 1)
