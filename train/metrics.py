"""Metrics of a run: collected on the device, written to metrics.jsonl and to trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor

from data.atomic_io import disk_error, write_atomic
from data.dataset import BatchLayout
from data.errors import InputError
from data.progress import ProgressBar
from train.config import Config

TIMESTEP_BINS = 4


def bin_losses(losses: Tensor, t: Tensor, steps: int) -> Tensor:
    """(2, TIMESTEP_BINS): sum and number of the losses (B,) in each bin of timesteps t (B,) in [0, steps).

    Fine detail and composition are learnt at different speeds, which one mean hides.
    """
    found = torch.zeros(2, TIMESTEP_BINS, device=losses.device)
    values = torch.stack([losses.float(), torch.ones_like(losses).float()])
    return found.index_add_(1, t * TIMESTEP_BINS // steps, values)


def mean_by_bin(sums: Sequence[float], counts: Sequence[float], steps: int) -> dict[str, float | None]:
    """{"0-249": mean loss ...}; None for an empty bin."""
    edges = [-(-steps * index // TIMESTEP_BINS) for index in range(TIMESTEP_BINS + 1)]  # rounded up
    names = [f"{low}-{high - 1}" for low, high in pairwise(edges)]
    return {name: a / n if n else None for name, a, n in zip(names, sums, counts, strict=True)}


@dataclass(frozen=True)
class Speed:
    """flops: operations of one sample's training step. peak: FLOP/s of one device. None: not known."""

    flops: float | None = None
    peak: float | None = None
    devices: int = 1

    def of(self, samples: int, seconds: float) -> dict[str, float | None]:
        """{"images_per_second", "tflops" (per device), "mfu" in [0, 1]} of training `samples` in `seconds` > 0."""
        rate = samples / seconds
        each = rate * self.flops / self.devices if self.flops else None
        return {
            "images_per_second": rate,
            "tflops": each / 1e12 if each else None,
            "mfu": each / self.peak if each and self.peak else None,
        }


@dataclass
class MetricBuffer:
    """Metrics of the last steps, still on the device: reading them at every step would make the device wait."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)  # of the gradients, before clipping
    rates: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # seconds for batches
    sample_ids: list[list[str]] = field(default_factory=list)
    bins: list[Tensor] = field(default_factory=list)  # (2, TIMESTEP_BINS) each
    began: float = 0.0  # time.perf_counter() at the first step

    def start_step(self) -> None:
        self.began = self.began if self.losses else time.perf_counter()

    def flush(
        self,
        step: int,
        accelerator: Accelerator,
        layout: BatchLayout,
        speed: Speed,
        logger: MetricsLogger,
        *,
        timesteps: int,
        sample_ids: bool = False,
    ) -> str | None:
        """Log the steps up to `step`, averaged over all processes. Returns what was not finite, or None.

        A gradient that is not finite is normal under a scaler, which skips such a step; without one it means that the
        weights are lost, though only the next step's loss shows it.
        """
        if not self.losses:
            return None
        losses: list[float] = accelerator.reduce(torch.stack(self.losses), "mean").tolist()  # type: ignore[union-attr]
        seconds = time.perf_counter() - self.began  # reading the losses waited for the device
        norms: list[float] = torch.stack(self.norms).tolist()
        sums, counts = accelerator.reduce(torch.stack(self.bins).sum(0), "sum").tolist()  # type: ignore[union-attr]
        first = step - len(losses) + 1
        lines: list[dict[str, Any]] = [
            {"step": first + i, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
            for i, (loss, norm, rate) in enumerate(zip(losses, norms, self.rates, strict=True))
        ]
        if sample_ids:
            for line, samples in zip(lines, in_slot_order(self.sample_ids, layout), strict=True):
                line["samples"] = samples
        window = {"step": step, "window": len(losses), **speed.of(len(losses) * layout.global_batch, seconds)}
        by_timestep = mean_by_bin(sums, counts, timesteps)
        logger.write([*lines, window | {"data_wait": sum(self.waits) / seconds, "loss_by_timestep": by_timestep}])
        logger.advance(0, loss=f"{sum(losses) / len(losses):.4f}")
        scaled = accelerator.scaler is not None
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not math.isfinite(loss) or not (scaled or math.isfinite(norm)):
                what = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
                ids = ", ".join(dict.fromkeys(in_slot_order(self.sample_ids, layout)[i]))
                return f"{what} at step {first + i}, on {ids}"
        # a fused optimiser skips on the device, which accelerate's step_was_skipped does not see; the norm tells
        skipped = sum(not math.isfinite(norm) for norm in norms)
        if skipped:
            logger.say(f"{skipped} of the last {len(losses)} steps overflowed in fp16 and were skipped by the scaler")
        for entries in (self.losses, self.norms, self.rates, self.waits, self.sample_ids, self.bins):
            entries.clear()
        return None


def in_slot_order(steps: list[list[str]], layout: BatchLayout) -> list[list[str]]:
    """The samples of each step's global batch, gathered from all processes, in the order a single process has."""
    ranks: list[list[list[str]]] = [steps] if layout.processes == 1 else gather_object([steps])
    size = layout.batch_size
    micros = [range(start, start + size) for start in range(0, size * layout.accumulate, size)]
    return [[rank[step][row] for rows in micros for rank in ranks for row in rows] for step in range(len(steps))]


