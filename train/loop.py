"""The page to read first: step() is the mathematics, fit() says when to look, save and write down.

noise the latents -> ask the network -> compare with the target -> average over the global batch -> clip -> update
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from data.dataset import Layout
from data.errors import InputError
from data.prefetch import InTurn
from data.schema import Batch
from train import checkpoint, optim, pieces
from train.adapters import base as adapters
from train.adapters import dropout
from train.checkpoint import Checkpoint
from train.config import Config
from train.ddpm import process
from train.ddpm.criteria import Criterion
from train.ddpm.schedule import Schedule
from train.denoiser import Denoiser
from train.ema import Average, Off
from train.objectives import Objective
from train.report import Report
from train.signals import launcher, stop_signal
from train.validation import Losses, Validator, paired_difference


@dataclass
class State:
    """All that changes while a run trains."""

    step: int  # optimiser steps done
    unet: nn.Module  # as accelerate wrapped it
    optimizer: Any  # accelerate's, around the one of train/optim.py
    accelerator: Accelerator
    ema: Average = field(default_factory=Off)  # of the trained weights, or none
    pieces: int = 1  # that a micro-batch is cut into, since memory ran out

    def plain_unet(self) -> Any:
        return self.accelerator.unwrap_model(self.unet, keep_torch_compile=False)

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.unet)


@dataclass(frozen=True)
class Task:
    """All that does not change while a run trains."""

    config: Config
    layout: Layout
    objective: Objective
    schedule: Schedule  # on the device
    batches: Callable[[int, int], InTurn[Batch]]  # micro-batches of the steps [start, stop)
    validator: Validator
    checkpoints: Path
    identity: str
    base_losses: dict[str, Losses] | None = None  # of the untrained network, if an earlier session measured them

    @cached_property
    def criterion(self) -> Criterion:
        """The training loss, with its tables made from the final schedule, once."""
        return self.objective.criterion(self.schedule)


@dataclass
class Window:
    """Steps whose numbers still lie on the device: reading them at every step would make the device wait."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # seconds for batches
    sample_ids: list[list[str]] = field(default_factory=list)

    def clear(self) -> None:
        for values in (self.losses, self.norms, self.rates, self.waits, self.sample_ids):
            values.clear()


@dataclass
class LookBack:
    """The untrained network's validation losses, measured before the first step."""

    base: dict[str, Losses] | None


def step(state: State, task: Task, batches: InTurn[Batch], window: Window) -> None:
    """One optimiser step: `accumulate` micro-batches, whose gradients add up to the mean over the global batch.

    The learning rate is a function of the step. Gradients are unscaled before they are clipped by their global norm; a
    step whose scaled gradients overflowed in fp16 is left out by the scaler.
    """
    optimizer, accelerator, layout = state.optimizer, state.accelerator, task.layout
    rate = optim.learning_rate(state.step, task.config.optim, task.config.learning_rate, task.config.max_steps)
    optim.set_learning_rate(optimizer, rate)
    waited = batches.waited
    micro_batches = [next(batches) for _ in range(layout.accumulate)]
    total = gradients(state, task, micro_batches)
    norm = accelerator.clip_grad_norm_(optim.weights(optimizer), task.config.optim.clip_norm)
    with pieces.room_for_the_optimizer():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    norm = torch.as_tensor(norm).detach()
    state.ema.update(norm)
    state.step += 1
    window.losses.append(total)
    window.norms.append(norm)
    window.rates.append(rate)
    window.waits.append(batches.waited - waited)
    window.sample_ids.append([sample_id for batch in micro_batches for sample_id in batch.sample_ids])


def gradients(state: State, task: Task, micro_batches: Sequence[Batch]) -> Tensor:
    """Leave the gradient of the mean loss in the weights; returns that loss. Where memory runs out, the micro-batches
    are cut into pieces, from then on: the same sum in another order. Raises InputError when single samples do not fit.
    """
    while True:
        total = try_gradients(state, task, micro_batches)
        if total is not None:
            return total
        state.optimizer.zero_grad(set_to_none=True)  # some of its weights may have theirs already
        state.pieces = pieces.more(state.pieces, task.layout)


def try_gradients(state: State, task: Task, micro_batches: Sequence[Batch]) -> Tensor | None:
    """None if memory ran out. What lay in it is free again only after this function has returned."""
    layout, accelerator = task.layout, state.accelerator
    parts = [part for batch in micro_batches for part in pieces.of(batch, state.pieces)]
    total = torch.zeros((), device=accelerator.device)
    try:
        for batch in parts:
            is_last = batch is parts[-1]
            with nullcontext() if is_last else accelerator.no_sync(state.unet):
                # data-parallel training averages over processes, so each divides by its own share
                loss = sample_losses(state.denoiser, task, batch).sum() / (layout.batch_size * layout.accumulate)
                accelerator.backward(loss)
            total += loss.detach()
    except torch.OutOfMemoryError:
        return None
    return total


def sample_losses(denoiser: Denoiser, task: Task, batch: Batch) -> Tensor:
    """(B,) the error of each sample: x_t from q(x_t | x_0), the network's answer, the objective's criterion."""
    t = task.objective.timesteps(batch.timestep_uniforms, task.schedule)
    noisy = process.add_noise(task.schedule, batch.latents, batch.input_noise, t)
    dropout.place(batch.timestep_uniforms)
    target = task.objective.target(task.schedule, batch.latents, batch.noise, t)
    return task.criterion(denoiser(noisy, t, batch.text_states), target, t)


