"""From a config to a finished run: read the pictures, encode them, plan, train, export."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data import seeds
from data.dataset import EncodedPictures, Layout, StepSampler, collate
from data.errors import InputError
from data.noise import Noise
from data.prefetch import InTurn, supply
from data.schema import Batch
from train import (
    base_losses,
    base_model,
    checkpoint,
    compiled,
    ema,
    machine,
    objectives,
    optim,
    rescaled,
    run_folder,
    workers,
)
from train.adapters import base as adapters
from train.base_losses import Found, Measure
from train.base_model import BaseModel
from train.bucket_use import bucket_uses, folder_uses
from train.config import SCHEDULES_WITHOUT_END, Config, identity
from train.curation import Collection, collect
from train.ddpm import process
from train.encoding import Encoded, encode
from train.exports import record
from train.exports.facts import facts_of
from train.exports.request import Request
from train.flops import peak_flops
from train.forecast import Forecast
from train.loop import fit
from train.plan import Plan, optimizer_line
from train.previews import Draw, Easel, questions_of
from train.report import Report, Silent, Written
from train.run_folder import Run, to_json
from train.saving import restore
from train.speed import Speed
from train.state import State, Task, evaluated
from train.stopping import explain_stop
from train.summary import Outcome, write_report, write_summary
from train.trackers import WeightsAndBiases, refuse_absent_wandb
from train.validation import HELD_OUT, Validator

FEW_CAPTIONS = 4  # pictures of the data's own that are previewed, where no prompts are given
POCKET_PROMPTS = ("a water type fridge", "a fire type fridge")  # things the sample set does not show in its style


@dataclass(frozen=True)
class Job:
    """A config with everything that was found out about it."""

    config: Config
    accelerator: Accelerator
    model: BaseModel
    collection: Collection
    identity: str
    draw: Draw | None = None  # how to draw previews, handed down by the entry

    @property
    def layout(self) -> Layout:
        accelerator = self.accelerator
        return Layout(
            self.config.batch_size, self.config.accumulate, accelerator.num_processes, accelerator.process_index
        )


def run(config: Config, draw: Draw | None = None) -> int:
    """Plan, train and export; returns the exit code. The same settings continue the run that has them.

    draw: how previews are drawn; without it there are none.
    """
    code, _ = follow(config, draw)
    return code


def follow(config: Config, draw: Draw | None = None) -> tuple[int, Run | None]:
    """As run(), and the run's folder if there is one."""
    optim.refuse_missing(config.optim)
    if config.logging.wandb:
        refuse_absent_wandb()
    model = base_model.load(config.model, tokenizer=config.tokenizer)
    model = replace(model, zero_terminal_snr=config.objective.zero_terminal_snr)
    accelerator = machine.start(config)
    objectives.check(config.objective, model.prediction_type)
    if config.objective.predicts == "epsilon":
        process.refuse_without_signal(model.schedule)
    with accelerator.main_process_first():  # the first one draws the sample set, the others find it
        collection = collect(config, model)
    key = identity(config, collection.fingerprint, model.fingerprint)
    job = Job(config, accelerator, model, collection, key, draw)
    found = None if config.new else run_folder.find(config.runs, job.identity)
    if found is not None and nothing_left(found, config):
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


def nothing_left(found: Run, config: Config) -> bool:
    """Whether a run has done all that these settings ask for: its steps or its patience, and the export."""
    if found.done is None:
        return False
    out_of_patience = 0 < config.validation.patience <= found.facts("done").get("patience", 0)
    best = found.facts("best.json")
    as_asked = best.get("export", config.checkpoints.export) == config.checkpoints.export
    return as_asked and (found.done >= config.max_steps or out_of_patience)


