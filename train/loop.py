"""The page to read first: step() is the mathematics, fit() says when to look, save and write down.

noise the latents -> ask the network -> compare with the target -> average over the global batch -> clip -> update
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from data.schema import Batch
from train import bands, launched, optim, pieces
from train.adapters import dropout
from train.ddpm import process
from train.denoiser import Denoiser
from train.preservation import ADRIFT, Anchor
from train.report import Report
from train.saving import save
from train.signals import stop_signal
from train.state import State, Task, evaluated
from train.stopping import Look
from train.validation import Losses
from train.verdict import judge, numbers_of
from train.window import Window, refuse_infinite_looks, write_down


def step(state: State, task: Task, batches: Iterator[Batch], window: Window) -> None:
    """One optimiser step: `accumulate` micro-batches, whose gradients add up to the mean over the global batch.

    The learning rate is a function of the step. Gradients are unscaled before they are clipped by their global norm; a
    step whose scaled gradients overflowed in fp16 is left out by the scaler.
    """
    optimizer, accelerator, layout = state.optimizer, state.accelerator, task.layout
    rate = optim.learning_rate(state.step, task.config.optim, task.config.learning_rate, task.config.max_steps)
    optim.set_learning_rate(optimizer, rate)
    window.began = window.began if window.losses else time.perf_counter()
    start = time.perf_counter()
    micro_batches = [next(batches) for _ in range(layout.accumulate)]
    window.waits.append(time.perf_counter() - start)
    losses = gradients(state, task, micro_batches)
    norm = optim.clip(accelerator, optimizer, task.config.optim.clip_norm)
    with pieces.room_for_the_optimizer():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.ema.update(norm)
    state.step += 1
    window.losses.append(losses.mean())
    window.norms.append(norm)
    window.rates.append(rate)
    window.bands.append(bands.sums_and_counts(losses, timesteps_of(task, micro_batches), task.schedule.steps))
    window.sample_ids.append([sample_id for batch in micro_batches for sample_id in batch.sample_ids])


def timesteps_of(task: Task, micro_batches: Sequence[Batch]) -> Tensor:
    """Of all samples of the step, in the order of their losses."""
    return task.objective.timesteps(torch.cat([b.timestep_uniforms for b in micro_batches]), task.schedule)


def gradients(state: State, task: Task, micro_batches: Sequence[Batch]) -> Tensor:
    """Leave the gradient of the mean loss in the weights; returns each sample's loss. Where memory runs out, the
    micro-batches are cut into pieces, from then on: the same sum in another order. Raises InputError when single
    samples do not fit.
    """
    while True:
        losses = try_gradients(state, task, micro_batches)
        if losses is not None:
            return losses
        state.optimizer.zero_grad(set_to_none=True)  # some of its weights may have theirs already
        state.pieces = pieces.more(state.pieces, task.layout)


def try_gradients(state: State, task: Task, micro_batches: Sequence[Batch]) -> Tensor | None:
    """None if memory ran out. What lay in it is free again only after this function has returned."""
    layout, accelerator = task.layout, state.accelerator
    parts = [part for batch in micro_batches for part in pieces.of(batch, state.pieces)]
    losses_of, found = partial(sample_losses, state.denoiser, task, anchor=state.anchor), list[Tensor]()
    try:
        for batch in parts:
            is_last = batch is parts[-1]
            with nullcontext() if is_last else accelerator.no_sync(state.unet):
                losses = losses_of(batch)
                # data-parallel training averages over processes, so each divides by its own share
                accelerator.backward(losses.sum() / (layout.batch_size * layout.accumulate))
            found.append(losses.detach())
    except torch.OutOfMemoryError:
        return None
    return torch.cat(found)


def sample_losses(denoiser: Denoiser, task: Task, batch: Batch, anchor: Anchor = ADRIFT) -> Tensor:
    """(B,) the error of each sample: x_t from q(x_t | x_0), the network's answer, the objective's criterion."""
    t = task.objective.timesteps(batch.timestep_uniforms, task.schedule)
    noisy = process.add_noise(task.schedule, batch.latents, batch.input_noise, t)
    dropout.set_sample_keys(batch.timestep_uniforms)
    target = anchor.moved(task.objective.target(task.schedule, batch.latents, batch.noise, t), noisy, t, batch)
    return task.criterion(denoiser(noisy, t, batch.text_states), target, t)


def fit(state: State, task: Task, report: Report) -> bool:
    """Train until config.max_steps, or until patience ends. False if it was asked to stop before.

    The last step is saved in any case.
    """
    batches, window = task.batches(state.step, task.config.max_steps), Window()
    remember(state, task, report)
    resumed_at = state.step or None  # what is due at that step was done before it was saved
    with stop_signal(launched.launcher()) as asked:
        while True:
            last, stopping = state.step >= task.config.max_steps, bool(asked)
            if state.step != resumed_at:
                rare_work(state, task, report, window, last=last, stopping=stopping)
            ended = last or state.progress.out_of_patience(task.config.validation.patience)
            if not stopping:
                show(state, task, report, last=ended)
            if ended or stopping:
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
        with evaluated(state):
            task.easel.take(state.plain_unet(), state.step, report)


def look(state: State, task: Task, report: Report, *, on_grid: bool) -> None:
    """Measure held-out and training pictures at fixed noise, and judge them against the base and the best so far."""
    now = measured(state, task)
    found = Look(state.step, {side: losses.per_picture.tolist() for side, losses in now.items()})
    progress = state.progress = state.progress.after(found, on_grid=on_grid)
    report.write(
        [
            {
                "step": state.step,
                "questions": task.validator.questions,
                "validation": {side: losses.mean for side, losses in now.items()},
                **numbers_of(found, progress),
                "per_timestep": {side: losses.per_timestep for side, losses in now.items()},
                "per_picture": found.per_picture,
            }
        ]
    )
    if state.step:
        refuse_infinite_looks({side: losses.mean for side, losses in now.items()}, state.step, task)
    against = {side: f" ({change} against the base)" for side, change in progress.since_base(found).items()}
    words = [f"{side} {losses.mean:.4f}{against.get(side, '') if state.step else ''}" for side, losses in now.items()]
    report.say(f"step {state.step}: loss at fixed noise: " + ", ".join(words))
    if state.step:
        report.say(f"step {state.step}: {judge(found, progress)}")


def measured(state: State, task: Task) -> dict[str, Losses]:
    """The losses as the first process measured them: all must come to the same decision."""
    measure = partial(task.validator.measure, state.denoiser, state.accelerator.device)
    with evaluated(state):
        found = [measure() if state.step else task.measure_base(measure)]
    if state.accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]
