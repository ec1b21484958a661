"""What the steps leave behind: numbers stay on the device until a line is due, for reading them makes it wait."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from data.dataset import Layout
from data.errors import InputError
from train import bands, checkpoint
from train.report import Report, none_if_infinite
from train.state import State, Task


@dataclass
class Window:
    """Steps whose numbers still lie on the device: reading them at every step would make the device wait."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # seconds for batches
    sample_ids: list[list[str]] = field(default_factory=list)
    bands: list[Tensor] = field(default_factory=list)  # (2, BANDS) each, see train/bands.py
    began: float = 0.0  # seconds of a clock, when the window's first step began

    def clear(self) -> None:
        for values in (self.losses, self.norms, self.rates, self.waits, self.sample_ids, self.bands):
            values.clear()


def write_down(state: State, task: Task, window: Window, report: Report) -> None:
    """Read the window's numbers, averaged over all processes, and empty it. A loss that is not finite ends the run:
    InputError with the samples; no checkpoint has been written since.
    """
    if not window.losses:
        return
    losses = mean_over_processes(state, torch.stack(window.losses)).tolist()
    seconds = time.perf_counter() - window.began  # reading the losses waited for the device
    norms = torch.stack(window.norms).tolist()
    first = state.step - len(losses) + 1
    lines: list[dict[str, Any]] = [
        {"step": first + i, "loss": loss, "learning_rate": rate, "gradient_norm": none_if_infinite(norm)}
        for i, (loss, norm, rate) in enumerate(zip(losses, norms, window.rates, strict=True))
    ]
    if task.config.logging.sample_ids:
        for line, samples in zip(lines, in_slot_order(window.sample_ids, task.layout), strict=True):
            line["samples"] = samples
    report.write([*lines, window_facts(state, task, window, seconds)])
    report.advance(0, loss=f"{sum(losses) / len(losses):.4f}")
    refuse_infinite(state, task, window, losses, norms)
    # a fused optimiser skips on the device, which accelerate's step_was_skipped does not see; the norm tells
    skipped = sum(not math.isfinite(norm) for norm in norms)
    if skipped:
        report.say(f"{skipped} of the last {len(losses)} steps overflowed in fp16 and were left out by the scaler")
    window.clear()


def window_facts(state: State, task: Task, window: Window, seconds: float) -> dict[str, Any]:
    """What holds for the window's steps together: the speed of training alone, the share of the time that it waited for
    data, and the loss in each band of timesteps over all processes (null where no sample fell).
    """
    sums, counts = sum_over_processes(state, torch.stack(window.bands).sum(0)).tolist()
    return {
        "step": state.step,
        "window": len(window.losses),
        **task.speed.of(len(window.losses) * task.layout.global_batch, seconds),
        "data_wait": sum(window.waits) / seconds,
        "loss_by_timestep": bands.means(sums, counts, task.schedule.steps),
    }


def sum_over_processes(state: State, values: Tensor) -> Tensor:
    reduced = state.accelerator.reduce(values, "sum")
    assert isinstance(reduced, Tensor)
    return reduced


def mean_over_processes(state: State, values: Tensor) -> Tensor:
    reduced = state.accelerator.reduce(values, "mean")
    assert isinstance(reduced, Tensor)
    return reduced


def in_slot_order(steps: list[list[str]], layout: Layout) -> list[list[str]]:
    """The samples of each step's global batch, gathered from all processes, as one process would have had them."""
    ranks: list[list[list[str]]] = [steps] if layout.processes == 1 else gather_object([steps])
    size = layout.batch_size
    micros = [range(start, start + size) for start in range(0, size * layout.accumulate, size)]
    return [[rank[step][row] for rows in micros for rank in ranks for row in rows] for step in range(len(steps))]


class Diverged(InputError):
    """The loss or its gradient is no number any more."""


def refuse_infinite(state: State, task: Task, window: Window, losses: list[float], norms: list[float]) -> None:
    """Raises Diverged at the first step whose loss is not finite; or whose gradient, if no scaler left that step out:
    the weights are lost then, though the loss of the next step is the first to show it.
    """
    scaled = state.accelerator.scaler is not None
    for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if math.isfinite(loss) and (scaled or math.isfinite(norm)):
            continue
        what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {norm}"
        ids = ", ".join(dict.fromkeys(in_slot_order(window.sample_ids, task.layout)[i]))
        step = state.step - len(losses) + 1 + i
        raise Diverged(f"{what} at step {step}, on {ids}", where="training", fix=f"{last_good(task)} {LOWER}")


LOWER = "The same command with a lower --learning-rate starts another run."


def refuse_infinite_looks(means: Mapping[str, float], step: int, task: Task) -> None:
    """Raises Diverged if a side's loss at fixed noise is not finite: the weights would be no use, and no number says
    when to stop.
    """
    for side, mean in means.items():
        if not math.isfinite(mean):
            what = f"the loss of {side} pictures at fixed noise is {mean} after step {step}"
            raise Diverged(what, where="validation", fix=f"{last_good(task)} {LOWER}")


def last_good(task: Task) -> str:
    """Which checkpoint is from before: none has been written since."""
    kept = checkpoint.steps(task.checkpoints)
    return f"The last good checkpoint is {kept[-1]}." if kept else "No checkpoint had been written yet."