def already_done(found: Run, config: Config) -> str:
    # with a decaying learning rate every step depends on the length: a longer run is another one, see config.identity
    extends = config.optim.schedule in SCHEDULES_WITHOUT_END
    longer = "extends it" if extends else f"is another run ({config.optim.schedule} follows the length)"
    patience = found.facts("done").get("patience")
    why = f" (out of patience; --validation.patience {patience + 1} goes on)" if patience else ""
    return (
        f"{found.path} has these settings and finished after {found.done} steps{why}; nothing to do.\n"
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
    crew = workers.suited(accelerator, unet, config.batch_size, compiled=config.compile)
    return State(0, prepared, optimizer, accelerator, average, workers=crew)


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
        warnings=[*collection.warnings, *config.objective.warnings(), *without_held_out(config, collection)],
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


def without_held_out(config: Config, collection: Collection) -> list[str]:
    """What was asked for and needs held-out pictures, which there are none of."""
    if collection.held_out or not config.validation.patience:
        return []
    return ["no picture is held out: --validation.patience has no effect, and the last weights are exported"]


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
            task = task_of(job, encoded, found, plan, opened)
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
    config, steps, progress = job.config, state.step, state.progress
    stopped = steps < config.max_steps
    why = explain_stop(progress, config.validation.patience, steps) if stopped else ""
    choose_weights(job, state, found)
    facts = facts_of(config, job.model, plan.facts(), found.path.name, state.step)
    request = Request(config.export, facts)
    with evaluated(state):
        exported = config.adapter.export(state.plain_unet(), job.model, found.export, request)
    record.write(found.export, state.step, request.options, exported)
    outcome = Outcome(next_command(found), steps, state.step, progress, config.checkpoints.export, why)
    write_summary(found, plan, outcome)
    found.write_json("done", {"steps": steps} | ({"patience": config.validation.patience} if stopped else {}))
    if why:
        print(why)
    print(f"finished: {', '.join(map(str, exported))}, the weights of step {state.step}")
    if plan.sampling:
        print(f"beware:   {plan.sampling}")
    print(f"report:   {found.path / 'report.html'}")
    print(f"next:     {outcome.command}")


def choose_weights(job: Job, state: State, found: Run) -> None:
    """Put the best step's weights in place of the last ones, which stay among the checkpoints."""
    best = state.progress.chosen
    if job.config.checkpoints.export == "last" or best is None or best.judged_by != HELD_OUT or best.step == state.step:
        return
    try:
        kept = checkpoint.load(found.checkpoints / f"{best.step:06d}", job.identity)
    except InputError as error:
        print(f"the best step's weights are gone, so the last ones are exported: {error}")
        return
    restore(state, kept, found.checkpoints)


def next_command(found: Run) -> str:
    """Draw with what was learnt."""
    return f'python infer/generate.py --model {found.path} --prompt "a water type fridge" --compare-base'


def open_report(job: Job, found: Run, start: int) -> Report:
    """Numbers are written by the first process only."""
    if not job.accelerator.is_main_process:
        return Silent()
    config, name = job.config, found.path.name
    project, settings = config.logging.wandb_project, config.model_dump(mode="json")
    others = [WeightsAndBiases(project, name, job.identity, settings, found.path)] if config.logging.wandb else []
    board = config.logging.tensorboard
    return Written(found.path, start=start, stop=config.max_steps, tensorboard=board, trackers=others)


def task_of(job: Job, encoded: Encoded, found: Run, plan: Plan, opened: ExitStack) -> Task:
    """The part of the work that does not change while it trains. opened: closes what works ahead, in the end."""
    schedule = job.model.schedule.to(job.accelerator.device)
    sides = {"held-out": encoded.held_out, "train": encoded.train_subset}
    objective, scaling = job.config.objective, job.model.scaling_factor
    validator = Validator(sides, objective, schedule, scaling, job.config.validation.timesteps)
    return Task(
        config=job.config,
        layout=job.layout,
        objective=objective,
        schedule=schedule,
        batches=lambda start, stop: opened.enter_context(closing(load_batches(job, encoded, start, stop))),
        validator=validator,
        checkpoints=found.checkpoints,
        identity=job.identity,
        measure_base=measure_base_of(job, validator),
        easel=easel_of(job, found),
        speed=Speed(
            plan.flops.step, peak_flops(job.accelerator.device, job.accelerator.mixed_precision), plan.processes
        ),
        publish=lambda: write_report(found, plan) if job.accelerator.is_main_process else None,
    )


def measure_base_of(job: Job, validator: Validator) -> Callable[[Measure], Found]:
    """How the first look comes by its numbers."""
    config, accelerator = job.config, job.accelerator
    if accelerator.num_processes > 1:
        return base_losses.measured
    settings = (config.adapter, config.memory, config.compile, accelerator.mixed_precision)
    network = (job.model.fingerprints["unet"], *map(repr, settings))
    return base_losses.remembered(validator, network, accelerator.device)


def easel_of(job: Job, found: Run) -> Easel:
    """The previews of a run; the first process draws them."""
    config, accelerator = job.config, job.accelerator
    return Easel(
        options=config.previews,
        validated_every=config.validation.every,
        questions=questions_of(preview_prompts(job), config.previews),
        folder=found.path / "previews",
        model=job.model,
        size=job.collection.square.width,
        identity=job.identity,
        precision=machine.precision(accelerator),
        device=accelerator.device,
        draw=job.draw if accelerator.is_main_process else None,
    )


def preview_prompts(job: Job) -> list[str]:
    """Captions of the first pictures that validation looks at, and for the sample set things that it does not show."""
    pictures = job.collection.held_out or job.collection.train
    order = sorted(pictures, key=lambda sample: seeds.seed_for(job.config.seed, "validation", sample.sha256))
    captions = dict.fromkeys(
        text for sample in order for text in job.collection.prompts[sample.annotation.file_name][:1]
    )
    own = POCKET_PROMPTS if job.config.data[0].path == "pocket" else ()
    return [*list(captions)[: FEW_CAPTIONS - len(own)], *own]


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
