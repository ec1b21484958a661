"""The first screen of a run and its plan.json: what will be trained on what, and the estimate, one fact a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from train import device, model
from train.config import Config
from train.estimate import Disk, Duration, Fits, MemoryEstimate, RunEstimate
from train.flops import Flops
from train.losses import objective_warnings
from train.optim import learning_rate
from train.training_set import FolderShare, TrainingSet

GIBIBYTE = 2**30
PHASES = {
    "encoding": "encoding images",
    "validation": "validating",
    "drawing": "generating previews",
    "saving": "writing a checkpoint",
}
MAX_EXAMPLES = 5  # of skipped images or truncated captions


@dataclass(frozen=True)
class BucketUse:
    """One bucket. Shares are of an image's area, in [0, 1)."""

    pictures: int
    steps: float  # of the run, whose global batch comes from this bucket
    mean_cropped: float
    worst_cropped: float
    enlarged: int  # images that are smaller than the bucket
    batches: float  # global batches in one pass over its images


@dataclass(frozen=True)
class FolderUse:
    """One of several folders. times: how often each of its training images is seen in the run."""

    folder: str
    weight: float
    training: int
    held_out: int
    times: float


@dataclass(frozen=True)
class Plan:
    """The numbers of the first screen and of plan.json."""

    config: str  # the preset in force
    model: str
    data: str
    adapter: str
    pictures: int
    training: int
    held_out: int
    left_out: list[str]
    warnings: list[str]
    near_duplicates: int
    buckets: Mapping[str, BucketUse]
    folders: Sequence[FolderUse]  # if there are several
    captions_cut: list[str]
    tokens: str
    batch_size: int
    accumulate: int
    processes: int
    steps: int
    done: int
    trainable: int
    parameters: int
    precision: str
    device: str
    threads: int
    optimizer: str
    switches: str
    memory: MemoryEstimate
    fits: Fits
    disk: Disk
    flops: Flops  # of one image
    duration: Duration | None  # None if no step could be timed
    price_per_hour: float | None = None
    sampling: str = ""  # what must be known to generate with the result, if there is anything

    @property
    def cost(self) -> float | None:
        """Of what is left to do, in the price's currency."""
        if self.price_per_hour is None or self.duration is None:
            return None
        return self.price_per_hour * self.duration.total / 3600

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.processes

    @property
    def epochs(self) -> float:
        return self.steps * self.global_batch / max(1, self.training)

    def facts(self) -> dict[str, Any]:
        """plan.json."""
        return asdict(self) | {
            "global_batch": self.global_batch,
            "epochs": round(self.epochs, 2),
            "peak_gib": self.memory.peak / GIBIBYTE,
            "disk_gib": self.disk.total / GIBIBYTE,
            "cost": self.cost,
            "seconds": self.duration.total if self.duration else None,
        }

    def lines(self) -> list[str]:
        batch = (
            f"{self.batch_size} x {self.accumulate} accumulated x {self.processes} process{'es' * (self.processes > 1)}"
        )
        share = 100 * self.trainable / self.parameters
        threads = f"{self.threads} CPU thread{'s' * (self.threads > 1)}"
        done = f", {self.done} done" if self.done else ""
        lines = [
            f"config     {self.config}",
            f"model      {self.model}",
            f"adapter    {self.adapter}: {self.trainable:,} of {self.parameters:,} weights are trained ({share:.1f} %)",
            f"images     {self.data}: {self.training} for training, {self.held_out} held out"
            f" ({self.near_duplicates} near-duplicates stay on one side)",
            *use_lines(self.buckets, self.folders, self.global_batch),
            f"captions   {self.tokens}",
            f"batch      {batch} = {self.global_batch} images a step",
            f"length     {self.steps} steps = {self.epochs:.1f} epochs{done}",
            f"optimiser  {self.optimizer}",
            f"machine    {self.device}, {self.precision}, {threads}, {self.switches}",
            *memory_lines(self.memory, self.fits),
            *self.time_lines(),
            *disk_lines(self.disk),
        ]
        for label, items in (("skipped", self.left_out), ("truncated", self.captions_cut), ("warnings", self.warnings)):
            lines += list_items(f"{label:<10}", items)
        return lines

    def time_lines(self) -> list[str]:
        """Speed, time and cost."""
        work = f"{format_flops(self.flops.step)}FLOP an image"
        if self.duration is None:
            return [f"time       not measured; {work}"]
        speed = self.duration.images_per_second
        rate = f"{format_flops(speed * self.flops.step / self.processes)}FLOP/s"
        parts = [f"{name} {format_seconds(value)}" for name, value in self.duration.parts.items() if value >= 1]
        lines = [
            f"speed      {self.duration.step:.3g} s a step {self.duration.how}: {speed:.3g} images/s, {work}, {rate}",
            f"time       about {format_seconds(self.duration.total)}" + (f": {', '.join(parts)}" if parts else ""),
        ]
        if self.cost is not None:
            lines.append(f"cost       {self.cost:.2f} at {self.price_per_hour:g} an hour")
        return lines


