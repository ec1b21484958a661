"""The parts of a training loop, put together for one job: the network and its optimiser, the batches, the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from data.dataset import EncodedPictures, StepSampler, collate, to_device
from data.errors import InputError
from data.noise import Noise
from data.schema import Batch
from data.shapes import TextStates
from train import base_losses, checkpoint, compiled, machine, optim
from train.adapters import base as adapters
from train.base_losses import Found, Measure
from train.ema import Ema
from train.encoding import Encoded, encode_text
from train.flops import peak_flops
from train.plan import Plan
from train.preservation import anchor
from train.report import Report, Silent, Written
from train.run_folder import Run
from train.saving import restore
from train.speed import Speed
from train.state import State, Task
from train.subjects import easel_of
from train.summary import write_report
from train.trackers import WeightsAndBiases
from train.validation import Validator

if TYPE_CHECKING:
    from train.job import Job


def build(job: Job) -> State:
    """The network with its adapter, the optimiser and the average of its weights, on the device."""
    config, accelerator = job.config, job.accelerator
    unet: Any = job.model.unet
    if not config.adapter.trains_base and accelerator.mixed_precision in machine.DTYPES:
        unet.to(dtype=machine.DTYPES[accelerator.mixed_precision])  # frozen weights need no float32 masters
    held = anchor(unet, empty_states(job), accelerator, config.preserve.strength)
    config.adapter.attach(unet, config.seed)
    machine.arrange(unet, config.memory)
    unet.to(accelerator.device, memory_format=torch.channels_last)
    unet.train()
    trained = adapters.trainable(unet)
    average = Ema(trained, config.ema)
    prepared = accelerator.prepare(unet)  # which moves weights
    optimizer = optim.build(trained.values(), config.optim)
    if config.compile:
        prepared = compiled.compiled(prepared, len(job.collection.buckets))
    return State(0, prepared, accelerator.prepare(optimizer), accelerator, average, anchor=held)


def empty_states(job: Job) -> TextStates | None:
    """Of the empty prompt, if prompts are to be preserved."""
    return encode_text(job.model, "", job.accelerator.device) if job.collection.preserved else None


def resume(job: Job, found: Run, state: State) -> None:
    """Put the run's newest whole checkpoint back, naming those that were not whole. Raises InputError if it was
    computed in another way, or has finished and its checkpoints are gone.
    """
    machine.refuse_other_ways(found.facts("plan.json"), job.accelerator, found.path)
    kept = checkpoint.found_by(job.accelerator, found.checkpoints, job.identity)
    if kept is not None:
        restore(state, kept, found.checkpoints)
        job.accelerator.print(f"continuing {found.path} after step {kept.step}")
    elif found.done is not None:
        what = f"finished after {found.done} steps, but none of its checkpoints is whole"
        raise InputError(what, where=found.checkpoints, fix="--new starts over, in another folder.")
    else:
        job.accelerator.print(f"no checkpoint in {found.path}: it begins at step 0")


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
    validator = Validator(sides, objective, schedule, scaling, job.config.validation.timesteps)
    return Task(
        config=job.config,
        layout=job.layout,
        objective=objective,
        schedule=schedule,
        batches=lambda start, stop: load_batches(job, encoded, start, stop),
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


def load_batches(job: Job, encoded: Encoded, start: int, stop: int) -> Iterator[Batch]:
    """The micro-batches of this process for the steps [start, stop), on the device."""
    config = job.config
    pictures = EncodedPictures(
        encoded.buckets,
        encoded.empty,
        seed=config.seed,
        scaling_factor=job.model.scaling_factor,
        dropout=config.pictures.caption_dropout,
        noise=Noise(config.objective.noise_offset, config.objective.input_perturbation),
        kept=encoded.kept,
        share=config.preserve.share,
    )
    sizes = list(map(len, encoded.buckets))
    weights = encoded.weights
    sampler = StepSampler(sizes, job.layout, seed=config.seed, start=start, stop=stop, weights=weights)
    # a generator of its own: DataLoader would draw from torch's global one
    loader = DataLoader(pictures, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator())
    return (to_device(batch, job.accelerator.device) for batch in loader)
