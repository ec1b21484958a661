"""The desk takes orders: one thread draws them one after another, whether or not somebody still waits for them."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

from data.errors import InputError
from infer.config import GenerateOptions

MOST_WAITING = 200  # orders; a minute or so each, so nobody would come back for more
State = Literal["waiting", "drawing", "done", "stopped", "failed"]
NUMBERS = itertools.count(1)


class Withdrawn(Exception):
    """Raised where an order is drawn, when it was stopped."""


@dataclass(frozen=True)
class Done:
    """A finished picture. base: drawn without what was learned, to compare."""

    path: Path
    prompt: str
    seed: int
    base: bool = False
    verdict: str = "ok"


@dataclass(eq=False)
class Order:
    """Pictures that somebody asked for, and how far they are.

    calls, total: U-Net calls made and to make, both counted over pictures. looks: the newest preview of each unfinished
    picture, an encoded picture by the picture's index. size: pixels, once it is known.
    """

    options: GenerateOptions
    number: int = field(default_factory=lambda: next(NUMBERS))
    key: str = field(default_factory=lambda: secrets.token_hex(8))  # who has it may stop the order
    state: State = "waiting"
    error: str = ""
    notes: tuple[str, ...] = ()
    calls: int = 0
    total: int = 0
    count: int = 0  # pictures
    size: tuple[int, int] = (0, 0)
    looks: dict[int, bytes] = field(default_factory=dict)
    done: list[Done] = field(default_factory=list)
    taken: float = field(default_factory=time.monotonic)
    began: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def share(self) -> float:
        """Of its work that is done, 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(self.calls / self.total, 1.0) if self.total else 0.0

    @property
    def left(self) -> float:
        """Seconds until it is finished, at the speed so far; 0 before anything is known."""
        share = self.share
        return (time.monotonic() - self.began) * (1 - share) / share if share > 0 else 0.0

    def check(self) -> None:
        """Raises Withdrawn once it was stopped."""
        if self.stop.is_set():
            raise Withdrawn


class Desk:
    """Who draws, what waits, and what is being drawn."""

    def __init__(self, draw: Callable[[Order], None], most: int = MOST_WAITING) -> None:
        self.draw, self.most = draw, most
        self.waiting: deque[Order] = deque()
        self.current: Order | None = None
        self.closed = False
        self.known: WeakValueDictionary[str, Order] = WeakValueDictionary()
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.work, name="desk", daemon=True)

    def open(self) -> None:
        self.thread.start()

    def take(self, options: GenerateOptions) -> Order:
        """Put an order into the queue. Raises InputError when the queue is full."""
        order = Order(options)
        with self.changed:
            if len(self.waiting) >= self.most:
                raise InputError(f"{self.most} orders are waiting already", fix="Come back in a while.")
            self.waiting.append(order)
            self.known[order.key] = order
            self.changed.notify()
        return order

    def withdraw(self, order: Order) -> None:
        """Stop an order: at once if it waits, after the step it is at if it is being drawn."""
        with self.changed:
            order.stop.set()
            if order in self.waiting:
                self.waiting.remove(order)
                self.finish(order, "stopped")

    def ahead(self, order: Order) -> int:
        """How many orders come before it."""
        with self.changed:
            place = self.waiting.index(order) if order in self.waiting else 0
            return place + (self.current is not None and order in self.waiting)

    def close(self) -> None:
        """Stop what is being drawn, drop what waits, and wait for the thread."""
        with self.changed:
            self.closed = True
            if self.current is not None:
                self.current.stop.set()
            while self.waiting:
                self.finish(self.waiting.popleft(), "stopped")
            self.changed.notify()
        if self.thread.is_alive():
            self.thread.join()

    # ---- the thread

    def work(self) -> None:
        while (order := self.following()) is not None:
            self.carry_out(order)
            with self.changed:
                self.current = None
            del order  # what was asked for is not kept until the next one comes

    def following(self) -> Order | None:
        """The next order, as soon as there is one; None when the desk is closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            if self.closed:
                return None
            self.current = self.waiting.popleft()
            self.current.state, self.current.began = "drawing", time.monotonic()
            return self.current

    def carry_out(self, order: Order) -> None:
        """Draw one; what goes wrong is the order's trouble, never the next one's."""
        try:
            self.draw(order)
            self.finish(order, "done")
        except Withdrawn:
            self.finish(order, "stopped")
        except InputError as error:
            order.error = str(error)
            self.finish(order, "failed")
        except Exception as error:  # said where the server runs, and to the person; the others' orders go on
            traceback.print_exc()
            order.error = f"The studio made a mistake of its own ({type(error).__name__}: {error})"
            self.finish(order, "failed")

    def finish(self, order: Order, state: State) -> None:
        order.looks.clear()
        order.state = state
        order.over.set()