def make_plan(estimate: RunEstimate, done: int) -> Plan:
    config, dataset, accelerator = estimate.config, estimate.dataset, estimate.accelerator
    global_batch = estimate.layout.global_batch
    return Plan(
        config=f"{config.config} (another: --config FILE)" if config.config else "defaults",
        model=config.model,
        data=", ".join(map(str, config.data)),
        adapter=config.adapter.label,
        pictures=dataset.found,
        training=len(dataset.train),
        held_out=len(dataset.held_out),
        left_out=dataset.left_out,
        warnings=[*dataset.warnings, *objective_warnings(config.objective), *plan_warnings(config, dataset, done)],
        near_duplicates=dataset.near_duplicates,
        buckets=bucket_uses(dataset, global_batch, config.max_steps),
        folders=folder_uses(dataset.shares, global_batch, config.max_steps),
        captions_cut=dataset.captions_cut,
        tokens=dataset.tokens,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        processes=estimate.layout.processes,
        steps=config.max_steps,
        done=done,
        trainable=estimate.trained,
        parameters=sum(weight.numel() for weight in estimate.unet.parameters()),
        precision=device.describe_precision(accelerator),
        device=device.device_name(accelerator.device),
        threads=torch.get_num_threads(),
        optimizer=optimizer_line(config),
        switches=device.describe_memory_options(config, accelerator.device),
        memory=estimate.memory,
        fits=estimate.fits(),
        disk=estimate.disk(),
        flops=estimate.flops,
        duration=estimate.duration(done),
        price_per_hour=config.price_per_hour,
        sampling=model.ZERO_SNR_ADVICE if estimate.model.zero_terminal_snr else "",
    )


def plan_warnings(config: Config, dataset: TrainingSet, done: int) -> list[str]:
    """Options that do not fit together."""
    warmup, steps, warnings = config.optim.warmup, config.max_steps, []
    if config.validation.patience and not dataset.held_out:
        warnings.append("no image is held out: --validation.patience has no effect, and the last weights are exported")
    if warmup > steps:
        reached = learning_rate(steps - 1, config.optim, config.learning_rate, steps)
        what = f"the warm-up of {warmup} steps is longer than the run of {steps}"
        warnings.append(f"{what}: the learning rate reaches {reached:.3g}, not {config.learning_rate:g}")
    if done > steps:
        warnings.append(
            f"--max-steps {steps}: {done} are done already (for an earlier step: train/export.py --checkpoint)"
        )
    return warnings


def bucket_uses(dataset: TrainingSet, global_batch: int, steps: int) -> dict[str, BucketUse]:
    """By size, as "512x512"."""
    weights = {
        bucket: sum(dataset.weights[sample.annotation.file_name] for sample in samples)
        for bucket, samples in dataset.buckets.items()
    }
    total = sum(weights.values())
    return {
        str(use.bucket): BucketUse(
            pictures=use.count,
            steps=steps * weights[use.bucket] / total,
            mean_cropped=use.mean_cropped,
            worst_cropped=use.worst_cropped,
            enlarged=use.enlarged,
            batches=use.count / global_batch,
        )
        for use in dataset.uses()
    }


def folder_uses(shares: Sequence[FolderShare], global_batch: int, steps: int) -> list[FolderUse]:
    """Empty for a single folder."""
    total = sum(share.weight * share.training for share in shares)
    if len(shares) < 2:
        return []
    return [FolderUse(**vars(share), times=steps * global_batch * share.weight / total) for share in shares]


