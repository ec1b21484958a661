"""From a config to a finished run: read the pictures, build the network, train, save what it learnt."""

from __future__ import annotations

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

from data import seeds
from data.dataset import Layout
from data.errors import InputError
from data.sets.load import load
from data.sets.pictures import Pictures
from train import checkpoint, machine, optim, run_folder
from train.compiled import TOLERANCE, relative_errors
from train.ddpm import samplers
from train.ddpm.networks.kinds import Frame
from train.ddpm.running import cost, errors, loop, model, objective
from train.ddpm.running.batches import Stream
from train.ddpm.running.config import FitConfig, identity
from train.ddpm.running.flags import about
from train.ddpm.running.model import KIND, Model
from train.ddpm.running.report_page import write_card, write_report
from train.ddpm.running.state import State, Task
from train.ddpm.running.timesteps import ByImportance, Draws, Evenly
from train.ema import Ema
from train.flops import peak_flops
from train.report import Report, Silent, Written, read_metrics
from train.run_folder import Run, to_json
from train.signals import outlasting_readers
from train.speed import Speed
from train.validation import Losses


@dataclass(frozen=True)
class Job:
    """A config with everything that was found out about it."""

    config: FitConfig
    accelerator: Accelerator
    train: Pictures
    held_out: Pictures
    layout: Layout
    steps: int
    identity: str


def run(config: FitConfig) -> int:
    """Train as the config says; returns the exit code. The same settings continue the run that has them."""
    code, _ = follow(config)
    return code


def follow(config: FitConfig, *, held_out_by: int | None = None) -> tuple[int, Run]:
    """As run(), and the run's folder. held_out_by: the seed of the split, if it is not the run's own."""
    optim.refuse_missing(config.optim)
    job = prepare(config, config.seed if held_out_by is None else held_out_by)
    found = None if config.new else run_folder.find(config.runs, job.identity)
    if found is not None and (found.done or 0) >= job.steps:
        job.accelerator.print(f"{found.path} has these settings and is finished; --new starts over.")
        job.accelerator.print(next_commands(found))
        return 0, found
    made = build_model(job)
    state = build_state(job, made)
    job.accelerator.print("\n".join(plan_lines(job, made)))
    found = found or create(job)
    return train(job, state, made, found), found


def prepare(config: FitConfig, split_seed: int) -> Job:
    """Read the pictures and say no where it must be said, before anything is built."""
    schedule = model.make_schedule(config.schedule)
    with about("--objective.predicts"):
        objective.meaning_of(config.objective).check(schedule)
    if config.drawings.every:
        refuse_other_process(config)
    accelerator = machine.begin(config.threads)
    machine.set_tf32(True)
    with accelerator.main_process_first():  # the first draws the sample set, the others find it
        pictures = load(config.data, seed=split_seed)
    if config.conditional and (pictures.labels is None or bool((pictures.labels < 0).any())):
        what = f"pictures of {config.data.set} without a class"
        fix = "Put each class into a sub-folder, or add --no-conditional."
        raise InputError(what, where="--conditional", fix=fix)
    train, held_out = pictures.split(config.data.held_out, split_seed)
    layout = Layout(config.batch_size, 1, accelerator.num_processes, accelerator.process_index)
    steps = config.steps(len(train), layout.global_batch)
    key = identity(config, train.fingerprint, steps)
    return Job(config, accelerator, train, held_out, layout, steps, key)


def refuse_other_process(config: FitConfig) -> None:
    """The grids are drawn by a sampler of any process that the network can answer for."""
    with about("--drawings.sampler"):
        sampler = samplers.make(config.drawings.sampler)
    if sampler.corruption == "mix" and config.objective.corruption != "mix":
        what = "the naive sampler is for --objective.corruption mix"
        raise InputError(what, where="--drawings.sampler", allowed="another, e.g. ddim")


def build_model(job: Job) -> Model:
    """The network with random weights that follow from the seed, in training mode, on the device."""
    config, device = job.config, job.accelerator.device
    classes = job.train.classes if config.conditional else ()
    answers = 2 if config.objective.variance == "learned-range" else 1
    frame = Frame(job.train.channels, job.train.size, len(classes), answers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed_for(config.seed, "ddpm", "weights"))
        network = config.network.build(frame)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    network.to(device, memory_format=layout)  # type: ignore[call-overload]
    schedule = model.make_schedule(config.schedule)
    return Model(
        network, config.network, frame, schedule, config.schedule, config.objective, classes, job.train.name, device
    )


def build_state(job: Job, made: Model) -> State:
    """The network ready to train, its optimiser and the average of its weights."""
    config, accelerator = job.config, job.accelerator
    made.network.train()
    weights = {name: weight for name, weight in made.network.named_parameters() if weight.requires_grad}
    average = Ema(weights, config.ema)
    prepared = accelerator.prepare(made.network)  # which moves weights
    optimizer = accelerator.prepare(optim.build(weights.values(), config.optim))
    network: Any = torch.compile(prepared, dynamic=False) if config.compile else prepared
    return State(0, network, optimizer, accelerator, average, draws_of(job))


