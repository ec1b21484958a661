"""The page to read first: step() is the mathematics, fit() says when to look, save and write down.

noise the latents -> ask the network -> compare with the target -> average over the global batch -> clip -> update
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from data.dataset import Layout
from data.errors import InputError
from data.schema import Batch
from train import bands, checkpoint, optim
from train.adapters import base as adapters
from train.checkpoint import Checkpoint
from train.config import Config
from train.ddpm import process
from train.ddpm.schedule import Schedule
from train.denoiser import Denoiser
from train.objectives import Objective
from train.previews import Easel
from train.report import Report
from train.stopping import Look, Progress
from train.validation import Losses, Validator
from train.verdict import judge, numbers_of


@dataclass
class State:
    """All that changes while a run trains."""

    step: int  # optimiser steps done
    unet: nn.Module  # as accelerate wrapped it
    optimizer: Any  # accelerate's, around the one of train/optim.py
    accelerator: Accelerator
    progress: Progress = field(default_factory=Progress)  # what the validations said so far

    def plain_unet(self) -> Any:
        return self.accelerator.unwrap_model(self.unet)

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
    batches: Callable[[int, int], Iterator[Batch]]  # micro-batches of the steps [start, stop)
    validator: Validator
    checkpoints: Path
    identity: str
    easel: Easel | None = None
    publish: Callable[[], None] = lambda: None  # the report so far, for someone who looks while it trains


@dataclass
class Window:
    """Steps whose numbers still lie on the device: reading them at every step would make the device wait."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    sample_ids: list[list[str]] = field(default_factory=list)
    bands: list[Tensor] = field(default_factory=list)  # (2, BANDS) each, see train/bands.py
    began: float = 0.0  # seconds of a clock, when the window's first step began

    def clear(self) -> None:
        for values in (self.losses, self.norms, self.rates, self.sample_ids, self.bands):
            values.clear()


