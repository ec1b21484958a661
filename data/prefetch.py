"""Batches made ahead of their use, by one thread, and the seconds that the training waited for them.

The order and the values are those of the source: whoever reads ahead changes when a batch is made, never what is in it.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

import torch

from data.schema import Batch

T = TypeVar("T")
AHEAD = 2  # batches: one being copied while one waits; more would only hold memory
PATIENCE = 10.0  # seconds that close() waits for the thread to finish the batch it is at


class InTurn(Iterator[T], Generic[T]):
    """Makes each item when it is asked for. waited: seconds that this took so far."""

    def __init__(self, source: Iterator[T]) -> None:
        self.source = source
        self.waited = 0.0

    def __next__(self) -> T:
        start = time.perf_counter()
        try:
            return self.take()
        finally:
            self.waited += time.perf_counter() - start

    def take(self) -> T:
        return next(self.source)

    def close(self) -> None:
        """Nothing works ahead, so nothing has to be stopped."""


class Ahead(InTurn[T]):
    """Makes items in a thread of its own: `depth` of them wait to be asked for, and one more is being made.

    An exception of the source is raised where its item would have come. The thread ends when the source does, when
    close() is called, when nobody holds this object any more, and before the interpreter goes.
    """

    def __init__(self, source: Iterator[T], *, depth: int = AHEAD) -> None:
        assert depth > 0
        super().__init__(source)
        self.made: queue.Queue[Callable[[], T]] = queue.Queue(depth)
        stop = threading.Event()
        # The thread holds the queue and not this object, so that a forgotten iterator is collected, which ends the
        # thread. A daemon, or a normal exit would wait for it before `finalize` could tell it to stop.
        self.thread = threading.Thread(target=work, args=(source, self.made, stop), name="prefetch", daemon=True)
        self.end = weakref.finalize(self, halt, self.thread, self.made, stop)
        self.thread.start()

    def close(self) -> None:
        self.end()

    def take(self) -> T:
        if not self.end.alive:
            raise StopIteration
        item = self.made.get()
        try:
            return item()
        except BaseException:
            self.close()  # the end of the source, or its failure: nothing comes after it
            raise


def work(source: Iterator[T], made: queue.Queue[Callable[[], T]], stop: threading.Event) -> None:
    """What the thread does: items as functions that return them, the last one raises."""
    while not stop.is_set():
        try:
            item = next(source)
        except BaseException as error:
            made.put(raiser(error))
            return
        made.put(lambda item=item: item)


def raiser(error: BaseException) -> Callable[[], Any]:
    def raises() -> Any:
        raise error

    return raises


def halt(thread: threading.Thread, made: queue.Queue[Any], stop: threading.Event) -> None:
    """Ask the thread to stop, and make room until it has noticed: it may be waiting to put down an item."""
    stop.set()
    deadline = time.monotonic() + PATIENCE
    while thread.is_alive() and thread is not threading.current_thread() and time.monotonic() < deadline:
        try:
            made.get_nowait()
        except queue.Empty:
            thread.join(0.005)


class OnSideStream:
    """Copies batches to a CUDA device beside the training: pinned memory, a stream of its own, no waiting host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))  # entries that lie there may still be on their way

    def copied(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, torch.cuda.Event]]:
        """Run by the thread. Batches of entries that lie on the device are also made on this stream."""
        while True:
            with torch.cuda.stream(self.stream):
                batch = next(batches, None)
                if batch is None:
                    return
                moved = with_tensors(batch, self.copy)
                event = torch.cuda.Event()
                event.record(self.stream)
            yield moved, event

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.is_cuda else tensor.pin_memory().to(self.device, non_blocking=True)

    def arrived(self, batch: Batch, event: torch.cuda.Event) -> Batch:
        """Run by the training: its stream waits for the copy, and the allocator knows that it uses the memory."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        return with_tensors(batch, lambda tensor: used_on(tensor, current))


def used_on(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    tensor.record_stream(stream)
    return tensor


def with_tensors(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with each of its tensors changed."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: change(value) for name, value in values.items() if torch.is_tensor(value)})


class Copied(InTurn[Batch]):
    """Batches on a CUDA device, made and copied ahead."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        super().__init__(batches)
        self.side = OnSideStream(device)
        self.ahead = Ahead(self.side.copied(batches))

    def close(self) -> None:
        self.ahead.close()

    def take(self) -> Batch:
        return self.side.arrived(*next(self.ahead))


def supply(batches: Iterator[Batch], device: torch.device, *, ahead: bool = True) -> InTurn[Batch]:
    """Batches on the device, made ahead of their use unless told otherwise. `.waited`: seconds waited for them."""
    if device.type == "cuda":
        return Copied(batches, device)
    return Ahead(batches) if ahead else InTurn(batches)
