"""What a run writes down while it trains: metrics.jsonl (a line a step), TensorBoard, a progress bar."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from data.files import disk_error, write_atomic
from train.trackers import TensorBoard, Tracker


class Report(Protocol):
    """Where numbers go. Chosen once, before the loop begins."""

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None: ...

    def picture(self, name: str, step: int, file: Path) -> None: ...

    def advance(self, steps: int, **shown: str) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class Silent:
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


class Written:
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
        self.bar = tqdm(total=stop, initial=start, desc="training", unit="step", dynamic_ncols=True)

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
