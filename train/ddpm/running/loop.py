"""The page to read first: step() is algorithm 1 of Ho et al. 2020, arXiv 2006.11239, fit() says when to look and save.

draw pictures, timesteps and noise -> corrupt -> ask the network -> compare -> update
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from data import seeds
from data.errors import InputError
from train import checkpoint, launched, optim
from train.checkpoint import Checkpoint
from train.ddpm.running import errors
from train.ddpm.running.batches import Batch
from train.ddpm.running.drawing import draw_grid
from train.ddpm.running.objective import Question
from train.ddpm.running.state import State, Task, Window
from train.report import Report, none_if_infinite
from train.signals import stop_signal
from train.validation import paired_difference


def step(state: State, task: Task, window: Window) -> None:
    """One optimiser step. Nothing in it waits for the device, unless timesteps are drawn by importance."""
    rate = optim.learning_rate(state.step, task.config.optim, task.config.learning_rate, task.steps)
    optim.set_learning_rate(state.optimizer, rate)
    if task.drops_out:  # a function of the position, as everything random is
        torch.manual_seed(seeds.seed_for(task.config.seed, "ddpm", "dropout", state.step, task.layout.rank))
    batch = task.stream.batch(state.step, state.draws)
    losses = sample_losses(state, task, batch)
    state.accelerator.backward((losses * batch.weights).mean())
    losses = losses.detach()
    state.draws.seen(batch.t, losses)
    norm = optim.clip(state.accelerator, state.optimizer, task.config.optim.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(norm)
    state.step += 1
    window.losses.append((losses * batch.weights).mean())
    window.norms.append(norm)
    window.rates.append(rate)


def sample_losses(state: State, task: Task, batch: Batch) -> Tensor:
    """(B,) what each picture's answer costs."""
    # x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
    xt = task.corrupt(task.schedule, batch.x0, batch.eps, batch.t)
    output = state.network(xt, batch.t, batch.labels)
    return task.loss(Question(batch.x0, batch.eps, xt, batch.t), output.float())


def fit(state: State, task: Task, report: Report) -> bool:
    """Train to the last step. False if it was asked to stop before; the step is saved in any case."""
    window = Window()
    resumed_at = state.step or None  # what is due at that step was done before it was saved
    with stop_signal(launched.launcher()) as asked:
        while True:
            last, stopping = state.step >= task.steps, bool(asked)
            if state.step != resumed_at:
                rare_work(state, task, report, window, last=last, stopping=stopping)
            if last or stopping:
                return last
            step(state, task, window)
            report.advance(1)


def rare_work(state: State, task: Task, report: Report, window: Window, *, last: bool, stopping: bool) -> None:
    """What is due between two steps: write down, then look, then save, then draw."""
    config = task.config
    looking = state.step % config.looks.every == 0 or last
    saving = state.step > 0 and (state.step % config.checkpoints.every == 0 or last or stopping)
    drawing = state.step > 0 and config.drawings.every > 0 and (state.step % config.drawings.every == 0 or last)
    if state.step % config.log_every == 0 or looking or saving:
        write_down(state, task, window, report)
    if looking:
        look(state, task, report)
    if saving:
        save(state, task)
    if drawing and not stopping and state.accelerator.is_main_process:
        with state.ema.swapped():
            file = draw_grid(task.model, config.drawings, task.folder / "drawings", state.step)
        report.picture("drawings", state.step, file)
    if looking or drawing:
        task.publish()
    if looking or drawing or saving:
        window.began = time.perf_counter()  # none of that is training


def write_down(state: State, task: Task, window: Window, report: Report) -> None:
    """Read the numbers of the last steps, averaged over all processes. Raises InputError if one is not finite."""
    if not window.losses:
        return
    losses, norms, seconds = window.read()
    if state.accelerator.num_processes > 1:
        reduced = state.accelerator.reduce(torch.stack(window.losses), "mean")
        assert isinstance(reduced, Tensor)
        losses = reduced.tolist()
    first = state.step - len(losses) + 1
    lines = [
        {"step": first + i, "loss": loss, "learning_rate": rate, "gradient_norm": none_if_infinite(norm)}
        for i, (loss, norm, rate) in enumerate(zip(losses, norms, window.rates, strict=True))
    ]
    speed = task.speed.of(len(losses) * task.layout.global_batch, seconds)
    report.write([*lines, {"step": state.step, "window": len(losses), **speed}])
    report.advance(0, loss=f"{sum(losses) / len(losses):.4f}")
    window.clear()
    scaled = state.accelerator.scaler is not None  # it leaves out steps that overflow, and that is no failure
    for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if not math.isfinite(loss) or not (scaled or math.isfinite(norm)):
            fix = "The last checkpoint is from before; a lower --learning-rate starts another run."
            raise InputError(f"the loss or its gradient is no number at step {first + i}", where="training", fix=fix)


def look(state: State, task: Task, report: Report) -> None:
    """The error of x_0 at fixed noise, on held-out pictures and as many training pictures."""
    timesteps = errors.spread(task.schedule.steps, task.config.looks.timesteps)
    with state.ema.swapped(), evaluating(state):
        found = {name: errors.measure(task.model, side, timesteps).x0 for name, side in task.sides.items()}
    state.base = state.base or (found if state.step == 0 else {})
    shapes = {side: losses.values.shape for side, losses in found.items()}
    base = {side: was for side, was in state.base.items() if shapes.get(side) == was.values.shape}
    change = {side: paired_difference(found[side], was) for side, was in base.items()}  # none after other --looks
    report.write(
        [
            {
                "step": state.step,
                "validation": {side: losses.mean for side, losses in found.items()},
                "change": {side: vars(interval) for side, interval in change.items()} if state.step else {},
                "timesteps": list(timesteps),
                "per_timestep": {side: losses.per_timestep for side, losses in found.items()},
            }
        ]
    )
    words = ", ".join(f"{side} {losses.mean:.4f}" for side, losses in found.items())
    report.say(f"step {state.step}: error of x_0 at fixed noise: {words}")


class evaluating:
    """A context in which the network has its dropout off; afterwards it is in the mode that it was in."""

    def __init__(self, state: State) -> None:
        self.network = state.plain_network()
        self.was = self.network.training

    def __enter__(self) -> None:
        self.network.eval()

    def __exit__(self, *_: object) -> None:
        self.network.train(self.was)


def save(state: State, task: Task) -> None:
    """Keep a checkpoint, then drop the oldest."""
    if state.accelerator.is_main_process:
        scaler = state.accelerator.scaler
        extra = {
            "scaler": scaler.state_dict() if scaler is not None else None,
            "base": {side: losses.values.tolist() for side, losses in state.base.items()},
            "timesteps": state.draws.state(),
        }
        kept = Checkpoint(
            step=state.step,
            weights=state.plain_network().state_dict(),
            optimizer=state.optimizer.state_dict(),
            extra=extra,
            average=state.ema.state(),
        )
        folder = task.folder / "checkpoints"
        checkpoint.save(folder, kept, task.identity)
        checkpoint.prune(folder, task.config.checkpoints.keep)
    state.accelerator.wait_for_everyone()
