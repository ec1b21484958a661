"""Where the encoded set lives while it trains: on the device, in main memory, or on the disk.

Whichever it is, the batches are the same, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import cache
from data.dataset import Entry, posterior
from data.errors import InputError

GIB = 2**30
ROOM_ON_DEVICE = 0.25  # share of its free memory that the set may take by itself: activations come on top
ROOM_IN_MEMORY = 0.5  # likewise of main memory
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


def choose(keep: str, size: int, device: torch.device) -> str:
    """device, memory or disk for `size` bytes; `auto` is the first of them that has ample room.

    Where the device is the CPU, its memory is main memory. Raises InputError if the place asked for has no room.
    """
    free = {"device": free_on(device), "memory": free_in_memory()}
    if keep == "auto":
        if device.type == "cuda" and size <= ROOM_ON_DEVICE * free["device"]:
            return "device"
        return "memory" if size <= ROOM_IN_MEMORY * free["memory"] else "disk"
    if keep != "disk" and size > free[keep]:
        what = f"the encoded pictures take {size / GIB:.2f} GiB, {free[keep] / GIB:.2f} GiB are free there"
        fix = "Take --pictures.keep disk." if keep == "memory" else "Take --pictures.keep memory, or disk."
        raise InputError(what, where=f"--pictures.keep {keep}", fix=fix)
    return "memory" if keep == "device" and device.type != "cuda" else keep


def free_on(device: torch.device) -> int:
    """Bytes that are free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_in_memory()


def free_in_memory() -> int:
    """Bytes of main memory for each process of this machine: what the system calls available, within our own limit."""
    free = [available(Path("/proc/meminfo"))]
    for limit, used in MEMORY_LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            free.append(max(0, int(text) - int(used.read_text())))
    return min(free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available(meminfo: Path) -> int:
    """Bytes available by Linux's own estimate; half of all memory on a system that has none."""
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
