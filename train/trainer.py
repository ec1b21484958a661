"""A run while it trains: what changes (State) and what does not (Task)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.atomic_io import write_atomic
from data.dataset import BatchLayout, EncodedDataset, StepSampler, TrainingNoise, collate, to_device
from data.errors import InputError
from data.schema import Batch
from data.shapes import TextStates
from train import (
    adapters,
    checkpoint,
    device,
    lora,
    losses,
    metrics,
    oom,
    optim,
    run_folder,
    signals,
    torch_compile,
    validation,
)
from train.checkpoint import Checkpoint
from train.config import ENDLESS_SCHEDULES, Config, ExportOptions, run_identity
from train.ddpm import diffusion
from train.ddpm.losses import Criterion
from train.ddpm.schedule import Schedule
from train.ema import Ema
from train.encode import Encoded, encode_text, encode_training_set
from train.estimate import Plan, RunEstimate, make_plan, peak_flops
from train.exporters import verify
from train.exporters.full_model import SINGLE_FILE
from train.exporters.metadata import export_metadata
from train.exporters.verify import ExportRequest
from train.losses import Objective
from train.metrics import (
    MetricsLogger,
    RunLogger,
    SilentLogger,
    Speed,
    WeightsAndBiases,
    check_wandb_installed,
    none_if_infinite,
)
from train.model import BaseModel, Denoiser, load_model
from train.prior_preservation import NO_TEACHER, PriorTeacher, freeze_teacher
from train.report import Outcome, write_report, write_summary
from train.run_folder import Run, to_json
from train.samples import GeneratePreviews, PreviewSampler, build_preview_sampler
from train.signals import stop_requests, survive_closed_output
from train.training_set import TrainingSet, load_training_set
from train.validation import (
    HELD_OUT,
    EarlyStopping,
    Losses,
    LossesBySplit,
    Measure,
    ValidationResult,
    Validator,
    diagnose,
    diagnosis_metrics,
    explain_stop,
)

if TYPE_CHECKING:
    pass


@dataclass
class TrainState:
    """All that changes while a run trains."""

    step: int  # optimiser steps done
    unet: nn.Module  # as accelerate wrapped it
    optimizer: Any  # accelerate's, around the one of train/optim.py
    accelerator: Accelerator
    ema: Ema  # average of the trained weights, if one is kept
    pieces: int = 1  # that a micro-batch is cut into, since memory ran out
    progress: EarlyStopping = field(default_factory=EarlyStopping)  # what the validations said so far
    anchor: PriorTeacher = NO_TEACHER  # what preserved prompts are held by

    def plain_unet(self) -> Any:
        return self.accelerator.unwrap_model(self.unet, keep_torch_compile=False)

    def unwrapped_unet(self) -> Any:
        """As plain_unet(), in its weights' own precision: accelerate's autocast is taken off, for good."""
        return self.accelerator.unwrap_model(self.unet, keep_fp32_wrapper=False, keep_torch_compile=False)

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.unet)


@dataclass(frozen=True)
class TrainContext:
    """All that does not change while a run trains."""

    config: Config
    layout: BatchLayout
    objective: Objective
    schedule: Schedule  # on the device
    batches: Callable[[int, int], Iterator[Batch]]  # micro-batches of the steps [start, stop)
    validator: Validator
    checkpoints: Path
    identity: str
    measure_base: Callable[[Measure], LossesBySplit] = (
        validation.measure_uncached
    )  # of the network before the first step
    easel: PreviewSampler | None = None
    speed: Speed = field(default_factory=Speed)
    publish: Callable[[], None] = lambda: None  # the report so far, for someone who looks while it trains

    @cached_property
    def criterion(self) -> Criterion:
        """The training loss, with its tables made from the final schedule, once."""
        return self.objective.criterion(self.schedule)


@contextmanager
def evaluation_weights(state: TrainState) -> Iterator[None]:
    """Inside, the network has the weights that are validated, drawn and exported: the moving average, if there is one,
    else schedule-free's own, else those that are trained. Afterwards everything is as it was, bit for bit.
    """
    with optim.averaged_weights(state.optimizer), state.ema.swapped():
        yield


def save_state(state: TrainState, task: TrainContext) -> None:
    """Keep a checkpoint, then drop the oldest, but never the best one."""
    if state.accelerator.is_main_process:
        scaler = state.accelerator.scaler
        kept = Checkpoint(
            step=state.step,
            weights=adapters.trainable_state(state.plain_unet()),
            optimizer=state.optimizer.state_dict(),
            extra={
                "scaler": scaler.state_dict() if scaler is not None else None,
                "pieces": state.pieces,
                "progress": state.progress.to_json(),
            },
            average=state.ema.state(),
        )
        checkpoint.save_checkpoint(task.checkpoints, kept, task.identity)
        best = state.progress.best
        checkpoint.prune_checkpoints(task.checkpoints, task.config.checkpoints.keep, spare=[best.step] if best else [])
    state.accelerator.wait_for_everyone()


def restore_state(state: TrainState, kept: Checkpoint, where: Path) -> None:
    """Go on from a checkpoint: bit for bit the state in which it was saved."""
    adapters.load_trainable_state(state.plain_unet(), kept.weights, where)
    state.optimizer.load_state_dict(dict(kept.optimizer))
    state.ema.load_state(kept.average, where)
    if state.accelerator.scaler is not None and kept.extra["scaler"]:
        state.accelerator.scaler.load_state_dict(dict(kept.extra["scaler"]))
    state.progress = EarlyStopping.from_json(kept.extra.get("progress"))
    state.step, state.pieces = kept.step, kept.extra.get("pieces", 1)


@dataclass
class MetricBuffer:
    """Steps whose numbers still lie on the device: reading them at every step would make the device wait."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # seconds for batches
    sample_ids: list[list[str]] = field(default_factory=list)
    bands: list[Tensor] = field(default_factory=list)  # (2, BANDS) each, see train/metrics.py
    began: float = 0.0  # seconds of a clock, when the window's first step began

    def clear(self) -> None:
        for values in (self.losses, self.norms, self.rates, self.waits, self.sample_ids, self.bands):
            values.clear()


