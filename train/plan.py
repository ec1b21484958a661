"""What a run will do, worked out before it starts: pictures, batches, epochs, memory, disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.bucket_use import BucketUse, FolderUse, use_lines

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
            f"machine    {self.device}, {self.precision}, {self.threads} CPU threads",
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


def optimizer_bytes(kind: str) -> float:
    """Bytes of optimiser state a trained weight: two float32 moments, or two 8-bit ones with a scale per 256."""
    return {"adamw": 8.0, "adamw-8bit": 2.0 + 8.0 / 256}[kind]
