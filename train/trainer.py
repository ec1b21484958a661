"""The fine-tuner, top to bottom: set up, train, validate, save, export.

noise the latents -> predict -> compare with the target -> average over the global batch -> clip -> step
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from data.atomic_io import write_atomic
from data.dataset import Batch, BatchLayout
from data.errors import InputError
from train import adapters, checkpoint, device, losses, optim, resume, run_folder, signals, torch_compile, validation
from train.checkpoint import Checkpoint
from train.config import Config
from train.ddpm import diffusion
from train.estimate import RunEstimate
from train.exporters import run_export
from train.exporters.verify import ExportRequest, write_record
from train.losses import DenoisingLoss, PriorTeacher
from train.metrics import MetricBuffer, MetricsLogger, Speed, bin_losses, check_wandb_installed, open_logger
from train.model import BaseModel, Denoiser, load_model
from train.optim import Ema
from train.plan import Plan, make_plan, plan_lines
from train.profiler import peak_flops
from train.report import Outcome, write_report, write_summary
from train.resume import FoundRun
from train.run_folder import Run, identity_v1, run_identity, to_json
from train.samples import GeneratePreviews, PreviewSampler, choose_previews
from train.training_set import (
    Encoded,
    TrainingSet,
    encode_text,
    encode_training_set,
    keep_split,
    load_training_set,
    micro_batches,
)
from train.validation import HELD_OUT, TRAIN, EarlyStopping, Losses, ValidationResult, Validator


@dataclass
class TrainState:
    """All that changes while a run trains, which is what a checkpoint contains."""

    step: int  # optimiser steps done
    unet: nn.Module  # as accelerate wrapped it
    optimizer: Any  # accelerate's wrapper
    accelerator: Accelerator
    ema: Ema
    pieces: int = 1  # parts that a micro-batch is split into, since memory ran out
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.unet)

    def plain_unet(self) -> Any:
        return self.accelerator.unwrap_model(self.unet, keep_torch_compile=False)

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Inside, the network has the weights that are validated, previewed and exported: their EMA if there is one, or
        schedule-free's own average. Afterwards everything is as it was, bit for bit.
        """
        with optim.averaged_weights(self.optimizer), self.ema.swapped():
            yield

    def save(self, folder: Path, identity: str) -> None:
        scaler = self.accelerator.scaler
        scale = scaler.state_dict() if scaler is not None else None
        extra = {"scaler": scale, "pieces": self.pieces, "progress": asdict(self.early_stopping)}
        weights = adapters.trainable_state(self.plain_unet())
        saved = Checkpoint(self.step, weights, self.optimizer.state_dict(), extra, self.ema.state())
        checkpoint.save_checkpoint(folder, saved, identity)

    def load(self, saved: Checkpoint, folder: Path) -> None:
        """Restore a checkpoint bit for bit."""
        adapters.load_trainable_state(self.plain_unet(), saved.weights, folder)
        self.optimizer.load_state_dict(dict(saved.optimizer))
        self.ema.load_state(saved.average, folder)
        if self.accelerator.scaler is not None and saved.extra["scaler"]:
            self.accelerator.scaler.load_state_dict(dict(saved.extra["scaler"]))
        self.early_stopping = EarlyStopping.from_json(saved.extra.get("progress"))
        self.step, self.pieces = saved.step, saved.extra.get("pieces", 1)


@dataclass(frozen=True)
class TrainContext:
    """All that does not change while a run trains."""

    config: Config
    layout: BatchLayout
    loss: DenoisingLoss
    batches: Callable[[int, int], Iterator[Batch]]  # micro-batches of the steps [start, stop)
    validator: Validator
    checkpoints: Path
    identity: str
    teacher: PriorTeacher | None = None
    base: Sequence[object] | None = None  # what the base model's losses follow from, to cache them; None: do not
    previews: PreviewSampler | None = None
    speed: Speed = field(default_factory=Speed)
    publish: Callable[[], None] = lambda: None  # write the report so far


@dataclass(frozen=True)
class Setup:
    """A config with the machine, the base model and the dataset that it names."""

    config: Config
    accelerator: Accelerator
    model: BaseModel
    dataset: TrainingSet
    found: FoundRun  # the run to resume, if there is one
    generate: GeneratePreviews | None = None

    @property
    def layout(self) -> BatchLayout:
        return device.batch_layout(self.config, self.accelerator)


# ---- set up


