"""From a config to a finished run: read the pictures, plan, encode them, train, leave what was learnt.

The parts lie beside it: what is trained on (curation.py), the network and the loop's other parts (assembly.py), the
plan (planning.py), the loop itself (loop.py) and what a run leaves (leaving.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from data.dataset import Layout
from data.files import write_atomic
from train import base_model, compiled, machine, objectives, optim, run_folder
from train.assembly import build, open_report, resume, task_of
from train.base_model import BaseModel
from train.config import Config, identity
from train.curation import Collection, collect
from train.ddpm import process
from train.denoiser import Denoiser
from train.encoding import encode
from train.forecast import Forecast
from train.leaving import already_done, leave, nothing_left
from train.loop import fit, sample_losses
from train.plan import Plan
from train.planning import make_plan
from train.previews import Draw
from train.run_folder import Run, to_json
from train.signals import outlasting_readers
from train.state import State, Task
from train.trackers import refuse_absent_wandb


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
    job = prepare(config, draw)
    found = None if config.new else run_folder.find(config.runs, job.identity)
    done = found is not None and nothing_left(found, config)
    over = already_done(found, config, job.accelerator) if found is not None and done else ""
    if over and not config.dry_run:
        job.accelerator.print(over)
        return 0, found
    state = build(job)
    if found is not None and not over:
        resume(job, found, state)
    plan = make_plan(job, Forecast(job, state, found), config.max_steps if over else state.step)
    job.accelerator.print("\n".join(plan.lines()))
    if config.dry_run:
        if over:
            job.accelerator.print(over)
        return 0, found
    found = found or create(job)
    return train(job, state, found, plan), found


def prepare(config: Config, draw: Draw | None) -> Job:
    """Find the model and the pictures. Raises InputError for what is not here or does not go together."""
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
    key = identity(config, collection.fingerprint, model.fingerprint + model.schedule_fingerprint)
    return Job(config, accelerator, model, collection, key, draw)


def create(job: Job) -> Run:
    """A new run folder, made by the first process and known to all."""
    name = job.config.run_name or job.config.adapter.label
    paths: list[str] = [""]
    if job.accelerator.is_main_process:
        facts = job.collection.facts() | {"identity": job.identity, "model": job.model.fingerprints}
        files = {"config.yaml": settings_of(job.config), "data.json": to_json(facts)}
        found = run_folder.create(job.config.runs, name, files)
        paths = [str(found.path)]
    broadcast_object_list(paths)
    return Run(Path(paths[0]))


def settings_of(config: Config) -> str:
    """config.yaml: all settings, with which the run can be made again."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude={"new", "dry_run"}), sort_keys=False)


@outlasting_readers()
def train(job: Job, state: State, found: Run, plan: Plan) -> int:
    """Encode, train, export, and say what to type next."""
    config, accelerator = job.config, job.accelerator
    encoded = encode(job.model, job.collection, config, accelerator)
    machine.give_back()
    with found.lock() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            found.reopen()
            write_atomic(found.path / "config.yaml", settings_of(config))  # an extended run has other ones
            found.write_json("plan.json", plan.facts())
            found.write_json("versions.json", run_folder.versions())
        report = open_report(job, found, state.step)
        try:
            task = task_of(job, encoded, found, plan)
            if config.compile and state.step < config.max_steps:
                check_compiled(state, task)
            finished = fit(state, task, report)
        finally:
            report.close()
        if not finished:
            accelerator.print(f"stopped after step {state.step} of {config.max_steps}; the same command continues it")
            return 130
        if accelerator.is_main_process:
            leave(job, state, found, plan)
    return 0


def check_compiled(state: State, task: Task) -> None:
    """Raises InputError if the compiler computes other gradients for the coming micro-batch."""
    batch = next(task.batches(state.step, state.step + 1))

    def loss_of(network: nn.Module) -> Tensor:
        return sample_losses(Denoiser(network), task, batch).mean()

    with state.accelerator.no_sync(state.unet):
        compiled.check(state.unet, loss_of, state.accelerator.mixed_precision)