def use_lines(buckets: Mapping[str, BucketUse], folders: Sequence[FolderUse], global_batch: int) -> list[str]:
    """A line per folder if there are several, a line per bucket, and the buckets that no batch fills."""
    lines = [
        f"folder     {use.folder}: {use.training} for training, {use.held_out} held out; weight {use.weight:g},"
        f" each image seen {use.times:.1f} times"
        for use in folders
    ]
    for size, use in buckets.items():
        images = f"{use.pictures} image{'s' * (use.pictures != 1)}, {use.batches:.1f} batches an epoch"
        cropped = f"{100 * use.mean_cropped:.1f} % cropped on average, {100 * use.worst_cropped:.1f} % at most"
        lines.append(f"bucket     {size}: {images}, {use.steps:.0f} steps; {cropped}; {use.enlarged} enlarged")
    small = [f"{size} ({use.pictures})" for size, use in buckets.items() if use.pictures < global_batch]
    if small:
        what = f"buckets with fewer images than the {global_batch} of a step repeat them within it"
        lines.append(f"warning    {what}: {', '.join(small)}")
    return lines


def memory_lines(memory: MemoryEstimate, fits: Fits) -> list[str]:
    """The peak by its parts, and a warning if it is more than there is."""
    parts = [f"{part} {format_bytes(bytes_)}" for part, bytes_ in memory.parts.items() if bytes_]
    phase = "" if memory.largest_phase == "training" else f", while {PHASES[memory.largest_phase]}"
    free = "" if fits.free is None else f" of {format_bytes(fits.free)} free"
    lines = [
        f"memory     about {format_bytes(memory.peak)}{free}{phase}",
        f"             training: {', '.join(parts)}",
    ]
    if fits.free is not None and fits.needed > fits.free:
        helps = f"; would fit with {' or with '.join(fits.helps)}" if fits.helps else ""
        size = f"{format_bytes(fits.needed)} are probably too much for {format_bytes(fits.free)} of free memory"
        lines.append(f"warning    {size}{helps}")
    return lines


def disk_lines(disk: Disk) -> list[str]:
    lines = [
        f"disk       up to {format_bytes(disk.total)}: checkpoints of {format_bytes(disk.checkpoint)}, {disk.kept} kept"
        f" and one being written, exports {format_bytes(disk.export)}"
    ]
    if disk.total > disk.free:
        fewer = disk.spare > 0 and disk.total - disk.spare * disk.checkpoint <= disk.free
        helps = "--checkpoints.keep 1, or with " if fewer else ""
        size = f"{format_bytes(disk.total)} may be too much for {format_bytes(disk.free)} of free disk"
        lines.append(f"warning    {size}; would fit with {helps}--runs on a larger one")
    return lines


def list_items(label: str, items: list[str]) -> list[str]:
    """The first few by name, the rest as a count."""
    if not items:
        return []
    more = [f"             ... and {len(items) - MAX_EXAMPLES} more"] if len(items) > MAX_EXAMPLES else []
    return [f"{label} {len(items)}:"] + [f"             {item}" for item in items[:MAX_EXAMPLES]] + more


def optimizer_line(config: Config) -> str:
    """The optimiser, its rate, and which weights are validated and exported."""
    options, ema = config.optim, config.ema
    rate = f"learning rate {config.learning_rate:g}"
    if options.kind == "prodigy":
        rate += " (a factor on the step size it finds)"
    warmup = f" after {options.warmup} steps of warm-up" if options.warmup else ""
    average = "its own average" if options.kind == "schedule-free" else ""
    if ema.decay:
        average = f"the moving average (EMA {ema.decay:g})"
    exported = f"; validated and exported: {average} of the weights" if average else ""
    return f"{options.kind}, {rate}, {options.schedule}{warmup}{exported}"


def format_bytes(bytes_: float) -> str:
    return f"{bytes_ / GIBIBYTE:.2f} GiB" if bytes_ >= 0.1 * GIBIBYTE else f"{bytes_ / 2**20:.1f} MiB"


def format_flops(count: float) -> str:
    """1.23 T, 45.6 G"""
    return f"{count / 1e12:.3g} T" if count >= 1e11 else f"{count / 1e9:.3g} G"


def format_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
