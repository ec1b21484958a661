"""What a run will do, worked out before it starts: pictures, batches, epochs, memory, disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.bucket_use import BucketUse, FolderUse, use_lines
from train.config import Averaging, Config

GIB = 2**30
SHOWN = 5  # examples of what was left out or cut


@dataclass(frozen=True)
class Plan:
    """The numbers of the first screen, and of plan.json."""

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
    state_gib: float
    checkpoint_gib: float
    sampling: str = ""  # what must be known to draw with the result, if there is anything

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.processes

    @property
    def epochs(self) -> float:
        return self.steps * self.global_batch / max(1, self.training)

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"global_batch": self.global_batch, "epochs": round(self.epochs, 2)}

    def lines(self) -> list[str]:
        """One fact a line, for a person."""
        b = f"{self.batch_size} x {self.accumulate} accumulated x {self.processes} process(es)"
        share = 100 * self.trainable / self.parameters
        lines = [
            f"model      {self.model}",
            f"adapter    {self.adapter}: {self.trainable:,} of {self.parameters:,} weights are trained ({share:.1f} %)",
            f"pictures   {self.data}: {self.training} to train on, {self.held_out} held out"
            f" ({self.near_duplicates} near-duplicates stay on one side)",
            *use_lines(self.buckets, self.folders, self.global_batch),
            f"captions   {self.tokens}",
            f"batch      {b} = {self.global_batch} pictures a step",
            f"length     {self.steps} steps = {self.epochs:.1f} times through the pictures"
            + (f", {self.done} done" if self.done else ""),
            f"optimiser  {self.optimizer}",
            f"machine    {self.device}, {self.precision}, {self.threads} CPU threads, {self.switches}",
            f"memory     {self.state_gib:.2f} GiB for weights, gradients and optimiser, and activations on top",
            f"disk       {self.checkpoint_gib:.2f} GiB a checkpoint",
        ]
        for label, items in (("left out", self.left_out), ("cut", self.captions_cut), ("beware", self.warnings)):
            lines += dropped(f"{label:<10}", items)
        return lines


def dropped(label: str, items: list[str]) -> list[str]:
    """What is not used, named; the rest is counted."""
    if not items:
        return []
    more = f"             ... and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"{label} {len(items)}:"] + [f"             {item}" for item in items[:SHOWN]] + ([more] if more else [])


def optimizer_line(config: Config) -> str:
    """How weights are updated, at what rate, and which weights come out of it."""
    optim, average = config.optim, config.ema
    rate = f"learning rate {config.learning_rate:g}"
    if optim.kind == "prodigy":
        rate += " (a factor on the step size it finds)"
    warmup = f" after {optim.warmup} steps of warm-up" if optim.warmup else ""
    own = "its own average" if optim.kind == "schedule-free" else ""
    used = f"the moving average (EMA {average.decay:g})" if average.decay else own
    exported = f"; validated and exported: {used} of the weights" if used else ""
    return f"{optim.kind}, {rate}, {optim.schedule}{warmup}{exported}"


@dataclass(frozen=True)
class AverageBytes:
    """What an average of the weights takes, on the training device and wherever it lies."""

    device: int
    anywhere: int


def ema_bytes(average: Averaging, trained: int) -> AverageBytes:
    """A float32 number a trained weight, if there is an average."""
    total = 4 * trained if average.decay else 0
    return AverageBytes(total if average.device == "same" else 0, total)


def optimizer_bytes(kind: str, shapes: Iterable[Sequence[int]]) -> int:
    """Bytes of optimiser state for weights of these shapes; a few for the steps it counts are left out."""
    return sum(STATE[kind](shape) for shape in shapes)


def two_moments(shape: Sequence[int]) -> int:
    return 8 * math.prod(shape)


def two_bytes(shape: Sequence[int]) -> int:
    """Two 8-bit moments, a float32 scale of each for every 256 numbers, and a table; small ones stay in float32."""
    numbers = math.prod(shape)
    return two_moments(shape) if numbers < 4096 else 2 * numbers + 2 * 4 * math.ceil(numbers / 256) + 2 * 4 * 256


def rows_and_columns(shape: Sequence[int]) -> int:
    """A number for each row and each column of the last two dimensions: little for a matrix, not for a convolution."""
    if len(shape) < 2:
        return 4 * math.prod(shape)
    *outer, rows, columns = shape
    return 4 * math.prod(outer) * (rows + columns)


def four_numbers(shape: Sequence[int]) -> int:
    """Two moments, the starting point and a running sum of gradients; at most: zeros to start from take one number."""
    return 16 * math.prod(shape)


STATE = {
    "adamw": two_moments,
    "adamw-8bit": two_bytes,
    "adafactor": rows_and_columns,
    "prodigy": four_numbers,
    "schedule-free": two_moments,
}