class MetricsLogger:
    """Logs nothing: for every process but the first."""

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        pass

    def log_image(self, name: str, step: int, file: Path) -> None:
        pass

    def advance(self, steps: int, **shown: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class RunLogger(MetricsLogger):
    """metrics.jsonl, trackers and a progress bar. A resumed run drops the lines of steps that it repeats.

    A line is any mapping with a `step`; numbers in it, nested ones too, go to the trackers under slashed names.
    trackers: accelerate's, started.
    """

    def __init__(
        self, folder: Path, *, start: int, stop: int, tensorboard: bool, trackers: Sequence[GeneralTracker] = ()
    ) -> None:
        self.metrics = folder / "metrics.jsonl"
        keep_until(self.metrics, start)
        self.file = self.metrics.open("ab", buffering=0)  # nothing is left to be written when it is closed
        self.trackers = [*trackers]
        if tensorboard:
            board = TensorBoardTracker("tensorboard", folder, purge_step=start + 1 if start else None)
            board.start()
            self.trackers.append(board)
        bar = {"initial": start, "unit": "step", "dynamic_ncols": True, "leave": True}
        self.bar = ProgressBar(desc="training", total=stop, **bar)

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Raises InputError if the disk is full."""
        try:
            for line in map(without_infinities, lines):
                left = (json.dumps(line, allow_nan=False) + "\n").encode()
                while left:  # an unbuffered file may take less at once
                    left = left[self.file.write(left) :]
                for tracker in self.trackers:
                    tracker.log(dict(numbers(line)), step=line["step"])
        except OSError as error:
            raise disk_error(error, self.metrics) from error

    def log_image(self, name: str, step: int, file: Path) -> None:
        with Image.open(file) as image:
            batch = np.array(image.convert("RGB"))[None]
        for tracker in self.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: batch}, step=step, **options)

    def advance(self, steps: int, **shown: str) -> None:
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(steps)

    def say(self, text: str) -> None:
        if self.bar.in_terminal:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        for tracker in self.trackers:
            tracker.finish()


def open_logger(config: Config, folder: Path, identity: str, start: int) -> RunLogger:
    """The logger of a run that begins or resumes after `start` steps. Weights & Biases has one run for one run folder,
    whatever the number of sessions; WANDB_MODE=offline as usual.
    """
    trackers: list[GeneralTracker] = []
    if config.logging.wandb:
        names = {"id": f"{folder.name}-{identity[:8]}", "name": folder.name, "resume": "allow", "dir": str(folder)}
        trackers = [WandBTracker(config.logging.wandb_project, **names)]
        trackers[0].start()
        trackers[0].store_init_configuration(config.model_dump(mode="json"))
    tensorboard = config.logging.tensorboard
    return RunLogger(folder, start=start, stop=config.max_steps, tensorboard=tensorboard, trackers=trackers)


def check_wandb_installed() -> None:
    """Raises InputError before any work is done if Weights & Biases is switched on and not installed."""
    if find_spec("wandb") is None:
        raise InputError("Weights & Biases is not installed", where="--logging.wandb", fix="pip install wandb")


def without_infinities(value: Any) -> Any:
    """JSON has no infinity and no NaN (the interval of a single image, a loss that burst): they become null."""
    if isinstance(value, Mapping):
        return {name: without_infinities(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line with slashed names, as TensorBoard groups them."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield f"{prefix}{name}", float(value)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line torn by a kill is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after `step` steps: they are about to be written again; at the start, all of them."""
    if path.is_file():
        kept = [line for line in read_metrics(path) if step > 0 and line["step"] <= step]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
