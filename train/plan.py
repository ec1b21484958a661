"""The first screen of a run and its plan.json: what will be trained on what, and the estimate, one fact a line."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from data.buckets import bucket_use
from train import device, model
from train.config import Config
from train.estimate import RunEstimate
from train.losses import objective_warnings
from train.optim import learning_rate
from train.training_set import FolderShare, TrainingSet

Plan = dict[str, Any]  # what plan.json says
GIBIBYTE = 2**30
PHASES = {
    "encoding": "encoding images",
    "validation": "validating",
    "drawing": "generating previews",
    "saving": "writing a checkpoint",
}
MAX_EXAMPLES = 5  # of skipped images or truncated captions


def make_plan(estimate: RunEstimate, done: int) -> Plan:
    """The numbers of the first screen and of plan.json, for a run that has done `done` steps."""
    config, dataset, accelerator = estimate.config, estimate.dataset, estimate.accelerator
    global_batch = device.batch_layout(config, accelerator).global_batch
    fits, disk, duration = estimate.fits(), estimate.disk(), estimate.duration(done)
    seconds = sum(duration[part] for part in DURATION_PARTS) if duration else None
    return {
        "config": f"{config.config} (another: --config FILE)" if config.config else "defaults",
        "model": config.model,
        "data": ", ".join(map(str, config.data)),
        "adapter": config.adapter.label,
        "pictures": dataset.found,
        "training": len(dataset.train),
        "held_out": len(dataset.held_out),
        "left_out": dataset.left_out,
        "warnings": [*dataset.warnings, *objective_warnings(config.objective), *plan_warnings(config, dataset, done)],
        "near_duplicates": dataset.near_duplicates,
        "buckets": bucket_uses(dataset, global_batch, config.max_steps),
        "folders": folder_uses(dataset.shares, global_batch, config.max_steps),
        "captions_cut": dataset.captions_cut,
        "tokens": dataset.tokens,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "processes": accelerator.num_processes,
        "global_batch": global_batch,
        "steps": config.max_steps,
        "epochs": round(config.max_steps * global_batch / max(1, len(dataset.train)), 2),
        "done": done,
        "trainable": estimate.trained,
        "parameters": sum(weight.numel() for weight in estimate.unet.parameters()),
        "precision": device.describe_precision(accelerator),
        "device": device.device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "optimizer": optimizer_line(config),
        "switches": device.describe_memory_options(config, accelerator.device),
        "memory": estimate.memory,
        "peak_gib": fits["needed"] / GIBIBYTE,
        "fits": fits,
        "disk": disk,
        "disk_gib": disk["total"] / GIBIBYTE,
        "flops": estimate.flops._asdict(),  # of one image
        "duration": duration,  # None if no step could be timed
        "seconds": seconds,
        "price_per_hour": config.price_per_hour,
        "cost": None if config.price_per_hour is None or seconds is None else config.price_per_hour * seconds / 3600,
        "sampling": model.ZERO_SNR_ADVICE if estimate.model.zero_terminal_snr else "",
    }


DURATION_PARTS = ("encoding", "training", "validation", "previews", "checkpoints")


def plan_lines(plan: Plan) -> list[str]:
    """The first screen."""
    share = 100 * plan["trainable"] / plan["parameters"]
    batch = f"{plan['batch_size']} x {plan['accumulate']} accumulated x {count(plan['processes'], 'process', 'es')}"
    done = f", {plan['done']} done" if plan["done"] else ""
    lines = [
        f"config     {plan['config']}",
        f"model      {plan['model']}",
        f"adapter    {plan['adapter']}: {plan['trainable']:,} of {plan['parameters']:,} weights are trained"
        f" ({share:.1f} %)",
        f"images     {plan['data']}: {plan['training']} for training, {plan['held_out']} held out"
        f" ({plan['near_duplicates']} near-duplicates stay on one side)",
        *use_lines(plan["buckets"], plan["folders"], plan["global_batch"]),
        f"captions   {plan['tokens']}",
        f"batch      {batch} = {plan['global_batch']} images a step",
        f"length     {plan['steps']} steps = {plan['epochs']:.1f} epochs{done}",
        f"optimiser  {plan['optimizer']}",
        f"machine    {plan['device']}, {plan['precision']}, {count(plan['threads'], 'CPU thread')}, {plan['switches']}",
        *memory_lines(plan["memory"], plan["fits"]),
        *time_lines(plan),
        *disk_lines(plan["disk"]),
    ]
    for label, name in (("skipped", "left_out"), ("truncated", "captions_cut"), ("warnings", "warnings")):
        items = plan[name]
        more = [f"... and {len(items) - MAX_EXAMPLES} more"] if len(items) > MAX_EXAMPLES else []
        lines += [f"{label:<10} {len(items)}:"] if items else []
        lines += [f"             {item}" for item in [*items[:MAX_EXAMPLES], *more]]
    return lines


def time_lines(plan: Plan) -> list[str]:
    """Speed, time and cost."""
    duration, flops = plan["duration"], plan["flops"]["step"]
    work = f"{format_flops(flops)}FLOP an image"
    if duration is None:
        return [f"time       not measured; {work}"]
    speed = duration["images_per_second"]
    rate = f"{format_flops(speed * flops / plan['processes'])}FLOP/s"
    parts = [f"{name} {format_seconds(duration[name])}" for name in DURATION_PARTS if duration[name] >= 1]
    lines = [
        f"speed      {duration['step']:.3g} s a step {duration['how']}: {speed:.3g} images/s, {work}, {rate}",
        f"time       about {format_seconds(plan['seconds'])}" + (f": {', '.join(parts)}" if parts else ""),
    ]
    if plan["cost"] is not None:
        lines.append(f"cost       {plan['cost']:.2f} at {plan['price_per_hour']:g} an hour")
    return lines


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
        earlier = "for an earlier step: train/export.py --checkpoint"
        warnings.append(f"--max-steps {steps}: {done} are done already ({earlier})")
    return warnings


def bucket_uses(dataset: TrainingSet, global_batch: int, steps: int) -> dict[str, dict[str, Any]]:
    """By size, as "512x512". Shares are of an image's area, in [0, 1); steps: whose global batch is of this bucket;
    enlarged: images that are smaller than it; batches: in one pass over its images.
    """
    weights = {
        bucket: sum(dataset.weights[sample.annotation.file_name] for sample in samples)
        for bucket, samples in dataset.buckets.items()
    }
    uses = {}
    for bucket, samples in dataset.buckets.items():
        use = bucket_use(bucket, [(sample.width, sample.height) for sample in samples])
        uses[str(bucket)] = {
            "pictures": use.count,
            "steps": steps * weights[bucket] / sum(weights.values()),
            "mean_cropped": use.mean_cropped,
            "worst_cropped": use.worst_cropped,
            "enlarged": use.enlarged,
            "batches": use.count / global_batch,
        }
    return uses


def folder_uses(shares: Sequence[FolderShare], global_batch: int, steps: int) -> list[dict[str, Any]]:
    """What each of several folders gives; times: how often each of its training images is seen in the run."""
    total = sum(share.weight * share.training for share in shares)
    if len(shares) < 2:
        return []
    return [{**vars(share), "times": steps * global_batch * share.weight / total} for share in shares]


def use_lines(
    buckets: Mapping[str, Mapping[str, Any]], folders: Sequence[Mapping[str, Any]], global_batch: int
) -> list[str]:
    """A line per folder if there are several, a line per bucket, and the buckets that no batch fills."""
    lines = [
        f"folder     {use['folder']}: {use['training']} for training, {use['held_out']} held out;"
        f" weight {use['weight']:g}, each image seen {use['times']:.1f} times"
        for use in folders
    ]
    for size, use in buckets.items():
        images = f"{count(use['pictures'], 'image')}, {use['batches']:.1f} batches an epoch"
        cropped = f"{100 * use['mean_cropped']:.1f} % cropped on average, {100 * use['worst_cropped']:.1f} % at most"
        lines.append(f"bucket     {size}: {images}, {use['steps']:.0f} steps; {cropped}; {use['enlarged']} enlarged")
    small = [f"{size} ({use['pictures']})" for size, use in buckets.items() if use["pictures"] < global_batch]
    if small:
        what = f"buckets with fewer images than the {global_batch} of a step repeat them within it"
        lines.append(f"warning    {what}: {', '.join(small)}")
    return lines


def memory_lines(memory: Mapping[str, Any], fits: Mapping[str, Any]) -> list[str]:
    """The peak by its parts, and a warning if it is more than there is."""
    parts = [f"{part} {format_bytes(bytes_)}" for part, bytes_ in memory["parts"].items() if bytes_]
    largest = max(memory["phases"], key=memory["phases"].__getitem__)
    phase = "" if largest == "training" else f", while {PHASES[largest]}"
    needed, free = format_bytes(fits["needed"]), format_bytes(fits["free"])
    lines = [f"memory     about {needed} of {free} free{phase}", f"             training: {', '.join(parts)}"]
    if fits["needed"] > fits["free"]:
        helps = f"; would fit with {' or with '.join(fits['helps'])}" if fits["helps"] else ""
        lines.append(f"warning    {needed} are probably too much for {free} of free memory{helps}")
    return lines


def disk_lines(disk: Mapping[str, int]) -> list[str]:
    total, free = format_bytes(disk["total"]), format_bytes(disk["free"])
    checkpoints = f"checkpoints of {format_bytes(disk['checkpoint'])}, {disk['kept']} kept and one being written"
    lines = [f"disk       up to {total}: {checkpoints}, exports {format_bytes(disk['export'])}"]
    if disk["total"] > disk["free"]:
        fewer = disk["spare"] > 0 and disk["total"] - disk["spare"] * disk["checkpoint"] <= disk["free"]
        helps = "--checkpoints.keep 1, or with " if fewer else ""
        what = f"{total} may be too much for {free} of free disk"
        lines.append(f"warning    {what}; would fit with {helps}--runs on a larger one")
    return lines


def optimizer_line(config: Config) -> str:
    """The optimiser, its rate, and which weights are validated and exported."""
    options, ema = config.optim, config.ema
    factor = " (a factor on the step size it finds)" if options.kind == "prodigy" else ""
    warmup = f" after {options.warmup} steps of warm-up" if options.warmup else ""
    average = "its own average" if options.kind == "schedule-free" else ""
    if ema.decay:
        average = f"the moving average (EMA {ema.decay:g})"
    exported = f"; validated and exported: {average} of the weights" if average else ""
    rate = f"learning rate {config.learning_rate:g}{factor}"
    return f"{options.kind}, {rate}, {options.schedule}{warmup}{exported}"


def count(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{ending * (number != 1)}"


def format_bytes(bytes_: float) -> str:
    return f"{bytes_ / GIBIBYTE:.2f} GiB" if bytes_ >= 0.1 * GIBIBYTE else f"{bytes_ / 2**20:.1f} MiB"


def format_flops(number: float) -> str:
    """1.23 T, 45.6 G"""
    return f"{number / 1e12:.3g} T" if number >= 1e11 else f"{number / 1e9:.3g} G"


def format_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