def flush_metrics(state: TrainState, task: TrainContext, window: MetricBuffer, report: MetricsLogger) -> None:
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
    report.write([*lines, window_metrics(state, task, window, seconds)])
    report.advance(0, loss=f"{sum(losses) / len(losses):.4f}")
    check_finite(state, task, window, losses, norms)
    # a fused optimiser skips on the device, which accelerate's step_was_skipped does not see; the norm tells
    skipped = sum(not math.isfinite(norm) for norm in norms)
    if skipped:
        report.say(f"{skipped} of the last {len(losses)} steps overflowed in fp16 and were left out by the scaler")
    window.clear()


def window_metrics(state: TrainState, task: TrainContext, window: MetricBuffer, seconds: float) -> dict[str, Any]:
    """What holds for the window's steps together: the speed of training alone, the share of the time that it waited for
    data, and the loss in each band of timesteps over all processes (null where no sample fell).
    """
    sums, counts = sum_over_processes(state, torch.stack(window.bands).sum(0)).tolist()
    return {
        "step": state.step,
        "window": len(window.losses),
        **task.speed.of(len(window.losses) * task.layout.global_batch, seconds),
        "data_wait": sum(window.waits) / seconds,
        "loss_by_timestep": metrics.mean_by_bin(sums, counts, task.schedule.steps),
    }


def sum_over_processes(state: TrainState, values: Tensor) -> Tensor:
    reduced = state.accelerator.reduce(values, "sum")
    assert isinstance(reduced, Tensor)
    return reduced


def mean_over_processes(state: TrainState, values: Tensor) -> Tensor:
    reduced = state.accelerator.reduce(values, "mean")
    assert isinstance(reduced, Tensor)
    return reduced


def in_slot_order(steps: list[list[str]], layout: BatchLayout) -> list[list[str]]:
    """The samples of each step's global batch, gathered from all processes, as one process would have had them."""
    ranks: list[list[list[str]]] = [steps] if layout.processes == 1 else gather_object([steps])
    size = layout.batch_size
    micros = [range(start, start + size) for start in range(0, size * layout.accumulate, size)]
    return [[rank[step][row] for rows in micros for rank in ranks for row in rows] for step in range(len(steps))]


class Diverged(InputError):
    """The loss or its gradient is no number any more."""


def check_finite(
    state: TrainState, task: TrainContext, window: MetricBuffer, losses: list[float], norms: list[float]
) -> None:
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
        raise Diverged(
            f"{what} at step {step}, on {ids}", where="training", fix=f"{last_checkpoint(task)} {LOWER_RATE_HINT}"
        )