def draws_of(job: Job) -> Draws:
    """How the run's timesteps are drawn."""
    steps = job.config.schedule.steps
    by_importance = job.config.objective.bound == "importance"
    return ByImportance(steps, job.accelerator.gather) if by_importance else Evenly(steps)  # type: ignore[arg-type]


def plan_lines(job: Job, made: Model) -> list[str]:
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
        f"{machine.device_name(job.accelerator.device)}, {machine.precision(job.accelerator)}",
    ]
    return lines + [f"note:      {note}" for note in train.notes[:5]]


def create(job: Job) -> Run:
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
        **machine.ways(job.accelerator),
    }
    files = {
        "config.yaml": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "data.json": to_json(facts),
        "versions.json": to_json(run_folder.versions()),
    }
    return run_folder.create(config.runs, config.name, files)


@outlasting_readers()
def train(job: Job, state: State, made: Model, found: Run) -> int:
    """Train in the run's folder and leave the result there."""
    main = job.accelerator.is_main_process
    with found.lock() if main else Silence():
        resume(job, state, found)
        if main:
            found.reopen()
        report = open_report(job, found, state.step)
        try:
            task = task_of(job, made, found)
            if job.config.compile and state.step < job.steps:
                check_compiled(state, task)
            finished = loop.fit(state, task, report)
        finally:
            report.close()
        if not finished:
            job.accelerator.print(
                f"stopped after step {state.step} of {job.steps}; the same command continues {found.path}"
            )
            return 130
        if main:
            leave(job, state, made, found)
    return 0


class Silence:
    """A context that does nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def resume(job: Job, state: State, found: Run) -> None:
    """Put the newest whole checkpoint back, bit for bit, naming those that were not whole. Raises InputError."""
    machine.refuse_other_ways(found.facts("data.json"), job.accelerator, found.path)
    kept = checkpoint.found_by(job.accelerator, found.checkpoints, job.identity)
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


def open_report(job: Job, found: Run, start: int) -> Report:
    """Numbers are written by the first process only."""
    if not job.accelerator.is_main_process:
        return Silent()
    return Written(found.path, start=start, stop=job.steps, tensorboard=job.config.tensorboard)


def task_of(job: Job, made: Model, found: Run) -> Task:
    """The part of the work that does not change while it trains."""
    config, device = job.config, job.accelerator.device
    schedule = made.schedule.to(device)
    stream = Stream(
        job.train.to(device),
        job.layout,
        config.seed,
        made.schedule.steps,
        config.conditional,
        config.class_dropout,
        config.channels_last,
    )
    return Task(
        config=config,
        layout=job.layout,
        steps=job.steps,
        schedule=schedule,
        stream=stream,
        corrupt=objective.corruption_of(config.objective),
        loss=objective.loss_of(config.objective, schedule),
        sides=errors.sides(job.train, job.held_out, config.looks.pictures, made),
        model=made,
        folder=found.path,
        identity=job.identity,
        speed=Speed(
            cost.step_flops(made.options, made.frame),
            peak_flops(device, job.accelerator.mixed_precision),
            job.layout.processes,
        ),
        drops_out=any(isinstance(part, nn.Dropout) and part.p > 0 for part in made.network.modules()),
        publish=lambda: write_report(found, job.steps) if job.accelerator.is_main_process else None,
    )


def check_compiled(state: State, task: Task) -> None:
    """Compare the compiled network's gradients with the plain one's before step 1. Raises InputError if they differ."""
    weights = optim.weights(state.optimizer)
    batch = task.stream.batch(state.step)
    compiled, found = state.network, []
    for network in (getattr(compiled, "_orig_mod", compiled), compiled):
        state.network = network
        torch.manual_seed(0)  # the same dropout
        found.append(torch.autograd.grad(loop.sample_losses(state, task, batch).mean(), weights))
    worst = max(itertools.chain(relative_errors(found[1], found[0]), [0.0]))
    if not worst <= TOLERANCE["no"]:
        what = f"torch {torch.__version__}'s compiler computes other gradients, up to {100 * worst:.0f} % off"
        raise InputError(what, where="--compile", fix="Train without it.")


def leave(job: Job, state: State, made: Model, found: Run) -> None:
    """Save the averaged weights, the report and the card, and mark the run as finished, last."""
    with state.ema.swapped():
        made.network.eval()
        model.save(made, made.network.state_dict(), found.export)
    write_card(found, plan_lines(job, made), next_commands(found))
    write_report(found, job.steps, ended=f"Finished after {state.step} steps.")
    found.finish(state.step)
    bell = "\a" if sys.stdout.isatty() else ""  # whoever waits in front of a terminal is told
    print(f"{bell}finished:  {found.export}")
    print(cost.speed_line(read_metrics(found.metrics)))
    print(f"report:    {found.path / 'report.html'}")
    print(next_commands(found))


def next_commands(found: Run) -> str:
    """What one does with it."""
    return (
        f"next:      python train/ddpm/sample.py --run {found.path}\n"
        f"           python train/ddpm/score.py --run {found.path}"
    )
