"""A run of fit.py while it trains: what changes (State), what does not (Task), and what waits to be read (Window)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from data.dataset import BatchLayout
from train.ddpm.runs.batches import BatchStream
from train.ddpm.runs.config import FitConfig
from train.ddpm.runs.validation import ValidationSet
from train.ddpm.runs.model import Model
from train.ddpm.runs.objective import Corrupt
from train.ddpm.runs.objective import Loss
from train.ddpm.runs.objective import TimestepSampler
from train.ddpm.schedule import Schedule
from train.ema import Ema
from train.metrics import Speed
from train.validation import Losses
import math
import time
import torch
from torch import Tensor
from data import rng
from data.errors import InputError
from train import checkpoint
from train import signals
from train import optim
from train.checkpoint import Checkpoint
from train.ddpm.runs import validation
from train.ddpm.runs.batches import Batch
from train.ddpm.runs.grids import write_preview
from train.ddpm.runs.objective import NoisedBatch
from train.metrics import MetricsLogger
from train.metrics import none_if_infinite
from train.signals import stop_requests
from train.validation import paired_difference
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from data import rng
from data.dataset import BatchLayout
from data.errors import InputError
from train.ddpm.image_sets import load_image_set
from train.ddpm.image_sets import ImageSet
from train import checkpoint
from train import optim
from train import device
from train import run_folder
from train.torch_compile import GRADIENT_TOLERANCE
from train.torch_compile import relative_errors
from train.ddpm import samplers
from train.ddpm.unets.config import NetworkShape
from train.ddpm.runs import report
from train.ddpm.runs import model
from train.ddpm.runs import validation
from train.ddpm.runs import objective
from train.ddpm.runs.batches import BatchStream
from train.ddpm.runs.config import FitConfig
from train.ddpm.runs.config import identity
from train.ddpm.runs.model import blame_flag
from train.ddpm.runs.model import KIND
from train.ddpm.runs.model import Model
from train.ddpm.runs.report import write_readme
from train.ddpm.runs.report import write_report
from train.ddpm.runs.objective import ImportanceTimesteps
from train.ddpm.runs.objective import TimestepSampler
from train.ddpm.runs.objective import UniformTimesteps
from train.ema import Ema
from train.estimate import peak_flops
from train.metrics import MetricsLogger
from train.metrics import SilentLogger
from train.metrics import RunLogger
from train.metrics import read_metrics
from train.run_folder import Run
from train.run_folder import to_json
from train.signals import survive_closed_output
from train.metrics import Speed
from train.validation import Losses

@dataclass
class TrainState:
    """All that changes while a run trains."""

    step: int  # optimiser steps done
    network: nn.Module  # as accelerate and the compiler wrapped it
    optimizer: Any  # accelerate's, around the one of train/optim.py
    accelerator: Accelerator
    ema: Ema
    draws: TimestepSampler
    base: dict[str, Losses] = field(default_factory=dict)  # x_0 errors before step 1, by side

    def plain_network(self) -> nn.Module:
        """The network itself, whose weights have their own names."""
        return self.accelerator.unwrap_model(self.network, keep_torch_compile=False)


@dataclass(frozen=True)
class TrainContext:
    """All that does not change while a run trains."""

    config: FitConfig
    layout: BatchLayout
    steps: int  # optimiser steps in all
    schedule: Schedule  # on the device
    stream: BatchStream
    corrupt: Corrupt
    loss: Loss
    sides: dict[str, ValidationSet]  # what is looked at
    model: Model  # around the plain network
    folder: Path
    identity: str
    speed: Speed
    drops_out: bool  # whether the network has dropout, which draws from torch's generator
    publish: Callable[[], None] = lambda: None


@dataclass
class MetricBuffer:
    """Steps whose numbers still lie on the device: reading them at every step would make it wait."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def read(self) -> tuple[list[float], list[float], float]:
        """Losses, gradient norms, and the seconds since the last reading; both lists wait for the device here."""
        losses, norms = torch.stack(self.losses).tolist(), torch.stack(self.norms).tolist()
        return losses, norms, time.perf_counter() - self.began

    def clear(self) -> None:
        self.losses.clear()
        self.norms.clear()
        self.rates.clear()
        self.began = time.perf_counter()