LOWER_RATE_HINT = "The same command with a lower --learning-rate starts another run."


def check_finite_validation(means: Mapping[str, float], step: int, task: TrainContext) -> None:
    """Raises Diverged if a side's loss at fixed noise is not finite: the weights would be no use, and no number says
    when to stop.
    """
    for side, mean in means.items():
        if not math.isfinite(mean):
            what = f"the loss of {side} pictures at fixed noise is {mean} after step {step}"
            raise Diverged(what, where="validation", fix=f"{last_checkpoint(task)} {LOWER_RATE_HINT}")


def last_checkpoint(task: TrainContext) -> str:
    """Which checkpoint is from before: none has been written since."""
    kept = checkpoint.list_checkpoints(task.checkpoints)
    return f"The last good checkpoint is {kept[-1]}." if kept else "No checkpoint had been written yet."


def train_step(state: TrainState, task: TrainContext, batches: Iterator[Batch], window: MetricBuffer) -> None:
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
    losses = compute_gradients(state, task, micro_batches)
    norm = optim.clip_gradients(accelerator, optimizer, task.config.optim.clip_norm)
    with oom.optimizer_memory_guard():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.ema.update(norm)
    state.step += 1
    window.losses.append(losses.mean())
    window.norms.append(norm)
    window.rates.append(rate)
    window.bands.append(metrics.bin_losses(losses, batch_timesteps(task, micro_batches), task.schedule.steps))
    window.sample_ids.append([sample_id for batch in micro_batches for sample_id in batch.sample_ids])


def batch_timesteps(task: TrainContext, micro_batches: Sequence[Batch]) -> Tensor:
    """Of all samples of the step, in the order of their losses."""
    return task.objective.timesteps(torch.cat([b.timestep_uniforms for b in micro_batches]), task.schedule)


def compute_gradients(state: TrainState, task: TrainContext, micro_batches: Sequence[Batch]) -> Tensor:
    """Leave the gradient of the mean loss in the weights; returns each sample's loss. Where memory runs out, the
    micro-batches are cut into pieces, from then on: the same sum in another order. Raises InputError when single
    samples do not fit.
    """
    while True:
        losses = try_compute_gradients(state, task, micro_batches)
        if losses is not None:
            return losses
        state.optimizer.zero_grad(set_to_none=True)  # some of its weights may have theirs already
        state.pieces = oom.split_further(state.pieces, task.layout)


def try_compute_gradients(state: TrainState, task: TrainContext, micro_batches: Sequence[Batch]) -> Tensor | None:
    """None if memory ran out. What lay in it is free again only after this function has returned."""
    layout, accelerator = task.layout, state.accelerator
    parts = [part for batch in micro_batches for part in oom.split_batch(batch, state.pieces)]
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


def sample_losses(denoiser: Denoiser, task: TrainContext, batch: Batch, anchor: PriorTeacher = NO_TEACHER) -> Tensor:
    """(B,) the error of each sample: x_t from q(x_t | x_0), the network's answer, the objective's criterion."""
    t = task.objective.timesteps(batch.timestep_uniforms, task.schedule)
    noisy = diffusion.add_noise(task.schedule, batch.latents, batch.input_noise, t)
    lora.set_sample_keys(batch.timestep_uniforms)
    target = anchor.moved(task.objective.target(task.schedule, batch.latents, batch.noise, t), noisy, t, batch)
    return task.criterion(denoiser(noisy, t, batch.text_states), target, t)


def fit(state: TrainState, task: TrainContext, report: MetricsLogger) -> bool:
    """Train until config.max_steps, or until patience ends. False if it was asked to stop before.

    The last step is saved in any case.
    """
    batches, window = task.batches(state.step, task.config.max_steps), MetricBuffer()
    restore_progress(state, task, report)
    resumed_at = state.step or None  # what is due at that step was done before it was saved
    with stop_requests(signals.launcher_pid()) as asked:
        while True:
            last, stopping = state.step >= task.config.max_steps, bool(asked)
            if state.step != resumed_at:
                between_steps(state, task, report, window, last=last, stopping=stopping)
            ended = last or state.progress.out_of_patience(task.config.validation.patience)
            if not stopping:
                save_previews(state, task, report, last=ended)
            if ended or stopping:
                return ended
            train_step(state, task, batches, window)
            report.advance(1)