@signals.survive_closed_output()
def train(config: Config, generate: GeneratePreviews | None = None) -> tuple[int, Run | None]:
    """Plan, train and export; returns the exit code and the run. The same settings resume the run that has them.

    generate: how preview images are generated; without it there are none.
    """
    setup = load_setup(config, generate)
    accelerator, run, is_main = setup.accelerator, setup.found.run, setup.accelerator.is_main_process
    finished = run is not None and checkpoint.is_finished(run, config)
    if run is not None and finished:
        accelerator.print(checkpoint.describe_finished(run, config, accelerator))
        if not config.dry_run:
            return 0, run
    state, teacher = build_state(setup)
    if run is not None and not finished:
        load_latest(setup, state, run)
    plan = make_plan(build_estimate(setup, state, teacher), config.max_steps if finished else state.step)
    accelerator.print("\n".join(plan_lines(plan)))
    if config.dry_run:
        return 0, run
    run = run or create_run_folder(setup)
    encoded = encode_training_set(setup.model, setup.dataset, config, accelerator)
    device.release_memory()
    with run.lock() if is_main else nullcontext():
        if is_main:
            write_settings(run, config, plan)
            resume.note_changes(setup.found, state.step)
        context = build_context(run, setup, encoded, plan, teacher)
        logger = open_logger(config, run.path, setup.found.identity, state.step) if is_main else MetricsLogger()
        try:
            if config.compile and state.step < config.max_steps:
                check_compiled(state, context)
            completed = fit(state, context, logger)
        finally:
            logger.close()
        if not completed:
            accelerator.print(f"stopped after step {state.step} of {config.max_steps}; the same command resumes it")
            return 130, run
        if is_main:
            export(setup, state, run, plan)
    return 0, run


def load_setup(config: Config, generate: GeneratePreviews | None) -> Setup:
    """Find the model, the images and an earlier run. Raises InputError for what is missing or does not fit together."""
    optim.check_installed(config.optim)
    if config.logging.wandb:
        check_wandb_installed()
    model = load_model(config.model, tokenizer=config.tokenizer)
    model = replace(model, zero_terminal_snr=config.objective.zero_terminal_snr)
    accelerator = device.start_accelerator(config)
    losses.check_prediction_type(config.objective, model.prediction_type)
    if config.objective.predicts == "epsilon":
        diffusion.check_signal(model.schedule)
    with accelerator.main_process_first():  # the first one unpacks the sample set, the others find it
        dataset = load_training_set(config, model)
    fingerprints = dataset.fingerprint, model.fingerprint + model.schedule_fingerprint
    identity, v1 = run_identity(config, *fingerprints), identity_v1(config, *fingerprints)
    found = resume.find_run(config, dataset.facts() | {"model": model.fingerprints}, identity, v1)
    if found.message:
        accelerator.print(found.message)
    if found.run and not found.changes:
        dataset = keep_split(dataset, found.run.facts("data.json"), model, several=config.pictures.buckets)
    return Setup(config, accelerator, model, dataset, found, generate)


def build_state(setup: Setup) -> tuple[TrainState, PriorTeacher | None]:
    """The network with its adapter, the optimiser and the EMA, on the device; and the frozen base, if it is needed."""
    config, accelerator = setup.config, setup.accelerator
    unet: Any = setup.model.unet
    if not config.adapter.trains_base and accelerator.mixed_precision in device.DTYPES:
        unet.to(dtype=device.DTYPES[accelerator.mixed_precision])  # frozen weights need no float32 masters
    teacher = None
    if setup.dataset.preserved:
        empty = encode_text(setup.model, "", accelerator.device, setup.dataset.chunks)
        teacher = losses.freeze_teacher(unet, empty, accelerator, config.preserve.strength)
    adapters.inject(unet, config.adapter, config.seed)
    device.configure_unet(unet, config.memory)
    unet.to(accelerator.device, memory_format=torch.channels_last)
    unet.train()
    trainable = adapters.trainable_parameters(unet)
    ema = Ema(trainable, config.ema)
    prepared = accelerator.prepare(unet)  # which moves weights
    optimizer = optim.build_optimizer(trainable.values(), config.optim)
    if config.compile:
        prepared = torch_compile.compile_network(prepared, len(setup.dataset.buckets))
    return TrainState(0, prepared, accelerator.prepare(optimizer), accelerator, ema), teacher


