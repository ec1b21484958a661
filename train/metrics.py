"""Training losses by timestep: fine detail and composition are learnt at different speeds, which one mean hides."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data.atomic_io import disk_error, write_atomic
from data.errors import InputError
from data.progress import ProgressBar

TIMESTEP_BINS = 4


def bin_losses(losses: Tensor, t: Tensor, steps: int) -> Tensor:
    """(2, BANDS): the sum and the number of the losses (B,) in each of BANDS equal bands of timesteps t (B,)."""
    found = torch.zeros(2, TIMESTEP_BINS, device=losses.device)
    return found.index_add_(
        1, t * TIMESTEP_BINS // steps, torch.stack([losses.float(), torch.ones_like(losses).float()])
    )


def mean_by_bin(sums: Sequence[float], counts: Sequence[float], steps: int) -> dict[str, float | None]:
    """{"0-249": mean loss ...}; None for a band in which no sample fell."""
    edges = [-(-steps * band // TIMESTEP_BINS) for band in range(TIMESTEP_BINS + 1)]  # rounded up
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


class Tracker(Protocol):
    """Someone who draws curves."""

    def write(self, numbers: Mapping[str, float], step: int) -> None: ...

    def picture(self, name: str, file: Path, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`. A resumed run forgets the steps after `start`."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, file: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as picture:
            self.writer.add_image(name, np.array(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One run of Weights & Biases for one run folder, whatever the number of sessions; WANDB_MODE=offline as usual."""

    def __init__(self, project: str, name: str, identity: str, settings: Mapping[str, Any], folder: Path) -> None:
        from accelerate.tracking import WandBTracker

        unique = f"{name}-{identity[:8]}"
        self.tracker = WandBTracker(project, id=unique, name=name, resume="allow", dir=str(folder))
        self.tracker.start()
        self.tracker.store_init_configuration(dict(settings))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(numbers), step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        from PIL import Image

        with Image.open(file) as picture:
            self.tracker.log_images({name: [picture.convert("RGB")]}, step=step)

    def close(self) -> None:
        self.tracker.finish()


def check_wandb_installed() -> None:
    """Raises InputError before any work is done if Weights & Biases was asked for and is not installed."""
    if find_spec("wandb") is None:
        raise InputError("Weights & Biases is not installed", where="--logging.wandb", fix="pip install wandb")


class MetricsLogger(Protocol):
    """Where numbers go. Chosen once, before the loop begins."""

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None: ...

    def picture(self, name: str, step: int, file: Path) -> None: ...

    def advance(self, steps: int, **shown: str) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class SilentLogger:
    """For every process but the first."""

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        pass

    def picture(self, name: str, step: int, file: Path) -> None:
        pass

    def advance(self, steps: int, **shown: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class RunLogger:
    """metrics.jsonl, trackers and a bar with ETA. A resumed run drops the lines of steps it will do again.

    A line is any mapping with a `step`; numbers in it, nested ones too, go to the trackers under slashed names.
    """

    def __init__(
        self, folder: Path, *, start: int, stop: int, tensorboard: bool, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.metrics = folder / "metrics.jsonl"
        keep_until(self.metrics, start)
        self.file = self.metrics.open("ab", buffering=0)  # nothing is left to be written when it is closed
        self.trackers = [*([TensorBoard(folder / "tensorboard", start)] if tensorboard else []), *trackers]
        self.bar = ProgressBar(total=stop, initial=start, desc="training", unit="step", leave=True, dynamic_ncols=True)

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Raises InputError if the disk is full."""
        try:
            for line in lines:
                put(self.file, json.dumps(without_infinities(line), allow_nan=False) + "\n")
                for tracker in self.trackers:
                    tracker.write(dict(numbers(line)), line["step"])
        except OSError as error:
            raise disk_error(error, self.metrics) from error

    def picture(self, name: str, step: int, file: Path) -> None:
        for tracker in self.trackers:
            tracker.picture(name, file, step)

    def advance(self, steps: int, **shown: str) -> None:
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(steps)

    def say(self, text: str) -> None:
        self.bar.write(text)

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        for tracker in self.trackers:
            tracker.close()


def put(file: FileIO, text: str) -> None:
    """Write all of it: an unbuffered file may take less at once."""
    left = text.encode()
    while left:
        left = left[file.write(left) :]


def without_infinities(value: Any) -> Any:
    """JSON has no infinity and no NaN (the interval of a single picture, a loss that burst): they become null."""
    if isinstance(value, Mapping):
        return {name: without_infinities(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(line: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of a line with slashed names, as TensorBoard groups them."""
    found: list[tuple[str, float]] = []
    for name, value in line.items():
        if isinstance(value, Mapping):
            found += numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            found.append((f"{prefix}{name}", float(value)))
    return found


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


def none_if_infinite(value: float) -> float | None:
    """JSON has no infinity; an overflowed fp16 step has an infinite gradient norm."""
    return value if math.isfinite(value) else None