def restore_progress(state: TrainState, task: TrainContext, report: MetricsLogger) -> None:
    """Go on from what earlier sessions measured, if they asked the same questions."""
    known = state.progress
    state.progress = known.about(task.validator.questions)
    if state.step and known.questions not in ("", task.validator.questions):
        report.say("validation asks for other pictures or timesteps than before: it starts anew, without the base")
    if state.step < task.config.max_steps:
        state.progress = state.progress.continued()


def between_steps(
    state: TrainState, task: TrainContext, report: MetricsLogger, window: MetricBuffer, *, last: bool, stopping: bool
) -> None:
    """What is due between two steps: write down, then look, then save, so that nothing saved is unwritten.

    A new best is saved at once: its weights may be those that are exported.
    """
    config = task.config
    on_grid = state.step % config.validation.every == 0
    looking = on_grid or last
    saving = state.step > 0 and (state.step % config.checkpoints.every == 0 or last or stopping)
    if state.step % config.logging.every == 0 or looking or saving:
        flush_metrics(state, task, window, report)
    if looking:
        validate(state, task, report, on_grid=on_grid)
    best, ended = state.progress.best, state.progress.out_of_patience(config.validation.patience)
    if saving or (looking and ((best is not None and best.step == state.step) or (ended and state.step > 0))):
        save_state(state, task)
    if looking:
        task.publish()


def save_previews(state: TrainState, task: TrainContext, report: MetricsLogger, *, last: bool) -> None:
    """Draw previews where they are due and not there yet: after saving, for a picture is no reason to lose a step."""
    if task.easel is not None and task.easel.due(state.step, last=last):
        with evaluation_weights(state):
            task.easel.take(state.plain_unet(), state.step, report)


def validate(state: TrainState, task: TrainContext, report: MetricsLogger, *, on_grid: bool) -> None:
    """Measure held-out and training pictures at fixed noise, and judge them against the base and the best so far."""
    now = measure_losses(state, task)
    found = ValidationResult(state.step, {side: losses.per_picture.tolist() for side, losses in now.items()})
    progress = state.progress = state.progress.after(found, on_grid=on_grid)
    report.write(
        [
            {
                "step": state.step,
                "questions": task.validator.questions,
                "validation": {side: losses.mean for side, losses in now.items()},
                **diagnosis_metrics(found, progress),
                "per_timestep": {side: losses.per_timestep for side, losses in now.items()},
                "per_picture": found.per_picture,
            }
        ]
    )
    if state.step:
        check_finite_validation({side: losses.mean for side, losses in now.items()}, state.step, task)
    against = {side: f" ({change} against the base)" for side, change in progress.since_base(found).items()}
    words = [f"{side} {losses.mean:.4f}{against.get(side, '') if state.step else ''}" for side, losses in now.items()]
    report.say(f"step {state.step}: loss at fixed noise: " + ", ".join(words))
    if state.step:
        report.say(f"step {state.step}: {diagnose(found, progress)}")


def measure_losses(state: TrainState, task: TrainContext) -> dict[str, Losses]:
    """The losses as the first process measured them: all must come to the same decision."""
    measure = partial(task.validator.measure, state.denoiser, state.accelerator.device)
    with evaluation_weights(state):
        found = [measure() if state.step else task.measure_base(measure)]
    if state.accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def build_state(job: Job) -> TrainState:
    """The network with its adapter, the optimiser and the average of its weights, on the device."""
    config, accelerator = job.config, job.accelerator
    unet: Any = job.model.unet
    if not config.adapter.trains_base and accelerator.mixed_precision in device.DTYPES:
        unet.to(dtype=device.DTYPES[accelerator.mixed_precision])  # frozen weights need no float32 masters
    held = freeze_teacher(unet, empty_prompt_states(job), accelerator, config.preserve.strength)
    config.adapter.attach(unet, config.seed)
    device.configure_unet(unet, config.memory)
    unet.to(accelerator.device, memory_format=torch.channels_last)
    unet.train()
    trained = adapters.trainable_parameters(unet)
    average = Ema(trained, config.ema)
    prepared = accelerator.prepare(unet)  # which moves weights
    optimizer = optim.build_optimizer(trained.values(), config.optim)
    if config.compile:
        prepared = torch_compile.compile_network(prepared, len(job.collection.buckets))
    return TrainState(0, prepared, accelerator.prepare(optimizer), accelerator, average, anchor=held)


