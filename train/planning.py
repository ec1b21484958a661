"""The plan of a job: what was found out about it, in the order in which it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from train import machine, rescaled
from train.bucket_use import bucket_uses, folder_uses
from train.config import Config
from train.curation import Collection
from train.forecast import Forecast
from train.optim import learning_rate
from train.plan import Plan, optimizer_line

if TYPE_CHECKING:
    from train.job import Job


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
        warnings=[*collection.warnings, *config.objective.warnings(), *beware(config, collection, done)],
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


def beware(config: Config, collection: Collection, done: int) -> list[str]:
    """What was asked for and does not go together."""
    warmup, steps, found = config.optim.warmup, config.max_steps, without_held_out(config, collection)
    if warmup > steps:
        reached = learning_rate(steps - 1, config.optim, config.learning_rate, steps)
        what = f"the warm-up of {warmup} steps is longer than the run of {steps}"
        found.append(f"{what}: the learning rate reaches {reached:.3g}, not {config.learning_rate:g}")
    if done > steps:
        found.append(f"--max-steps {steps}: {done} are done, and none is taken back (train/export.py --checkpoint)")
    return found


def without_held_out(config: Config, collection: Collection) -> list[str]:
    """What was asked for and needs held-out pictures, which there are none of."""
    if collection.held_out or not config.validation.patience:
        return []
    return ["no picture is held out: --validation.patience has no effect, and the last weights are exported"]
