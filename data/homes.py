"""Where the encoded set is kept during training: in main memory, or on disk. The batches are the same bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from data import cache
from data.dataset import Entry, posterior
from data.errors import InputError

GIB = 2**30
ROOM_IN_MEMORY = 0.5  # share of the free memory that the set may take by itself
MEMORY_LIMITS = ((Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),)


@dataclass(frozen=True)
class Record:
    """Where one picture's encoded forms lie in the cache; see Entry."""

    sample_id: str
    moments: tuple[Path, ...]
    text_states: tuple[Path, ...]


class OnDisk(Sequence[Entry]):
    """Entries that are read from the cache each time they are asked for: for sets larger than the memory."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, int)
        record = self.records[index]
        moments = tuple(posterior(cache.load(path)) for path in record.moments)
        return Entry(record.sample_id, moments, tuple(cache.load(path) for path in record.text_states))


class InMemory:
    """Reads entries onto a device, each file once: captions that several pictures share are shared."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known: dict[Path, Tensor] = {}

    def entries(self, records: Sequence[Record]) -> Sequence[Entry]:
        return [self.entry(record) for record in records]

    def entry(self, record: Record) -> Entry:
        moments = tuple(self.value(path, is_moments=True) for path in record.moments)
        return Entry(record.sample_id, moments, tuple(self.value(path) for path in record.text_states))

    def value(self, path: Path, *, is_moments: bool = False) -> Tensor:
        if path not in self.known:
            value = cache.load(path)
            self.known[path] = (posterior(value) if is_moments else value).to(self.device)
        return self.known[path]


def size_of(records: Iterable[Record]) -> int:
    """Bytes of the encoded set: its files, each counted once."""
    places = {path for record in records for path in (*record.moments, *record.text_states)}
    return sum(path.stat().st_size for path in places)


def choose(keep: str, size: int) -> str:
    """memory or disk for `size` bytes; `auto` is memory while there is ample room, `device` another name for memory.

    Raises InputError if memory was asked for and has no room.
    """
    free = free_in_memory()
    if keep == "auto":
        return "memory" if size <= ROOM_IN_MEMORY * free else "disk"
    if keep == "disk":
        return keep
    if size > free:
        what = f"the encoded images take {size / GIB:.2f} GiB, {free / GIB:.2f} GiB of memory are free"
        raise InputError(what, where=f"--pictures.keep {keep}", fix="Use --pictures.keep disk.")
    return "memory"


def free_in_memory() -> int:
    """Bytes of main memory available to each process of this machine, within the limit of our control group."""
    free = [psutil.virtual_memory().available]
    for limit, used in MEMORY_LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            free.append(max(0, int(text) - int(used.read_text())))
    return min(free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