def empty_prompt_states(job: Job) -> TextStates | None:
    """Of the empty prompt, if prompts are to be preserved."""
    return encode_text(job.model, "", job.accelerator.device) if job.collection.preserved else None


def load_latest(job: Job, found: Run, state: TrainState) -> None:
    """Put the run's newest whole checkpoint back, naming those that were not whole. Raises InputError if it was
    computed in another way, or has finished and its checkpoints are gone.
    """
    device.check_run_conditions(found.facts("plan.json"), job.accelerator, found.path)
    kept = checkpoint.resume_checkpoint(job.accelerator, found.checkpoints, job.identity)
    if kept is not None:
        restore_state(state, kept, found.checkpoints)
        job.accelerator.print(f"continuing {found.path} after step {kept.step}")
    elif found.done is not None:
        what = f"finished after {found.done} steps, but none of its checkpoints is whole"
        raise InputError(what, where=found.checkpoints, fix="--new starts over, in another folder.")
    else:
        job.accelerator.print(f"no checkpoint in {found.path}: it begins at step 0")


def open_logger(job: Job, found: Run, start: int) -> MetricsLogger:
    """Numbers are written by the first process only."""
    if not job.accelerator.is_main_process:
        return SilentLogger()
    config, name = job.config, found.path.name
    project, settings = config.logging.wandb_project, config.model_dump(mode="json")
    others = [WeightsAndBiases(project, name, job.identity, settings, found.path)] if config.logging.wandb else []
    board = config.logging.tensorboard
    return RunLogger(found.path, start=start, stop=config.max_steps, tensorboard=board, trackers=others)


def build_context(job: Job, encoded: Encoded, found: Run, plan: Plan) -> TrainContext:
    """The part of the work that does not change while it trains."""
    schedule = job.model.schedule.to(job.accelerator.device)
    sides = {"held-out": encoded.held_out, "train": encoded.train_subset}
    objective, scaling = job.config.objective, job.model.scaling_factor
    validator = Validator(sides, objective, schedule, scaling, job.config.validation.timesteps)
    return TrainContext(
        config=job.config,
        layout=job.layout,
        objective=objective,
        schedule=schedule,
        batches=lambda start, stop: micro_batches(job, encoded, start, stop),
        validator=validator,
        checkpoints=found.checkpoints,
        identity=job.identity,
        measure_base=base_measurement(job, validator),
        easel=build_preview_sampler(job, found),
        speed=Speed(
            plan.flops.step, peak_flops(job.accelerator.device, job.accelerator.mixed_precision), plan.processes
        ),
        publish=lambda: write_report(found, plan) if job.accelerator.is_main_process else None,
    )


def base_measurement(job: Job, validator: Validator) -> Callable[[Measure], LossesBySplit]:
    """How the first look comes by its numbers."""
    config, accelerator = job.config, job.accelerator
    if accelerator.num_processes > 1:
        return validation.measure_uncached
    settings = (config.adapter, config.memory, config.compile, accelerator.mixed_precision)
    network = (job.model.fingerprints["unet"], *map(repr, settings))
    return validation.measure_cached(validator, network, accelerator.device)


def micro_batches(job: Job, encoded: Encoded, start: int, stop: int) -> Iterator[Batch]:
    """The micro-batches of this process for the steps [start, stop), on the device."""
    config = job.config
    pictures = EncodedDataset(
        encoded.buckets,
        encoded.empty,
        seed=config.seed,
        scaling_factor=job.model.scaling_factor,
        dropout=config.pictures.caption_dropout,
        noise=TrainingNoise(config.objective.noise_offset, config.objective.input_perturbation),
        kept=encoded.kept,
        share=config.preserve.share,
    )
    sizes = list(map(len, encoded.buckets))
    weights = encoded.weights
    sampler = StepSampler(sizes, job.layout, seed=config.seed, start=start, stop=stop, weights=weights)
    # a generator of its own: DataLoader would draw from torch's global one
    loader = DataLoader(pictures, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator())
    return (to_device(batch, job.accelerator.device) for batch in loader)