def step(state: State, task: Task, batches: Iterator[Batch], window: Window) -> None:
    """One optimiser step: `accumulate` micro-batches, whose gradients add up to the mean over the global batch.

    The learning rate is a function of the step. Gradients are unscaled before they are clipped by their global norm; a
    step whose scaled gradients overflowed in fp16 is left out by the scaler.
    """
    optimizer, accelerator, layout = state.optimizer, state.accelerator, task.layout
    rate = optim.learning_rate(state.step, task.config.optim, task.config.learning_rate, task.config.max_steps)
    optim.set_learning_rate(optimizer, rate)
    total = torch.zeros((), device=accelerator.device)
    by_timestep = torch.zeros(2, bands.BANDS, device=accelerator.device)
    sample_ids: list[str] = []
    window.began = window.began if window.losses else time.perf_counter()
    for micro in range(layout.accumulate):
        batch = next(batches)
        is_last = micro == layout.accumulate - 1
        with nullcontext() if is_last else accelerator.no_sync(state.unet):
            # data-parallel training averages over processes, so each divides by its own share
            losses = sample_losses(state.denoiser, task, batch)
            loss = losses.sum() / (layout.batch_size * layout.accumulate)
            accelerator.backward(loss)
        total += loss.detach()
        t = task.objective.timesteps(batch.timestep_uniforms, task.schedule)
        by_timestep += bands.sums_and_counts(losses.detach(), t, task.schedule.steps)
        sample_ids += batch.sample_ids
    norm = accelerator.clip_grad_norm_(list(adapters.trainable(state.unet).values()), task.config.optim.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.step += 1
    window.losses.append(total)
    window.norms.append(torch.as_tensor(norm).detach())
    window.rates.append(rate)
    window.sample_ids.append(sample_ids)
    window.bands.append(by_timestep)


def sample_losses(denoiser: Denoiser, task: Task, batch: Batch) -> Tensor:
    """(B,) the error of each sample: x_t from q(x_t | x_0), the network's answer, the objective's distance."""
    t = task.objective.timesteps(batch.timestep_uniforms, task.schedule)
    noisy = process.add_noise(task.schedule, batch.latents, batch.noise, t)
    target = task.objective.target(task.schedule, batch.latents, batch.noise, t)
    return task.objective.losses(denoiser(noisy, t, batch.text_states), target)


def fit(state: State, task: Task, report: Report) -> bool:
    """Train until config.max_steps, or until patience ends. False if it was asked to stop before.

    The last step is saved in any case.
    """
    batches, window = task.batches(state.step, task.config.max_steps), Window()
    remember(state, task, report)
    resumed_at = state.step or None  # what is due at that step was done before it was saved
    with stop_signal() as asked:
        while True:
            last = state.step >= task.config.max_steps
            if state.step != resumed_at:
                rare_work(state, task, report, window, last=last, stopping=bool(asked))
            ended = last or state.progress.out_of_patience(task.config.validation.patience)
            if not asked:
                show(state, task, report, last=ended)
            if ended or asked:
                return ended
            step(state, task, batches, window)
            report.advance(1)


def remember(state: State, task: Task, report: Report) -> None:
    """Go on from what earlier sessions measured, if they asked the same questions."""
    known = state.progress
    state.progress = known.about(task.validator.questions)
    if state.step and known.questions not in ("", task.validator.questions):
        report.say("validation asks for other pictures or timesteps than before: it starts anew, without the base")
    if state.step < task.config.max_steps:
        state.progress = state.progress.continued()


def rare_work(state: State, task: Task, report: Report, window: Window, *, last: bool, stopping: bool) -> None:
    """What is due between two steps: write down, then look, then save, so that nothing saved is unwritten.

    A new best is saved at once: its weights may be those that are exported.
    """
    config = task.config
    on_grid = state.step % config.validation.every == 0
    looking = on_grid or last
    saving = state.step > 0 and (state.step % config.checkpoints.every == 0 or last or stopping)
    if state.step % config.logging.every == 0 or looking or saving:
        write_down(state, task, window, report)
    if looking:
        look(state, task, report, on_grid=on_grid)
    best, ended = state.progress.best, state.progress.out_of_patience(config.validation.patience)
    if saving or (looking and ((best is not None and best.step == state.step) or (ended and state.step > 0))):
        save(state, task)
    if looking:
        task.publish()


def show(state: State, task: Task, report: Report, *, last: bool) -> None:
    """Draw previews where they are due and not there yet: after saving, for a picture is no reason to lose a step."""
    if task.easel is not None and task.easel.due(state.step, last=last):
        task.easel.take(state.plain_unet(), state.step, report)


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
    report.write(
        [
            {"step": first + i, "loss": loss, "learning_rate": rate, "gradient_norm": none_if_infinite(norm)}
            for i, (loss, norm, rate) in enumerate(zip(losses, norms, window.rates, strict=True))
        ]
    )
    report.write([window_facts(state, task, window, seconds)])
    report.advance(0, loss=f"{sum(losses) / len(losses):.4f}")
    refuse_infinite(losses, first, window)
    # a fused optimiser skips on the device, which accelerate's step_was_skipped does not see; the norm tells
    skipped = sum(not math.isfinite(norm) for norm in norms)
    if skipped:
        report.say(f"{skipped} of the last {len(losses)} steps overflowed in fp16 and were left out by the scaler")
    window.clear()


def window_facts(state: State, task: Task, window: Window, seconds: float) -> dict[str, Any]:
    """What holds for the window's steps together: the speed of training alone, and the loss in each band of timesteps
    over all processes (null where no sample fell).
    """
    sums, counts = sum_over_processes(state, torch.stack(window.bands).sum(0)).tolist()
    return {
        "step": state.step,
        "window": len(window.losses),
        "images_per_second": len(window.losses) * task.layout.global_batch / seconds,
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


def refuse_infinite(losses: list[float], first: int, window: Window) -> None:
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            ids = ", ".join(dict.fromkeys(window.sample_ids[i]))
            fix = (
                "The last checkpoint is from before; the same command with a lower --learning-rate starts another run."
            )
            raise InputError(f"the loss became {loss} at step {first + i}, on {ids}", where="training", fix=fix)


def none_if_infinite(value: float) -> float | None:
    """JSON has no infinity; an overflowed fp16 step has an infinite gradient norm."""
    return value if math.isfinite(value) else None


def look(state: State, task: Task, report: Report, *, on_grid: bool) -> None:
    """Measure held-out and training pictures at fixed noise, and judge them against the base and the best so far."""
    now = measured(state, task)
    found = Look(state.step, {side: losses.per_picture.tolist() for side, losses in now.items()})
    progress = state.progress = state.progress.after(found, on_grid=on_grid)
    report.write(
        [
            {
                "step": state.step,
                "validation": {side: losses.mean for side, losses in now.items()},
                **numbers_of(found, progress),
                "per_timestep": {side: losses.per_timestep for side, losses in now.items()},
                "per_picture": found.per_picture,
            }
        ]
    )
    against = {side: f" ({change} against the base)" for side, change in progress.since_base(found).items()}
    words = [f"{side} {losses.mean:.4f}{against.get(side, '') if state.step else ''}" for side, losses in now.items()]
    report.say(f"step {state.step}: loss at fixed noise: " + ", ".join(words))
    if state.step:
        report.say(f"step {state.step}: {judge(found, progress)}")


def measured(state: State, task: Task) -> dict[str, Losses]:
    """The losses as the first process measured them: all must come to the same decision."""
    found = [task.validator.measure(state.denoiser, state.accelerator.device)]
    if state.accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


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
                "progress": state.progress.to_json(),
            },
        )
        checkpoint.save(task.checkpoints, kept, task.identity)
        best = state.progress.best
        checkpoint.prune(task.checkpoints, task.config.checkpoints.keep, spare=[best.step] if best else [])
    state.accelerator.wait_for_everyone()


def restore(state: State, kept: Checkpoint, where: Path) -> None:
    """Go on from a checkpoint: bit for bit the state in which it was saved."""
    adapters.load_state(state.plain_unet(), kept.weights, where)
    state.optimizer.load_state_dict(dict(kept.optimizer))
    if state.accelerator.scaler is not None and kept.extra["scaler"]:
        state.accelerator.scaler.load_state_dict(dict(kept.extra["scaler"]))
    state.progress = Progress.from_json(kept.extra.get("progress"))
    state.step = kept.step


class Asked:
    """Whether someone asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_signal() -> Iterator[Asked]:
    """Ctrl-C or SIGTERM asks to stop after the step; a second one stops at once."""
    asked = Asked()

    def note(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.signal = number
        print("\nstopping after this step; once more stops at once", flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
