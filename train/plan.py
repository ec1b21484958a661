"""What a run will do, worked out before it starts: pictures, batches, epochs, memory, disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.flops import Flops
    from train.memory import Memory

from train.bucket_use import BucketUse, FolderUse, use_lines
from train.config import Config

GIB = 2**30
DOING = {
    "encoding": "pictures are encoded",
    "validation": "it looks at held-out pictures",
    "drawing": "previews are drawn",
    "saving": "a checkpoint is written",
}
SHOWN = 5  # examples of what was left out or cut


@dataclass(frozen=True)
class Duration:
    """Seconds of what is left to do, by what they go to; `step`: of one optimiser step, known in the way `how` says."""

    step: float
    how: str
    images_per_second: float
    training: float
    validation: float
    checkpoints: float
    encoding: float  # pictures that are not in the cache yet
    previews: float

    @property
    def parts(self) -> dict[str, float]:
        names = ("encoding", "training", "validation", "previews", "checkpoints")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = [f"{name} {clock(seconds)}" for name, seconds in self.parts.items() if seconds >= 1]
        return f"about {clock(self.total)}" + (f": {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class Disk:
    """Bytes that the run folder will hold. free: for all of it; spare: kept checkpoints that it could do without."""

    checkpoint: int
    kept: int
    export: int
    free: int
    spare: int

    @property
    def total(self) -> int:
        """One more checkpoint than are kept: the oldest goes only when a new one is whole."""
        return self.checkpoint * (self.kept + 1) + self.export

    def warning(self) -> list[str]:
        if self.total <= self.free:
            return []
        fewer = self.spare > 0 and self.total - self.spare * self.checkpoint <= self.free
        helps = "--checkpoints.keep 1, or with " if fewer else ""
        much = f"{size(self.total)} may be too much for {size(self.free)} of free disk"
        return [f"beware     {much}; would fit with {helps}--runs on a larger one"]

    def __str__(self) -> str:
        return (
            f"up to {size(self.total)}: checkpoints of {size(self.checkpoint)}, {self.kept} kept and one being written,"
            f" exports {size(self.export)}"
        )


@dataclass(frozen=True)
class Fits:
    """Whether the memory will do. helps: flags with which it would, those that cost least first."""

    needed: int
    free: int | None
    helps: list[str]

    def warning(self) -> list[str]:
        if self.free is None or self.needed <= self.free:
            return []
        helps = f"; would fit with {' or with '.join(self.helps)}" if self.helps else ""
        return [f"beware     {size(self.needed)} are probably too much for {size(self.free)} of free memory{helps}"]


def size(bytes_: float) -> str:
    """Bytes as people read them."""
    return f"{bytes_ / GIB:.2f} GiB" if bytes_ >= 0.1 * GIB else f"{bytes_ / 2**20:.1f} MiB"


def operations(count: float) -> str:
    """1.23 T, 45.6 G"""
    return f"{count / 1e12:.3g} T" if count >= 1e11 else f"{count / 1e9:.3g} G"


def clock(seconds: float) -> str:
    """A duration as people read it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
    memory: Memory
    fits: Fits
    disk: Disk
    flops: Flops  # of one picture
    duration: Duration | None  # None if no step could be timed
    price_per_hour: float | None = None
    sampling: str = ""  # what must be known to draw with the result, if there is anything

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
        derived: dict[str, Any] = {"global_batch": self.global_batch, "epochs": round(self.epochs, 2)}
        derived |= {"peak_gib": self.memory.peak / GIB, "disk_gib": self.disk.total / GIB, "cost": self.cost}
        derived |= {"seconds": self.duration.total if self.duration else None}
        return asdict(self) | derived

    def lines(self) -> list[str]:
        """One fact a line, for a person."""
        b = f"{self.batch_size} x {self.accumulate} accumulated x {self.processes} process{'es' * (self.processes > 1)}"
        share = 100 * self.trainable / self.parameters
        threads = f"{self.threads} CPU thread{'s' * (self.threads > 1)}"
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
            f"machine    {self.device}, {self.precision}, {threads}, {self.switches}",
            *self.memory_lines(),
            *self.time_lines(),
            f"disk       {self.disk}",
            *self.disk.warning(),
        ]
        for label, items in (("left out", self.left_out), ("cut", self.captions_cut), ("beware", self.warnings)):
            lines += dropped(f"{label:<10}", items)
        return lines

    def memory_lines(self) -> list[str]:
        """The peak by its parts, and a warning if it is more than there is."""
        parts = [f"{part} {size(bytes_)}" for part, bytes_ in self.memory.parts.items() if bytes_]
        elsewhere = "" if self.memory.hungriest == "training" else f", while {DOING[self.memory.hungriest]}"
        free = "" if self.fits.free is None else f" of {size(self.fits.free)} free"
        lines = [
            f"memory     about {size(self.memory.peak)}{free}{elsewhere}",
            f"             training: {', '.join(parts)}",
        ]
        return lines + self.fits.warning()

    def time_lines(self) -> list[str]:
        """Speed, time and money."""
        work = f"{operations(self.flops.step)}FLOP a picture"
        if self.duration is None:
            return [f"time       not measured; {work}"]
        speed = self.duration.images_per_second
        rate = f"{operations(speed * self.flops.step / self.processes)}FLOP/s"
        lines = [
            f"speed      {self.duration.step:.3g} s a step {self.duration.how}: {speed:.3g} pictures/s, {work}, {rate}",
            f"time       {self.duration}",
        ]
        if self.cost is not None:
            lines.append(f"money      {self.cost:.2f} at {self.price_per_hour:g} an hour")
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