def finish_run(job: Job, state: TrainState, found: Run, plan: Plan) -> None:
    """Export, report, and mark the run as finished, last."""
    config, steps, progress = job.config, state.step, state.progress
    stopped = steps < config.max_steps
    why = explain_stop(progress, config.validation.patience, steps) if stopped else ""
    load_best_weights(job, state, found)
    facts = export_metadata(config, job.model, plan.facts(), found.path.name, state.step)
    request = ExportRequest(config.export, facts)
    with evaluation_weights(state):
        files = config.adapter.export(state.unwrapped_unet(), job.model, found.export, request)
    verify.write_record(found.export, state.step, request.options, files)
    outcome = Outcome(next_command(found), steps, state.step, progress, config.checkpoints.export, why)
    write_summary(found, plan, outcome)
    found.write_json("done", {"steps": steps} | ({"patience": config.validation.patience} if stopped else {}))
    if why:
        print(why)
    print(f"finished: {', '.join(map(str, files))}, the weights of step {state.step}")
    if plan.sampling:
        print(f"beware:   {plan.sampling}")
    print(f"report:   {found.path / 'report.html'}")
    print(f"next:     {outcome.command}")


def load_best_weights(job: Job, state: TrainState, found: Run) -> None:
    """Put the best step's weights in place of the last ones, which stay among the checkpoints."""
    best = state.progress.chosen
    if job.config.checkpoints.export == "last" or best is None or best.judged_by != HELD_OUT or best.step == state.step:
        return
    try:
        kept = checkpoint.load_checkpoint(found.checkpoints / f"{best.step:06d}", job.identity)
    except InputError as error:
        print(f"the best step's weights are gone, so the last ones are exported: {error}")
        return
    restore_state(state, kept, found.checkpoints)


def next_command(found: Run) -> str:
    """Draw with what was learnt."""
    return f'python infer/generate.py --model {found.path} --prompt "a water type fridge" --compare-base'


def is_finished(found: Run, config: Config) -> bool:
    """Whether a run has done all that these settings ask for: its steps or its patience, and the export."""
    if found.done is None:
        return False
    out_of_patience = 0 < config.validation.patience <= found.facts("done").get("patience", 0)
    best = found.facts("best.json")
    as_asked = best.get("export", config.checkpoints.export) == config.checkpoints.export
    return as_asked and is_exported(found, config.export) and (found.done >= config.max_steps or out_of_patience)


def is_exported(found: Run, wanted: ExportOptions) -> bool:
    """Whether the files that are asked for are there, in that precision; or cannot be made, for no weights are kept."""
    made = verify.read_record(found.export)
    files: list[str] = made.get("files", [])
    there = bool(files) and all((found.export / name).exists() for name in files)
    merged = "model" in files or not wanted.merge
    single = SINGLE_FILE in files or not wanted.single_file
    as_wanted = there and merged and single and made["precision"] == wanted.precision
    return as_wanted or not checkpoint.list_checkpoints(found.checkpoints)


def describe_finished(found: Run, config: Config, accelerator: Accelerator) -> str:
    # with a decaying learning rate every step depends on the length: a longer run is another one, see config.identity
    extends = config.optim.schedule in ENDLESS_SCHEDULES
    longer = "extends it" if extends else f"is another run ({config.optim.schedule} follows the length)"
    patience = found.facts("done").get("patience")
    why = " (out of patience)" if patience else ""
    more = f"--validation.patience {patience + 1} goes on" if patience else f"A larger --max-steps {longer}"
    lines = [f"{found.path} has these settings and finished after {found.done} steps{why}; nothing to do."]
    before = found.facts("plan.json")
    if device.conditions_differ(before, accelerator):
        was, would = (device.describe_conditions(each) for each in (before, device.run_conditions(accelerator)))
        lines += [f"beware: it was trained by {was}; this would be {would}, which --new does in another run."]
    return "\n".join([*lines, f"{more}, --new starts over.", f"next: {next_command(found)}"])


@dataclass(frozen=True)
class Job:
    """A config with everything that was found out about it."""

    config: Config
    accelerator: Accelerator
    model: BaseModel
    collection: TrainingSet
    identity: str
    draw: GeneratePreviews | None = None  # how to draw previews, handed down by the entry

    @property
    def layout(self) -> BatchLayout:
        accelerator = self.accelerator
        return BatchLayout(
            self.config.batch_size, self.config.accumulate, accelerator.num_processes, accelerator.process_index
        )


