"""From a config to a finished run: read the pictures, encode them, plan, train, export."""

from __future__ import annotations

from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.dataset import EncodedPictures, Layout, StepSampler, collate
from data.noise import Noise
from data.prefetch import InTurn, supply
from data.schema import Batch
from train import base_model, checkpoint, ema, machine, objectives, optim, rescaled, run_folder
from train.adapters import base as adapters
from train.base_model import BaseModel
from train.bucket_use import bucket_uses, folder_uses
from train.config import SCHEDULES_WITHOUT_END, Config, identity
from train.curation import Collection, collect
from train.ddpm import process
from train.encoding import Encoded, encode
from train.exports import record
from train.exports.facts import facts_of
from train.exports.request import Request
from train.forecast import Forecast
from train.loop import State, Task, evaluated, fit, restore
from train.plan import Plan, optimizer_line
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
    code, _ = follow(config)
    return code


def follow(config: Config) -> tuple[int, Run | None]:
    """As run(), and the run's folder if there is one."""
    optim.refuse_missing(config.optim)
    model = base_model.load(config.model, tokenizer=config.tokenizer)
    model = replace(model, zero_terminal_snr=config.objective.zero_terminal_snr)
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
        return 0, found
    state = build(job)
    kept = resume(job, found, state) if found is not None else None
    plan = make_plan(job, Forecast(job, state, found), kept.step if kept else 0)
    accelerator.print("\n".join(plan.lines()))
    if config.dry_run:
        return 0, found
    found = found or create(job, plan)
    return train(job, state, found, plan), found


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
        prepared = machine.compiled(prepared, len(job.collection.buckets))
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


def make_plan(job: Job, forecast: Forecast, done: int) -> Plan:
    """What will be done, in numbers."""
    config, collection = job.config, job.collection
    return Plan(
        model=config.model,
        data=", ".join(map(str, config.data)),
        adapter=config.adapter.label,
        pictures=collection.found,
        training=len(collection.train),
        held_out=len(collection.held_out),
        left_out=collection.left_out,
        warnings=[*collection.warnings, *config.objective.warnings()],
        near_duplicates=collection.near_duplicates,
        buckets=bucket_uses(collection, job.layout.global_batch, config.max_steps),
        folders=folder_uses(collection.shares, job.layout.global_batch, config.max_steps),
        captions_cut=collection.captions_cut,
        tokens=collection.tokens,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        processes=job.layout.processes,
        steps=config.max_steps,
        done=done,
        trainable=forecast.trained,
        parameters=sum(weight.numel() for weight in forecast.unet.parameters()),
        precision=machine.precision(job.accelerator),
        device=machine.device_name(job.accelerator.device),
        threads=torch.get_num_threads(),
        optimizer=optimizer_line(config),
        switches=machine.switches(config, job.accelerator.device),
        memory=forecast.memory,
        fits=forecast.fits(),
        disk=forecast.disk(),
        flops=forecast.flops,
        duration=forecast.duration(done),
        price_per_hour=config.price_per_hour,
        sampling=rescaled.ADVICE if job.model.zero_terminal_snr else "",
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
    with found.lock() if accelerator.is_main_process else nullcontext(), ExitStack() as opened:
        if accelerator.is_main_process:
            found.reopen()
            found.write_json("plan.json", plan.facts())
            found.write_json("versions.json", run_folder.versions())
        report = open_report(job, found, state.step)
        try:
            finished = fit(state, task_of(job, encoded, found, opened), report)
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
    facts = facts_of(job.config, job.model, plan.facts(), found.path.name, state.step)
    request = Request(job.config.export, facts)
    with evaluated(state):
        exported = job.config.adapter.export(state.plain_unet(), job.model, found.export, request)
    record.write(found.export, state.step, request.options, exported)
    command = next_command(found)
    write_summary(found, plan, command)
    found.finish(state.step)
    print(f"finished: {', '.join(map(str, exported))}")
    if plan.sampling:
        print(f"beware:   {plan.sampling}")
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


def task_of(job: Job, encoded: Encoded, found: Run, opened: ExitStack) -> Task:
    """The part of the work that does not change while it trains. opened: closes what works ahead, in the end."""
    schedule = job.model.schedule.to(job.accelerator.device)
    sides = {"held-out": encoded.held_out, "train": encoded.train_subset}
    objective, scaling = job.config.objective, job.model.scaling_factor
    return Task(
        config=job.config,
        layout=job.layout,
        objective=objective,
        schedule=schedule,
        batches=lambda start, stop: opened.enter_context(closing(load_batches(job, encoded, start, stop))),
        validator=Validator(sides, objective, schedule, scaling, job.config.validation.timesteps),
        checkpoints=found.checkpoints,
        identity=job.identity,
        base_losses=base_losses(found),
    )


def load_batches(job: Job, encoded: Encoded, start: int, stop: int) -> InTurn[Batch]:
    """The micro-batches of this process for the steps [start, stop), on the device; `.waited`: seconds waited."""
    config = job.config
    pictures = EncodedPictures(
        encoded.buckets,
        encoded.empty,
        seed=config.seed,
        scaling_factor=job.model.scaling_factor,
        dropout=config.pictures.caption_dropout,
        noise=Noise(config.objective.noise_offset, config.objective.input_perturbation),
    )
    sizes = list(map(len, encoded.buckets))
    weights = encoded.weights
    sampler = StepSampler(sizes, job.layout, seed=config.seed, start=start, stop=stop, weights=weights)
    batches = (collate([pictures[position] for position in positions]) for positions in sampler)
    return supply(batches, job.accelerator.device)


def base_losses(found: Run) -> dict[str, Losses] | None:
    """The validation before step 1, from an earlier session's metrics."""
    for line in read_metrics(found.metrics):
        if line["step"] == 0 and "per_picture" in line:
            return {side: Losses(np.array(values)[:, None]) for side, values in line["per_picture"].items()}
    return None
