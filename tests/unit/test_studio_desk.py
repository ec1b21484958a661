"""The studio's queue: in order, one at a time, none lost, each stoppable, and no failure touches the next."""

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from data.errors import InputError
from infer.config import GenerateOptions
from infer.studios.desk import Desk, Order, Withdrawn

PATIENCE = 20.0


class Hand:
    """Draws when it is let; what it does with an order is chosen by its prompt."""

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, order: Order) -> None:
        self.begun.release()
        self.let.acquire()
        order.check()
        word = order.options.prompt[0]
        if word == "wrong":
            raise InputError("that cannot be drawn", where="--prompt")
        if word == "broken":
            raise ZeroDivisionError("by nothing")
        self.drawn.append(word)


def options(word: str) -> GenerateOptions:
    return GenerateOptions(prompt=(word,))


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def desk(hand: Hand) -> Iterator[Desk]:
    found = Desk(hand, most=4)
    found.open()
    yield found
    for _ in range(10):
        hand.let.release()
    found.close()
    assert not found.thread.is_alive()


def test_orders_are_drawn_in_order_one_at_a_time(desk: Desk, hand: Hand) -> None:
    first = desk.take(options("one"))
    assert hand.begun.acquire(timeout=PATIENCE)
    second, third = desk.take(options("two")), desk.take(options("three"))
    assert (first.state, second.state) == ("drawing", "waiting")
    assert [desk.ahead(order) for order in (first, second, third)] == [0, 1, 2]
    for _ in range(3):
        hand.let.release()
    assert third.over.wait(PATIENCE)
    assert hand.drawn == ["one", "two", "three"]
    assert {order.state for order in (first, second, third)} == {"done"} and third.share == 1.0


def test_one_that_waits_is_stopped_at_once_and_one_that_is_drawn_at_its_next_step(desk: Desk, hand: Hand) -> None:
    drawn, waiting, after = (desk.take(options(word)) for word in ("drawn", "waiting", "after"))
    assert hand.begun.acquire(timeout=PATIENCE)
    desk.withdraw(waiting)
    assert waiting.state == "stopped" and waiting.over.is_set()
    desk.withdraw(drawn)
    assert drawn.state == "drawing"
    for _ in range(2):
        hand.let.release()
    assert after.over.wait(PATIENCE)
    assert (drawn.state, hand.drawn) == ("stopped", ["after"])
    with pytest.raises(Withdrawn):
        drawn.check()


def test_what_goes_wrong_is_told_and_the_next_one_is_drawn(
    desk: Desk, hand: Hand, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, broken, fine = (desk.take(options(word)) for word in ("wrong", "broken", "fine"))
    for _ in range(3):
        hand.let.release()
    assert fine.over.wait(PATIENCE)
    assert (wrong.state, wrong.error) == ("failed", "--prompt: that cannot be drawn")
    assert broken.state == "failed" and "ZeroDivisionError: by nothing" in broken.error
    assert "Traceback" in capsys.readouterr().err
    assert hand.drawn == ["fine"]


def test_a_full_queue_says_so(desk: Desk, hand: Hand) -> None:
    first = desk.take(options("first"))
    assert hand.begun.acquire(timeout=PATIENCE)
    orders = [desk.take(options("more")) for _ in range(4)]
    with pytest.raises(InputError, match="4 orders are waiting already"):
        desk.take(options("one too many"))
    desk.withdraw(orders[0])
    assert desk.take(options("now")).state == "waiting" and first.state == "drawing"


def test_closing_stops_everything(hand: Hand) -> None:
    desk = Desk(hand)
    desk.open()
    drawn, waiting = desk.take(options("drawn")), desk.take(options("waiting"))
    assert hand.begun.acquire(timeout=PATIENCE)
    threading.Timer(0.05, hand.let.release).start()
    desk.close()
    assert (drawn.state, waiting.state, desk.thread.is_alive()) == ("stopped", "stopped", False)


def test_an_order_that_nobody_holds_is_forgotten(desk: Desk, hand: Hand) -> None:
    order = desk.take(options("gone"))
    key, gone = order.key, weakref.ref(order)
    assert desk.known[key] is order
    hand.let.release()
    assert order.over.wait(PATIENCE)
    after = desk.take(options("after"))
    hand.let.release()
    assert after.over.wait(PATIENCE)
    del order
    gc.collect()
    assert gone() is None and key not in desk.known


def test_shares_and_seconds() -> None:
    order = Order(options("x"))
    assert (order.share, order.left) == (0.0, 0.0)
    order.total, order.calls, order.began = 40, 10, order.taken - 3.0
    assert order.share == 0.25
    assert order.left == pytest.approx(9.0, abs=3.0)
    order.state = "done"
    assert order.share == 1.0