def run_training(config: Config, draw: GeneratePreviews | None = None) -> int:
    """Plan, train and export; returns the exit code. The same settings continue the run that has them.

    draw: how previews are drawn; without it there are none.
    """
    code, _ = find_and_train(config, draw)
    return code


def find_and_train(config: Config, draw: GeneratePreviews | None = None) -> tuple[int, Run | None]:
    """As run(), and the run's folder if there is one."""
    job = prepare_job(config, draw)
    found = None if config.new else run_folder.find_run(config.runs, job.identity)
    done = found is not None and is_finished(found, config)
    over = describe_finished(found, config, job.accelerator) if found is not None and done else ""
    if over and not config.dry_run:
        job.accelerator.print(over)
        return 0, found
    state = build_state(job)
    if found is not None and not over:
        load_latest(job, found, state)
    plan = make_plan(job, RunEstimate(job, state, found), config.max_steps if over else state.step)
    job.accelerator.print("\n".join(plan.lines()))
    if config.dry_run:
        if over:
            job.accelerator.print(over)
        return 0, found
    found = found or create_folder(job)
    return train_run(job, state, found, plan), found


def prepare_job(config: Config, draw: GeneratePreviews | None) -> Job:
    """Find the model and the pictures. Raises InputError for what is not here or does not go together."""
    optim.check_installed(config.optim)
    if config.logging.wandb:
        check_wandb_installed()
    model = load_model(config.model, tokenizer=config.tokenizer)
    model = replace(model, zero_terminal_snr=config.objective.zero_terminal_snr)
    accelerator = device.start_accelerator(config)
    losses.check_prediction_type(config.objective, model.prediction_type)
    if config.objective.predicts == "epsilon":
        diffusion.check_signal(model.schedule)
    with accelerator.main_process_first():  # the first one draws the sample set, the others find it
        collection = load_training_set(config, model)
    key = run_identity(config, collection.fingerprint, model.fingerprint + model.schedule_fingerprint)
    return Job(config, accelerator, model, collection, key, draw)


def create_folder(job: Job) -> Run:
    """A new run folder, made by the first process and known to all."""
    name = job.config.run_name or job.config.adapter.label
    paths: list[str] = [""]
    if job.accelerator.is_main_process:
        facts = job.collection.facts() | {"identity": job.identity, "model": job.model.fingerprints}
        files = {"config.yaml": config_yaml(job.config), "data.json": to_json(facts)}
        found = run_folder.create_run(job.config.runs, name, files)
        paths = [str(found.path)]
    broadcast_object_list(paths)
    return Run(Path(paths[0]))


def config_yaml(config: Config) -> str:
    """config.yaml: all settings, with which the run can be made again."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude={"new", "dry_run"}), sort_keys=False)


@survive_closed_output()
def train_run(job: Job, state: TrainState, found: Run, plan: Plan) -> int:
    """Encode, train, export, and say what to type next."""
    config, accelerator = job.config, job.accelerator
    encoded = encode_training_set(job.model, job.collection, config, accelerator)
    device.release_memory()
    with found.lock() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            found.reopen()
            write_atomic(found.path / "config.yaml", config_yaml(config))  # an extended run has other ones
            found.write_json("plan.json", plan.facts())
            found.write_json("versions.json", run_folder.library_versions())
        report = open_logger(job, found, state.step)
        try:
            task = build_context(job, encoded, found, plan)
            if config.compile and state.step < config.max_steps:
                check_compiled(state, task)
            finished = fit(state, task, report)
        finally:
            report.close()
        if not finished:
            accelerator.print(f"stopped after step {state.step} of {config.max_steps}; the same command continues it")
            return 130
        if accelerator.is_main_process:
            finish_run(job, state, found, plan)
    return 0


def check_compiled(state: TrainState, task: TrainContext) -> None:
    """Raises InputError if the compiler computes other gradients for the coming micro-batch."""
    batch = next(task.batches(state.step, state.step + 1))

    def loss_of(network: nn.Module) -> Tensor:
        return sample_losses(Denoiser(network), task, batch).mean()

    with state.accelerator.no_sync(state.unet):
        torch_compile.check_gradients(state.unet, loss_of, state.accelerator.mixed_precision)
