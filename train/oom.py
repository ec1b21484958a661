"""When memory runs out: micro-batches are cut into pieces, whose gradients add up to the same sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from data.dataset import Batch, BatchLayout
from data.errors import InputError

OUT_OF_MEMORY_HINT = "Use gradient checkpointing, an 8-bit optimiser, smaller pictures or a LoRA of lower rank."


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """The batch in at most `count` parts of (nearly) equal size, in order."""
    size = len(batch.sample_ids)
    step = -(-size // count)
    return [slice_batch(batch, slice(start, start + step)) for start in range(0, size, step)] if count > 1 else [batch]


def slice_batch(batch: Batch, rows: slice) -> Batch:
    """Some rows of every entry that has a batch axis."""
    entries = {entry.name: getattr(batch, entry.name) for entry in fields(batch)}
    cut: dict[str, Any] = {
        name: value[rows] if isinstance(value, Tensor | list) else value for name, value in entries.items()
    }
    return Batch(**cut)


def split_further(count: int, layout: BatchLayout) -> int:
    """Twice as many pieces, after memory ran out; says so.

    Raises InputError for single samples, and with several processes: one that computes a batch anew while the others
    wait for its gradients would leave them waiting.
    """
    if layout.processes > 1:
        fix = f"Use --batch-size {max(1, layout.batch_size // 2)} --accumulate {2 * layout.accumulate}: the same batch."
        raise InputError("a micro-batch does not fit into the device's memory", where="training", fix=fix)
    if count >= layout.batch_size:
        raise InputError(
            "a single picture does not fit into the device's memory", where="training", fix=OUT_OF_MEMORY_HINT
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    size = -(-layout.batch_size // (2 * count))
    print(f"\nout of memory: going on with micro-batches in pieces of {size}; their sum is the same", flush=True)
    return 2 * count


def predict_in_chunks(answer: Callable[[slice], Tensor], rows: int) -> Tensor:
    """The answers for all rows, at once or, where memory runs out, in pieces. Raises InputError if one is too much."""
    size = rows
    while (found := try_predict(answer, rows, size)) is None:
        if size == 1:
            what = "a single picture does not fit into the device's memory"
            raise InputError(what, where="validation", fix="Use smaller pictures.")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = -(-size // 2)
    return found


def try_predict(answer: Callable[[slice], Tensor], rows: int, size: int) -> Tensor | None:
    """None if memory ran out. What lay in it is free again only after this function has returned."""
    try:
        return torch.cat([answer(slice(start, start + size)) for start in range(0, rows, size)])
    except torch.OutOfMemoryError:
        return None


@contextmanager
def optimizer_memory_guard() -> Iterator[None]:
    """The optimiser's moments are made at the first step, when the gradients already lie there."""
    try:
        yield
    except torch.OutOfMemoryError:
        what = "the optimiser's state does not fit into the device's memory"
        raise InputError(what, where="training", fix=OUT_OF_MEMORY_HINT) from None