def fit(state: State, task: Task, report: Report) -> bool:
    """Train until config.max_steps. Returns False if it was asked to stop before; the last step is saved either way."""
    batches = task.batches(state.step, task.config.max_steps)
    window, look_back = Window(), LookBack(task.base_losses)
    resumed_at = state.step or None  # what is due at that step was done before it was saved
    with stop_signal(launcher()) as asked:
        while True:
            finished, stopping = state.step >= task.config.max_steps, bool(asked)
            if state.step != resumed_at:
                rare_work(state, task, report, window, look_back, last=finished, stopping=stopping)
            if finished or stopping:
                return finished
            step(state, task, batches, window)
            report.advance(1)


def rare_work(
    state: State, task: Task, report: Report, window: Window, look_back: LookBack, *, last: bool, stopping: bool
) -> None:
    """What is due between two steps: write down, then look, then save, so that nothing saved is unwritten."""
    config = task.config
    looking = state.step % config.validation.every == 0 or last
    saving = state.step > 0 and (state.step % config.checkpoints.every == 0 or last or stopping)
    if state.step % config.logging.every == 0 or looking or saving:
        write_down(state, task, window, report)
    if looking:
        look(state, task, report, look_back)
    if saving:
        save(state, task)


def write_down(state: State, task: Task, window: Window, report: Report) -> None:
    """Read the window's numbers, averaged over all processes, and empty it. A loss that is not finite ends the run:
    InputError with the samples; no checkpoint has been written since.
    """
    if not window.losses:
        return
    losses = mean_over_processes(state, torch.stack(window.losses)).tolist()
    norms = torch.stack(window.norms).tolist()
    first = state.step - len(losses) + 1
    lines: list[dict[str, Any]] = [
        {"step": first + i, "loss": loss, "learning_rate": rate, "gradient_norm": none_if_infinite(norm)}
        for i, (loss, norm, rate) in enumerate(zip(losses, norms, window.rates, strict=True))
    ]
    for line, wait in zip(lines, window.waits, strict=True):
        line["data_wait"] = round(wait, 6)
    if task.config.logging.sample_ids:
        for line, samples in zip(lines, in_slot_order(window.sample_ids, task.layout), strict=True):
            line["samples"] = samples
    report.write(lines)
    report.advance(0, loss=f"{sum(losses) / len(losses):.4f}")
    refuse_infinite(losses, first, window)
    # a fused optimiser skips on the device, which accelerate's step_was_skipped does not see; the norm tells
    skipped = sum(not math.isfinite(norm) for norm in norms)
    if skipped:
        report.say(f"{skipped} of the last {len(losses)} steps overflowed in fp16 and were left out by the scaler")
    window.clear()


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
    """The loss is no number any more."""


def refuse_infinite(losses: list[float], first: int, window: Window) -> None:
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            ids = ", ".join(dict.fromkeys(window.sample_ids[i]))
            fix = (
                "The last checkpoint is from before; the same command with a lower --learning-rate starts another run."
            )
            raise Diverged(f"the loss became {loss} at step {first + i}, on {ids}", where="training", fix=fix)


def none_if_infinite(value: float) -> float | None:
    """JSON has no infinity; an overflowed fp16 step has an infinite gradient norm."""
    return value if math.isfinite(value) else None


def look(state: State, task: Task, report: Report, look_back: LookBack) -> None:
    """Measure held-out and training pictures at fixed noise, beside the base model's values."""
    with evaluated(state):
        now = task.validator.measure(state.denoiser, state.accelerator.device)
    if state.step == 0:
        look_back.base = now
    base = look_back.base if state.step else None
    change = {side: paired_difference(now[side], base[side]) for side in now} if base else {}
    report.write(
        [
            {
                "step": state.step,
                "validation": {side: losses.mean for side, losses in now.items()},
                "change": {side: vars(interval) for side, interval in change.items()},
                "per_timestep": {side: losses.per_timestep for side, losses in now.items()},
                "per_picture": {side: losses.per_picture.tolist() for side, losses in now.items()},
            }
        ]
    )
    against = {side: f" ({interval} against the base)" for side, interval in change.items()}
    words = [f"{side} {losses.mean:.4f}{against.get(side, '')}" for side, losses in now.items()]
    report.say(f"step {state.step}: loss at fixed noise: " + ", ".join(words))


@contextmanager
def evaluated(state: State) -> Iterator[None]:
    """Inside, the network has the weights that are validated, drawn and exported: the moving average, if there is one,
    else schedule-free's own, else those that are trained. Afterwards everything is as it was, bit for bit.
    """
    with optim.own_average(state.optimizer), state.ema.swapped():
        yield


def save(state: State, task: Task) -> None:
    """Keep a checkpoint, then drop the oldest."""
    if state.accelerator.is_main_process:
        scaler = state.accelerator.scaler
        kept = Checkpoint(
            step=state.step,
            weights=adapters.state(state.plain_unet()),
            optimizer=state.optimizer.state_dict(),
            extra={"scaler": scaler.state_dict() if scaler is not None else None, "pieces": state.pieces},
            average=state.ema.state(),
        )
        checkpoint.save(task.checkpoints, kept, task.identity)
        checkpoint.prune(task.checkpoints, task.config.checkpoints.keep)
    state.accelerator.wait_for_everyone()


def restore(state: State, kept: Checkpoint, where: Path) -> None:
    """Go on from a checkpoint: bit for bit the state in which it was saved."""
    adapters.load_state(state.plain_unet(), kept.weights, where)
    state.optimizer.load_state_dict(dict(kept.optimizer))
    state.ema.load_state(kept.average, where)
    if state.accelerator.scaler is not None and kept.extra["scaler"]:
        state.accelerator.scaler.load_state_dict(dict(kept.extra["scaler"]))
    state.step, state.pieces = kept.step, kept.extra.get("pieces", 1)
