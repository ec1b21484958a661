"""From a config to a finished run: read the pictures, encode them, plan, train, export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from data import seeds
from data.dataset import EncodedPictures, Layout, StepSampler, collate
from data.errors import InputError
from data.schema import Batch
from train import base_model, checkpoint, machine, objectives, optim, run_folder
from train.adapters import base as adapters
from train.base_model import BaseModel
from train.config import SCHEDULES_WITHOUT_END, Config, identity
from train.curation import Collection, collect
from train.ddpm import process
from train.encoding import Encoded, encode
from train.loop import State, Task, fit, restore
from train.plan import GIB, Plan, optimizer_bytes
from train.previews import Draw, Easel, questions_of
from train.report import Report, Silent, Written
from train.run_folder import Run, to_json
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
    if config.logging.wandb:
        refuse_absent_wandb()
    model = base_model.load(config.model, tokenizer=config.tokenizer)
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
        return 0
    state = build(job)
    kept = resume(job, found, state) if found is not None else None
    plan = make_plan(job, state, kept.step if kept else 0)
    accelerator.print("\n".join(plan.lines()))
    if config.dry_run:
        return 0
    return train(job, state, found or create(job, plan), plan)


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
    """The network with its adapter and the optimiser, on the device."""
    config, accelerator = job.config, job.accelerator
    unet: Any = job.model.unet
    if not config.adapter.trains_base and accelerator.mixed_precision in machine.DTYPES:
        unet.to(dtype=machine.DTYPES[accelerator.mixed_precision])  # frozen weights need no float32 masters
    config.adapter.attach(unet, config.seed)
    unet.to(accelerator.device, memory_format=torch.channels_last)
    unet.train()
    optimizer = optim.BUILDERS[config.optim.kind](adapters.trainable(unet).values(), config.optim)
    prepared, optimizer = accelerator.prepare(unet, optimizer)
    return State(0, prepared, optimizer, accelerator)


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
    trained = sum(parameter.numel() for parameter in adapters.trainable(state.unet).values())
    sizes = [(parameter.numel(), parameter.element_size()) for parameter in state.unet.parameters()]
    optimizer = optimizer_bytes(config.optim.kind) * trained
    return Plan(
        model=config.model,
        data=config.data,
        adapter=config.adapter.label,
        pictures=collection.found,
        training=len(collection.train),
        held_out=len(collection.held_out),
        left_out=collection.left_out,
        warnings=[*collection.warnings, *without_held_out(config, collection)],
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
        state_gib=(sum(count * size for count, size in sizes) + 4 * trained + optimizer) / GIB,
        checkpoint_gib=(4 * trained + optimizer) / GIB,
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
    with found.lock() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            found.reopen()
            found.write_json("plan.json", plan.facts())
            found.write_json("versions.json", run_folder.versions())
        report = open_report(job, found, state.step)
        try:
            finished = fit(state, task_of(job, encoded, found, plan), report)
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
    exported = config.adapter.export(state.plain_unet(), job.model, found.export)
    outcome = Outcome(next_command(found), steps, state.step, progress, config.checkpoints.export, why)
    write_summary(found, plan, outcome)
    found.write_json("done", {"steps": steps} | ({"patience": config.validation.patience} if stopped else {}))
    if why:
        print(why)
    print(f"finished: {', '.join(map(str, exported))}, the weights of step {state.step}")
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


def task_of(job: Job, encoded: Encoded, found: Run, plan: Plan) -> Task:
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
        easel=easel_of(job, found),
        publish=lambda: write_report(found, plan) if job.accelerator.is_main_process else None,
    )


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
    own = POCKET_PROMPTS if job.config.data == "pocket" else ()
    return [*list(captions)[: FEW_CAPTIONS - len(own)], *own]


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
