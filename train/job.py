"""From a config to a finished run: read the pictures, encode them, plan, train, export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from data.dataset import EncodedPictures, Layout, StepSampler, collate
from data.schema import Batch
from train import base_model, checkpoint, compiled, ema, machine, objectives, optim, run_folder
from train.adapters import base as adapters
from train.base_model import BaseModel
from train.config import SCHEDULES_WITHOUT_END, Config, identity
from train.curation import Collection, collect
from train.ddpm import process
from train.encoding import Encoded, encode
from train.loop import State, Task, evaluated, fit, restore
from train.plan import GIB, Plan, ema_bytes, optimizer_bytes, optimizer_line
from train.report import Report, Silent, Written, read_metrics
from train.run_folder import Run, to_json
from train.summary import write_summary
from train.validation import Losses, Validator


@dataclass(frozen=True)
class Job:
    """A config with everything that was found out about it."""

    config: Config
    accelerator: Accelerator
    model: BaseModel
    collection: Collection
    identity: str

    @property
    def layout(self) -> Layout:
        accelerator = self.accelerator
        return Layout(
            self.config.batch_size, self.config.accumulate, accelerator.num_processes, accelerator.process_index
        )


def run(config: Config) -> int:
    """Plan, train and export; returns the exit code. The same settings continue the run that has them."""
    optim.refuse_missing(config.optim)
    model = base_model.load(config.model, tokenizer=config.tokenizer)
    accelerator = machine.start(config)
    objectives.check(config.objective, model.prediction_type)
    if config.objective.predicts == "epsilon":
        process.refuse_without_signal(model.schedule)
    with accelerator.main_process_first():  # the first one draws the sample set, the others find it
        collection = collect(config, model)
    job = Job(config, accelerator, model, collection, identity(config, collection.fingerprint, model.fingerprint))
    found = None if config.new else run_folder.find(config.runs, job.identity)
    if found is not None and found.done is not None and found.done >= config.max_steps:
        accelerator.print(already_done(found, config))
        return 0
    state = build(job)
    kept = resume(job, found, state) if found is not None else None
    plan = make_plan(job, state, kept.step if kept else 0)
    accelerator.print("\n".join(plan.lines()))
    if config.dry_run:
        return 0
    return train(job, state, found or create(job, plan), plan)


def already_done(found: Run, config: Config) -> str:
    # with a decaying learning rate every step depends on the length: a longer run is another one, see config.identity
    extends = config.optim.schedule in SCHEDULES_WITHOUT_END
    longer = "extends it" if extends else f"is another run ({config.optim.schedule} follows the length)"
    return (
        f"{found.path} has these settings and finished after {found.done} steps; nothing to do.\n"
        f"A larger --max-steps {longer}, --new starts over.\nnext: {next_command(found)}"
    )


def build(job: Job) -> State:
    """The network with its adapter, the optimiser and the average of its weights, on the device."""
    config, accelerator = job.config, job.accelerator
    unet: Any = job.model.unet
    if not config.adapter.trains_base and accelerator.mixed_precision in machine.DTYPES:
        unet.to(dtype=machine.DTYPES[accelerator.mixed_precision])  # frozen weights need no float32 masters
    config.adapter.attach(unet, config.seed)
    machine.arrange(unet, config.memory)
    unet.to(accelerator.device, memory_format=torch.channels_last)
    unet.train()
    trained = adapters.trainable(unet)
    optimizer = optim.build(trained.values(), config.optim)
    average = ema.build(trained, config.ema)
    prepared, optimizer = accelerator.prepare(unet, optimizer)
    if config.compile:
        prepared = compiled.compiled(prepared, len(job.collection.buckets))
    return State(0, prepared, optimizer, accelerator, average)


def resume(job: Job, found: Run, state: State) -> checkpoint.Checkpoint | None:
    """Put the run's newest whole checkpoint back, naming those that were not whole."""
    kept, skipped = checkpoint.newest(found.checkpoints, job.identity)
    for error in skipped:
        job.accelerator.print(f"skipped: {error}")
    if kept is not None:
        restore(state, kept, found.checkpoints)
        job.accelerator.print(f"continuing {found.path} after step {kept.step}")
    return kept