def load_latest(setup: Setup, state: TrainState, run: Run) -> None:
    """Restore the run's newest whole checkpoint, naming those that were not whole. Raises InputError if the run was
    started under other conditions, or has finished and its checkpoints are gone.
    """
    accelerator = setup.accelerator
    device.check_run_conditions(run.facts("plan.json"), accelerator, run.path)
    latest = checkpoint.resume_checkpoint(accelerator, run.checkpoints, setup.found.identity)
    if latest is not None:
        state.load(latest, run.checkpoints)
        accelerator.print(f"resuming {run.path} after step {latest.step}")
    elif run.done is not None:
        what = f"finished after {run.done} steps, but none of its checkpoints is whole"
        raise InputError(what, where=run.checkpoints, fix="--new starts over, in another folder.")
    else:
        accelerator.print(f"no checkpoint in {run.path}: starting at step 0")


def build_estimate(setup: Setup, state: TrainState, teacher: PriorTeacher | None) -> RunEstimate:
    """What the plan is computed from."""
    previews = choose_previews(setup.config, setup.dataset) if setup.generate else []
    network = setup.config, setup.accelerator, setup.model, setup.dataset, state.unet
    return RunEstimate(*network, teacher.nbytes if teacher else 0, len(previews), setup.found.run)


def create_run_folder(setup: Setup) -> Run:
    """A new run folder, created by the first process and known to all."""
    config, paths = setup.config, [""]
    if setup.accelerator.is_main_process:
        facts = setup.found.facts | {"identity": setup.found.identity}
        files = {"config.yaml": config_yaml(config), "data.json": to_json(facts)}
        paths = [str(run_folder.create_run(config.runs, config.run_name or config.adapter.label, files).path)]
    broadcast_object_list(paths)
    return Run(Path(paths[0]))


def write_settings(run: Run, config: Config, plan: Plan) -> None:
    run.reopen()
    write_atomic(run.path / "config.yaml", config_yaml(config))  # that of an extended run differs
    run.write_json("plan.json", plan)
    run.write_json("versions.json", run_folder.library_versions())