def train_step(state: TrainState, task: TrainContext, window: MetricBuffer) -> None:
    """One optimiser step. Nothing in it waits for the device, unless timesteps are drawn by importance."""
    rate = optim.learning_rate(state.step, task.config.optim, task.config.learning_rate, task.steps)
    optim.set_learning_rate(state.optimizer, rate)
    if task.drops_out:  # a function of the position, as everything random is
        torch.manual_seed(rng.seed_for(task.config.seed, "ddpm", "dropout", state.step, task.layout.rank))
    batch = task.stream.batch(state.step, state.draws)
    losses = sample_losses(state, task, batch)
    state.accelerator.backward((losses * batch.weights).mean())
    losses = losses.detach()
    state.draws.seen(batch.t, losses)
    norm = optim.clip_gradients(state.accelerator, state.optimizer, task.config.optim.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(norm)
    state.step += 1
    window.losses.append((losses * batch.weights).mean())
    window.norms.append(norm)
    window.rates.append(rate)


def sample_losses(state: TrainState, task: TrainContext, batch: Batch) -> Tensor:
    """(B,) what each picture's answer costs."""
    # x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
    xt = task.corrupt(task.schedule, batch.x0, batch.eps, batch.t)
    output = state.network(xt, batch.t, batch.labels)
    return task.loss(NoisedBatch(batch.x0, batch.eps, xt, batch.t), output.float())


def train_loop(state: TrainState, task: TrainContext, report: MetricsLogger) -> bool:
    """Train to the last step. False if it was asked to stop before; the step is saved in any case."""
    window = MetricBuffer()
    resumed_at = state.step or None  # what is due at that step was done before it was saved
    with stop_requests(signals.launcher_pid()) as asked:
        while True:
            last, stopping = state.step >= task.steps, bool(asked)
            if state.step != resumed_at:
                between_steps(state, task, report, window, last=last, stopping=stopping)
            if last or stopping:
                return last
            train_step(state, task, window)
            report.advance(1)


def between_steps(state: TrainState, task: TrainContext, report: MetricsLogger, window: MetricBuffer, *, last: bool, stopping: bool) -> None:
    """What is due between two steps: write down, then look, then save, then draw."""
    config = task.config
    looking = state.step % config.looks.every == 0 or last
    saving = state.step > 0 and (state.step % config.checkpoints.every == 0 or last or stopping)
    drawing = state.step > 0 and config.drawings.every > 0 and (state.step % config.drawings.every == 0 or last)
    if state.step % config.log_every == 0 or looking or saving:
        log_metrics(state, task, window, report)
    if looking:
        validate(state, task, report)
    if saving:
        save_checkpoint(state, task)
    if drawing and not stopping and state.accelerator.is_main_process:
        with state.ema.swapped():
            file = write_preview(task.model, config.drawings, task.folder / "drawings", state.step)
        report.picture("drawings", state.step, file)
    if looking or drawing:
        task.publish()
    if looking or drawing or saving:
        window.began = time.perf_counter()  # none of that is training


def log_metrics(state: TrainState, task: TrainContext, window: MetricBuffer, report: MetricsLogger) -> None:
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


def validate(state: TrainState, task: TrainContext, report: MetricsLogger) -> None:
    """The error of x_0 at fixed noise, on held-out pictures and as many training pictures."""
    timesteps = validation.spread_timesteps(task.schedule.steps, task.config.looks.timesteps)
    with state.ema.swapped(), eval_mode(state):
        found = {name: validation.measure_errors(task.model, side, timesteps).x0 for name, side in task.sides.items()}
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


class eval_mode:
    """A context in which the network has its dropout off; afterwards it is in the mode that it was in."""

    def __init__(self, state: TrainState) -> None:
        self.network = state.plain_network()
        self.was = self.network.training

    def __enter__(self) -> None:
        self.network.eval()

    def __exit__(self, *_: object) -> None:
        self.network.train(self.was)


def save_checkpoint(state: TrainState, task: TrainContext) -> None:
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
        checkpoint.save_checkpoint(folder, kept, task.identity)
        checkpoint.prune_checkpoints(folder, task.config.checkpoints.keep)
    state.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class Job:
    """A config with everything that was found out about it."""

    config: FitConfig
    accelerator: Accelerator
    train: ImageSet
    held_out: ImageSet
    layout: BatchLayout
    steps: int
    identity: str


def fit(config: FitConfig) -> int:
    """Train as the config says; returns the exit code. The same settings continue the run that has them."""
    code, _ = fit_or_resume(config)
    return code


def fit_or_resume(config: FitConfig, *, held_out_by: int | None = None) -> tuple[int, Run]:
    """As run(), and the run's folder. held_out_by: the seed of the split, if it is not the run's own."""
    optim.check_installed(config.optim)
    job = prepare_job(config, config.seed if held_out_by is None else held_out_by)
    found = None if config.new else run_folder.find_run(config.runs, job.identity)
    if found is not None and (found.done or 0) >= job.steps:
        job.accelerator.print(f"{found.path} has these settings and is finished; --new starts over.")
        job.accelerator.print(next_commands(found))
        return 0, found
    made = build_model(job)
    state = build_state(job, made)
    job.accelerator.print("\n".join(describe_plan(job, made)))
    found = found or create_run(job)
    return train_run(job, state, made, found), found


def prepare_job(config: FitConfig, split_seed: int) -> Job:
    """Read the pictures and say no where it must be said, before anything is built."""
    schedule = model.build_schedule(config.schedule)
    with blame_flag("--objective.predicts"):
        objective.get_output_meaning(config.objective).check(schedule)
    if config.drawings.every:
        check_preview_sampler(config)
    accelerator = device.create_accelerator(config.threads)
    device.set_tf32(True)
    with accelerator.main_process_first():  # the first draws the sample set, the others find it
        pictures = load_image_set(config.data, seed=split_seed)
    if config.conditional and (pictures.labels is None or bool((pictures.labels < 0).any())):
        what = f"pictures of {config.data.set} without a class"
        fix = "Put each class into a sub-folder, or add --no-conditional."
        raise InputError(what, where="--conditional", fix=fix)
    train, held_out = pictures.split(config.data.held_out, split_seed)
    layout = BatchLayout(config.batch_size, 1, accelerator.num_processes, accelerator.process_index)
    steps = config.steps(len(train), layout.global_batch)
    key = identity(config, train.fingerprint, steps)
    return Job(config, accelerator, train, held_out, layout, steps, key)


def check_preview_sampler(config: FitConfig) -> None:
    """The grids are drawn by a sampler of any process that the network can answer for."""
    with blame_flag("--drawings.sampler"):
        sampler = samplers.make_sampler(config.drawings.sampler)
    if sampler.corruption == "mix" and config.objective.corruption != "mix":
        what = "the naive sampler is for --objective.corruption mix"
        raise InputError(what, where="--drawings.sampler", allowed="another, e.g. ddim")


def build_model(job: Job) -> Model:
    """The network with random weights that follow from the seed, in training mode, on the device."""
    config, device = job.config, job.accelerator.device
    classes = job.train.classes if config.conditional else ()
    answers = 2 if config.objective.variance == "learned-range" else 1
    frame = NetworkShape(job.train.channels, job.train.size, len(classes), answers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed_for(config.seed, "ddpm", "weights"))
        network = config.network.build(frame)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    network.to(device, memory_format=layout)  # type: ignore[call-overload]
    schedule = model.build_schedule(config.schedule)
    return Model(
        network, config.network, frame, schedule, config.schedule, config.objective, classes, job.train.name, device
    )


def build_state(job: Job, made: Model) -> TrainState:
    """The network ready to train, its optimiser and the average of its weights."""
    config, accelerator = job.config, job.accelerator
    made.network.train()
    weights = {name: weight for name, weight in made.network.named_parameters() if weight.requires_grad}
    average = Ema(weights, config.ema)
    prepared = accelerator.prepare(made.network)  # which moves weights
    optimizer = accelerator.prepare(optim.build_optimizer(weights.values(), config.optim))
    network: Any = torch.compile(prepared, dynamic=False) if config.compile else prepared
    return TrainState(0, network, optimizer, accelerator, average, build_timestep_sampler(job))


def build_timestep_sampler(job: Job) -> TimestepSampler:
    """How the run's timesteps are drawn."""
    steps = job.config.schedule.steps
    by_importance = job.config.objective.bound == "importance"
    return ImportanceTimesteps(steps, job.accelerator.gather) if by_importance else UniformTimesteps(steps)  # type: ignore[arg-type]


def describe_plan(job: Job, made: Model) -> list[str]:
    """What will be done."""
    config, train = job.config, job.train
    size = sum(weight.numel() for weight in made.network.parameters())
    classes = f", {len(train.classes)} classes" if train.classes else ""
    told = ", told the class" if made.classes else ""
    epochs = job.steps * job.layout.global_batch / len(train)
    lines = [
        f"set:       {train.name}, {len(train)} pictures of {train.channels} x {train.size} x {train.size}{classes}"
        f"; {len(job.held_out)} held out",
        f"network:   {config.network.name}, {size:,} parameters, predicts {config.objective.predicts}{told}",
        f"schedule:  {config.schedule.name}, {config.schedule.steps} steps",
        f"training:  {job.steps} steps of {job.layout.global_batch} pictures ({epochs:.1f} epochs), "
        f"{device.device_name(job.accelerator.device)}, {device.describe_precision(job.accelerator)}",
    ]
    return lines + [f"note:      {note}" for note in train.notes[:5]]


def create_run(job: Job) -> Run:
    """The run's folder with what it is, made by the first process and known to all."""
    made = [str(write_folder(job).path)] if job.accelerator.is_main_process else [""]
    if job.accelerator.num_processes > 1:
        broadcast_object_list(made)
    return Run(Path(made[0]))


def write_folder(job: Job) -> Run:
    config, train = job.config, job.train
    settings = config.model_dump(mode="json")
    facts = {
        "identity": job.identity,
        "kind": KIND,
        "set": train.name,
        "fingerprint": train.fingerprint,
        "pictures": len(train),
        "held_out": len(job.held_out),
        "classes": list(train.classes),
        "notes": list(train.notes),
        "steps": job.steps,
        **device.run_conditions(job.accelerator),
    }
    files = {
        "config.yaml": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "data.json": to_json(facts),
        "versions.json": to_json(run_folder.library_versions()),
    }
    return run_folder.create_run(config.runs, config.name, files)


@survive_closed_output()
def train_run(job: Job, state: TrainState, made: Model, found: Run) -> int:
    """Train in the run's folder and leave the result there."""
    main = job.accelerator.is_main_process
    with found.lock() if main else Silence():
        resume_run(job, state, found)
        if main:
            found.reopen()
        report = open_report(job, found, state.step)
        try:
            task = build_context(job, made, found)
            if job.config.compile and state.step < job.steps:
                check_compiled(state, task)
            finished = train_loop(state, task, report)
        finally:
            report.close()
        if not finished:
            job.accelerator.print(
                f"stopped after step {state.step} of {job.steps}; the same command continues {found.path}"
            )
            return 130
        if main:
            export_run(job, state, made, found)
    return 0


class Silence:
    """A context that does nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def resume_run(job: Job, state: TrainState, found: Run) -> None:
    """Put the newest whole checkpoint back, bit for bit, naming those that were not whole. Raises InputError."""
    device.check_run_conditions(found.facts("data.json"), job.accelerator, found.path)
    kept = checkpoint.resume_checkpoint(job.accelerator, found.checkpoints, job.identity)
    if kept is None:
        return
    state.plain_network().load_state_dict(dict(kept.weights))
    state.optimizer.load_state_dict(dict(kept.optimizer))
    state.ema.load_state(kept.average, found.checkpoints)
    if job.accelerator.scaler is not None and kept.extra["scaler"]:
        job.accelerator.scaler.load_state_dict(dict(kept.extra["scaler"]))
    state.draws.load_state(dict(kept.extra.get("timesteps", {})))
    state.base = {side: Losses(torch.tensor(values).double().numpy()) for side, values in kept.extra["base"].items()}
    state.step = kept.step
    job.accelerator.print(f"continuing {found.path} after step {kept.step}")


def open_report(job: Job, found: Run, start: int) -> MetricsLogger:
    """Numbers are written by the first process only."""
    if not job.accelerator.is_main_process:
        return SilentLogger()
    return RunLogger(found.path, start=start, stop=job.steps, tensorboard=job.config.tensorboard)


def build_context(job: Job, made: Model, found: Run) -> TrainContext:
    """The part of the work that does not change while it trains."""
    config, device = job.config, job.accelerator.device
    schedule = made.schedule.to(device)
    stream = BatchStream(
        job.train.to(device),
        job.layout,
        config.seed,
        made.schedule.steps,
        config.conditional,
        config.class_dropout,
        config.channels_last,
    )
    return TrainContext(
        config=config,
        layout=job.layout,
        steps=job.steps,
        schedule=schedule,
        stream=stream,
        corrupt=objective.build_corruption(config.objective),
        loss=objective.build_loss(config.objective, schedule),
        sides=validation.validation_sets(job.train, job.held_out, config.looks.pictures, made),
        model=made,
        folder=found.path,
        identity=job.identity,
        speed=Speed(
            report.step_flops(made.options, made.frame),
            peak_flops(device, job.accelerator.mixed_precision),
            job.layout.processes,
        ),
        drops_out=any(isinstance(part, nn.Dropout) and part.p > 0 for part in made.network.modules()),
        publish=lambda: write_report(found, job.steps) if job.accelerator.is_main_process else None,
    )


def check_compiled(state: TrainState, task: TrainContext) -> None:
    """Compare the compiled network's gradients with the plain one's before step 1. Raises InputError if they differ."""
    weights = optim.optimized_weights(state.optimizer)
    batch = task.stream.batch(state.step)
    compiled, found = state.network, []
    for network in (getattr(compiled, "_orig_mod", compiled), compiled):
        state.network = network
        torch.manual_seed(0)  # the same dropout
        found.append(torch.autograd.grad(sample_losses(state, task, batch).mean(), weights))
    worst = max(itertools.chain(relative_errors(found[1], found[0]), [0.0]))
    if not worst <= GRADIENT_TOLERANCE["no"]:
        what = f"torch {torch.__version__}'s compiler computes other gradients, up to {100 * worst:.0f} % off"
        raise InputError(what, where="--compile", fix="Train without it.")


def export_run(job: Job, state: TrainState, made: Model, found: Run) -> None:
    """Save the averaged weights, the report and the card, and mark the run as finished, last."""
    with state.ema.swapped():
        made.network.eval()
        model.save_model(made, made.network.state_dict(), found.export)
    write_readme(found, describe_plan(job, made), next_commands(found))
    write_report(found, job.steps, ended=f"Finished after {state.step} steps.")
    found.finish(state.step)
    bell = "\a" if sys.stdout.isatty() else ""  # whoever waits in front of a terminal is told
    print(f"{bell}finished:  {found.export}")
    print(report.format_speed(read_metrics(found.metrics)))
    print(f"report:    {found.path / 'report.html'}")
    print(next_commands(found))


def next_commands(found: Run) -> str:
    """What one does with it."""
    return (
        f"next:      python train/ddpm/sample.py --run {found.path}\n"
        f"           python train/ddpm/score.py --run {found.path}"
    )