def make_plan(job: Job, state: State, done: int) -> Plan:
    """What will be done, in numbers."""
    config, collection = job.config, job.collection
    shapes = [parameter.shape for parameter in adapters.trainable(state.unet).values()]
    trained = sum(shape.numel() for shape in shapes)
    sizes = [(parameter.numel(), parameter.element_size()) for parameter in state.unet.parameters()]
    optimizer, average = optimizer_bytes(config.optim.kind, shapes), ema_bytes(config.ema, trained)
    return Plan(
        model=config.model,
        data=config.data,
        adapter=config.adapter.label,
        pictures=collection.found,
        training=len(collection.train),
        held_out=len(collection.held_out),
        left_out=collection.left_out,
        warnings=collection.warnings,
        near_duplicates=collection.near_duplicates,
        buckets={str(bucket): len(samples) for bucket, samples in collection.buckets.items()},
        captions_cut=collection.captions_cut,
        tokens=collection.tokens,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        processes=job.layout.processes,
        steps=config.max_steps,
        done=done,
        trainable=trained,
        parameters=sum(count for count, _ in sizes),
        precision=machine.precision(job.accelerator),
        device=machine.device_name(job.accelerator.device),
        threads=torch.get_num_threads(),
        optimizer=optimizer_line(config),
        switches=machine.switches(config, job.accelerator.device),
        state_gib=(sum(count * size for count, size in sizes) + 4 * trained + optimizer + average.device) / GIB,
        checkpoint_gib=(4 * trained + optimizer + average.anywhere) / GIB,
    )


def create(job: Job, plan: Plan) -> Run:
    """A new run folder, made by the first process and known to all."""
    name = job.config.run_name or job.config.adapter.label
    paths: list[str] = [""]
    if job.accelerator.is_main_process:
        facts = job.collection.facts() | {"identity": job.identity, "model": job.model.fingerprints}
        resolved = yaml.safe_dump(job.config.model_dump(mode="json", exclude={"new", "dry_run"}), sort_keys=False)
        found = run_folder.create(job.config.runs, name, {"config.yaml": resolved, "data.json": to_json(facts)})
        paths = [str(found.path)]
    broadcast_object_list(paths)
    return Run(Path(paths[0]))


def train(job: Job, state: State, found: Run, plan: Plan) -> int:
    """Encode, train, export, and say what to type next."""
    config, accelerator = job.config, job.accelerator
    encoded = encode(job.model, job.collection, config, accelerator)
    with found.lock() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            found.reopen()
            found.write_json("plan.json", plan.facts())
            found.write_json("versions.json", run_folder.versions())
        report = open_report(job, found, state.step)
        try:
            task = task_of(job, encoded, found)
            if config.compile and state.step < config.max_steps:
                compiled.check(state, task)
            finished = fit(state, task, report)
        finally:
            report.close()
        if not finished:
            accelerator.print(f"stopped after step {state.step} of {config.max_steps}; the same command continues it")
            return 130
        if accelerator.is_main_process:
            leave(job, state, found, plan)
    return 0


def leave(job: Job, state: State, found: Run, plan: Plan) -> None:
    """Export, report, and mark the run as finished, last."""
    with evaluated(state):
        exported = job.config.adapter.export(state.plain_unet(), job.model, found.export)
    command = next_command(found)
    write_summary(found, plan, command)
    found.finish(state.step)
    print(f"finished: {', '.join(map(str, exported))}")
    print(f"report:   {found.path / 'report.html'}")
    print(f"next:     {command}")


def next_command(found: Run) -> str:
    """Draw with what was learnt."""
    return f'python infer/generate.py --model {found.path} --prompt "a water type fridge" --compare-base'


def open_report(job: Job, found: Run, start: int) -> Report:
    """Numbers are written by the first process only."""
    if not job.accelerator.is_main_process:
        return Silent()
    config = job.config
    return Written(found.path, start=start, stop=config.max_steps, tensorboard=config.logging.tensorboard)


def task_of(job: Job, encoded: Encoded, found: Run) -> Task:
    """The part of the work that does not change while it trains."""
    schedule = job.model.schedule.to(job.accelerator.device)
    sides = {"held-out": encoded.held_out, "train": encoded.train_subset}
    objective, scaling = job.config.objective, job.model.scaling_factor
    return Task(
        config=job.config,
        layout=job.layout,
        objective=objective,
        schedule=schedule,
        batches=lambda start, stop: load_batches(job, encoded, start, stop),
        validator=Validator(sides, objective, schedule, scaling, job.config.validation.timesteps),
        checkpoints=found.checkpoints,
        identity=job.identity,
        base_losses=base_losses(found),
    )


def load_batches(job: Job, encoded: Encoded, start: int, stop: int) -> Iterator[Batch]:
    """The micro-batches of this process for the steps [start, stop)."""
    config = job.config
    pictures = EncodedPictures(
        encoded.buckets,
        encoded.empty,
        seed=config.seed,
        scaling_factor=job.model.scaling_factor,
        dropout=config.pictures.caption_dropout,
    )
    sampler = StepSampler(list(map(len, encoded.buckets)), job.layout, seed=config.seed, start=start, stop=stop)
    # a generator of its own, or the loader would draw from the global one
    loader = DataLoader(pictures, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator())
    return iter(loader)


def base_losses(found: Run) -> dict[str, Losses] | None:
    """The validation before step 1, from an earlier session's metrics."""
    for line in read_metrics(found.metrics):
        if line["step"] == 0 and "per_picture" in line:
            return {side: Losses(np.array(values)[:, None]) for side, values in line["per_picture"].items()}
    return None