def config_yaml(config: Config) -> str:
    """All settings, from which the run can be repeated."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude={"new", "dry_run", "resume"}), sort_keys=False)


def build_context(run: Run, setup: Setup, encoded: Encoded, plan: Plan, teacher: PriorTeacher | None) -> TrainContext:
    config, accelerator, model, identity = setup.config, setup.accelerator, setup.model, setup.found.identity
    is_main, on, precision = accelerator.is_main_process, accelerator.device, accelerator.mixed_precision
    loss = losses.build_loss(config.objective, model.schedule.to(on))
    splits = {HELD_OUT: encoded.held_out, TRAIN: encoded.train_subset}
    network = (model.fingerprints["unet"], *map(repr, (config.adapter, config.memory, config.compile, precision)))
    previews = None
    if setup.generate and (images := choose_previews(config, setup.dataset)):
        where = run.path / "previews", model, setup.dataset.square.width, identity
        generate = setup.generate if is_main else None  # the first process generates; all know when
        previews = PreviewSampler(config, images, *where, device.describe_precision(accelerator), on, generate)
    return TrainContext(
        config=config,
        layout=setup.layout,
        loss=loss,
        batches=partial(micro_batches, encoded, config, setup.layout, model.scaling_factor, on),
        validator=Validator(splits, config.objective, loss.schedule, model.scaling_factor, config.validation.timesteps),
        checkpoints=run.checkpoints,
        identity=identity,
        teacher=teacher,
        previews=previews,
        base=network if accelerator.num_processes == 1 else None,
        speed=Speed(plan["flops"]["step"], peak_flops(on, precision), plan["processes"]),
        publish=partial(write_report, run, plan) if is_main else lambda: None,
    )


def check_compiled(state: TrainState, context: TrainContext) -> None:
    """Raises InputError if the compiler computes other gradients for the coming micro-batch."""
    batch = next(context.batches(state.step, state.step + 1))

    def loss_of(network: nn.Module) -> Tensor:
        return context.loss(Denoiser(network), batch).mean()

    with state.accelerator.no_sync(state.unet):
        torch_compile.check_gradients(state.unet, loss_of, state.accelerator.mixed_precision)


# ---- the loop


def fit(state: TrainState, context: TrainContext, logger: MetricsLogger) -> bool:
    """Train until config.max_steps or early stopping. False if a signal stopped it before.

    The last step is saved in any case.
    """
    config, buffer = context.config, MetricBuffer()
    batches = context.batches(state.step, config.max_steps)
    known, questions = state.early_stopping, context.validator.questions
    state.early_stopping = known.about(questions)
    if state.step and known.questions not in ("", questions):
        logger.say("validation uses other images or timesteps than before: it starts over, without the base")
    if state.step < config.max_steps:
        state.early_stopping = state.early_stopping.continued()
    resumed_at = state.step or None  # what is due at that step was done before it was saved
    with signals.stop_requests(signals.launcher_pid()) as stop_request:
        while True:
            last, stopping = state.step >= config.max_steps, bool(stop_request)
            if state.step != resumed_at:
                between_steps(state, context, logger, buffer, last=last, stopping=stopping)
            ended = last or state.early_stopping.out_of_patience(config.validation.patience)
            if not stopping:
                save_previews(state, context, logger, last=ended)
            if ended or stopping:
                return ended
            train_step(state, context, batches, buffer)
            logger.advance(1)


def save_previews(state: TrainState, context: TrainContext, logger: MetricsLogger, *, last: bool) -> None:
    """Where they are due: after the checkpoint, for an image is no reason to lose a step."""
    if context.previews is not None and context.previews.due(state.step, last=last):
        with state.evaluation_weights():
            context.previews.save(state.plain_unet(), state.step, logger)


def between_steps(
    state: TrainState, context: TrainContext, logger: MetricsLogger, buffer: MetricBuffer, *, last: bool, stopping: bool
) -> None:
    """Log, then validate, then save, so that everything saved is logged. A new best is saved at once: its weights may
    be those that are exported.
    """
    config, step = context.config, state.step
    on_grid = step % config.validation.every == 0
    validating = on_grid or last
    saving = step > 0 and (step % config.checkpoints.every == 0 or last or stopping)
    if step % config.logging.every == 0 or validating or saving:
        options = {"timesteps": context.loss.schedule.steps, "sample_ids": config.logging.sample_ids}
        infinite = buffer.flush(step, state.accelerator, context.layout, context.speed, logger, **options)
        if infinite:  # no checkpoint has been written since
            raise Diverged(infinite, where="training", fix=lower_rate_hint(context.checkpoints))
    if validating:
        validate(state, context, logger, on_grid=on_grid)
    best = state.early_stopping.best
    if validating and step > 0:
        ended = state.early_stopping.out_of_patience(config.validation.patience)
        saving = saving or ended or (best is not None and best.step == step)
    if saving:
        if state.accelerator.is_main_process:
            state.save(context.checkpoints, context.identity)
            spare = [best.step] if best else []
            checkpoint.prune_checkpoints(context.checkpoints, config.checkpoints.keep, spare=spare)
        state.accelerator.wait_for_everyone()
    if validating:
        context.publish()


class Diverged(InputError):
    """The loss or its gradient is not finite any more."""


def lower_rate_hint(checkpoints: Path) -> str:
    saved = checkpoint.list_checkpoints(checkpoints)
    last = f"The last good checkpoint is {saved[-1]}." if saved else "No checkpoint had been written yet."
    return f"{last} The same command with a lower --learning-rate starts another run."


# ---- validate


def validate(state: TrainState, context: TrainContext, logger: MetricsLogger, *, on_grid: bool) -> None:
    """Measure the loss on held-out and training images at fixed noise, and compare it with the base and the best."""
    step, now = state.step, measure_losses(state, context)
    result = ValidationResult(step, {split: found.per_picture.tolist() for split, found in now.items()})
    stopping = state.early_stopping = state.early_stopping.after(result, on_grid=on_grid)
    metrics = {
        "step": step,
        "questions": context.validator.questions,
        "validation": {split: found.mean for split, found in now.items()},
        **validation.diagnosis_metrics(result, stopping),
        "per_timestep": {split: found.per_timestep for split, found in now.items()},
        "per_picture": result.per_picture,
    }
    logger.write([metrics])
    for split, found in now.items():
        if step and not math.isfinite(found.mean):
            what = f"the loss of {split} images at fixed noise is {found.mean} after step {step}"
            raise Diverged(what, where="validation", fix=lower_rate_hint(context.checkpoints))
    changes = stopping.since_base(result) if step else {}
    against = {split: f" ({change} against the base)" for split, change in changes.items()}
    shown = ", ".join(f"{split} {found.mean:.4f}{against.get(split, '')}" for split, found in now.items())
    logger.say(f"step {step}: loss at fixed noise: {shown}")
    if step:
        logger.say(f"step {step}: {validation.diagnose(result, stopping)}")


def measure_losses(state: TrainState, context: TrainContext) -> dict[str, Losses]:
    """The losses as the first process measured them: all must come to the same decision."""
    measure = context.validator.measure
    if state.step == 0 and context.base is not None:
        measure = partial(validation.measure_cached, context.validator, context.base)
    with state.evaluation_weights():
        found = [measure(state.denoiser, state.accelerator.device)]
    if state.accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


# ---- export


def export(setup: Setup, state: TrainState, run: Run, plan: Plan) -> None:
    """Export the chosen weights, write the report, and mark the run as finished, last."""
    config, steps, stopping = setup.config, state.step, state.early_stopping
    early = steps < config.max_steps
    why = stopping.explain(config.validation.patience, steps) if early else ""
    if config.checkpoints.export != "last":
        load_best(setup, state, run)
    metadata = run_export.export_metadata(config, setup.model, plan, run.path.name, state.step)
    request = ExportRequest(config.export, metadata)
    with state.evaluation_weights():
        # in the weights' own precision: accelerate's autocast is taken off, for good
        unet = state.accelerator.unwrap_model(state.unet, keep_fp32_wrapper=False, keep_torch_compile=False)
        files = run_export.export(unet, setup.model, run.export, config.adapter, request)
    write_record(run.export, state.step, request.options, files)
    outcome = Outcome(checkpoint.next_command(run), steps, state.step, stopping, config.checkpoints.export, why)
    write_summary(run, plan, outcome)
    run.write_json("done", {"steps": steps} | ({"patience": config.validation.patience} if early else {}))
    if why:
        print(why)
    print(f"finished: {', '.join(map(str, files))}, the weights of step {state.step}")
    if plan["sampling"]:
        print(f"warning:  {plan['sampling']}")
    print(f"report:   {run.path / 'report.html'}\nnext:     {outcome.command}")


def load_best(setup: Setup, state: TrainState, run: Run) -> None:
    """Load the best checkpoint, if held-out images judged it; the last one stays among the checkpoints."""
    best = state.early_stopping.chosen
    if best is None or best.judged_by != HELD_OUT or best.step == state.step:
        return
    try:
        state.load(
            checkpoint.load_checkpoint(run.checkpoints / f"{best.step:06d}", setup.found.identity), run.checkpoints
        )
    except InputError as error:
        print(f"the best checkpoint is gone, so the last one is exported: {error}")


# ---- the step


def train_step(state: TrainState, context: TrainContext, batches: Iterator[Batch], buffer: MetricBuffer) -> None:
    """One optimiser step: `accumulate` micro-batches, whose gradients add up to the mean over the global batch.

    Gradients are unscaled before they are clipped by their global norm; a step whose scaled gradients overflowed in
    fp16 is skipped by the scaler.
    """
    config, optimizer = context.config, state.optimizer
    rate = optim.learning_rate(state.step, config.optim, config.learning_rate, config.max_steps)
    optim.set_learning_rate(optimizer, rate)
    buffer.start_step()
    start = time.perf_counter()
    micro_batches = [next(batches) for _ in range(context.layout.accumulate)]
    buffer.waits.append(time.perf_counter() - start)
    losses = compute_gradients(state, context, micro_batches)
    norm = optim.clip_gradients(state.accelerator, optimizer, config.optim.clip_norm)
    with device.optimizer_memory_guard():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.ema.update(norm)
    state.step += 1
    timesteps = context.loss.timesteps(torch.cat([batch.timestep_uniforms for batch in micro_batches]))
    buffer.losses.append(losses.mean())
    buffer.norms.append(norm)
    buffer.rates.append(rate)
    buffer.bins.append(bin_losses(losses, timesteps, context.loss.schedule.steps))
    buffer.sample_ids.append([sample_id for batch in micro_batches for sample_id in batch.sample_ids])


def compute_gradients(state: TrainState, context: TrainContext, batches: Sequence[Batch]) -> Tensor:
    """Accumulate the gradient of the mean loss; returns each sample's loss. Where memory runs out, micro-batches are
    split from then on: the same sum in another order. Raises InputError when single samples do not fit.
    """
    while (losses := try_gradients(state, context, batches)) is None:
        state.optimizer.zero_grad(set_to_none=True)  # some weights may have a gradient already
        state.pieces = device.split_further(state.pieces, context.layout)
    return losses


def try_gradients(state: TrainState, context: TrainContext, batches: Sequence[Batch]) -> Tensor | None:
    """None if memory ran out; what was allocated is free again only after this function has returned."""
    parts = [part for batch in batches for part in device.split_batch(batch, state.pieces)]
    losses: list[Tensor] = []
    try:
        for batch in parts:
            is_last = batch is parts[-1]
            with nullcontext() if is_last else state.accelerator.no_sync(state.unet):
                loss = context.loss(state.denoiser, batch, context.teacher)
                # data-parallel training averages over processes, so each divides by its own share
                state.accelerator.backward(loss.sum() / (context.layout.batch_size * context.layout.accumulate))
            losses.append(loss.detach())
    except torch.OutOfMemoryError:
        return None
    return torch.cat(losses)
