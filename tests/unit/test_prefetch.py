"""Working ahead changes when a batch is made, never what is in it; and the thread goes when it should."""

import contextlib
import gc
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data.dataset import EncodedPictures, Entry, Layout, StepSampler, collate
from data.prefetch import PATIENCE, Ahead, InTurn, supply
from data.schema import Batch

ROOT = Path(__file__).parents[2]


def real_batches(steps: int = 12) -> Iterator[Batch]:
    """Batches as the trainer makes them, of two buckets."""
    draw = torch.Generator().manual_seed(0)
    buckets = [
        [
            Entry(f"{side}/{i}", (torch.rand(8, side, 4, generator=draw),), (torch.rand(5, 6, generator=draw),))
            for i in range(5)
        ]
        for side in (4, 6)
    ]
    pictures = EncodedPictures(buckets, torch.zeros(5, 6), seed=1, scaling_factor=0.5, dropout=0.2)
    sampler = StepSampler([5, 5], Layout(3), seed=1, start=0, stop=steps)
    return (collate([pictures[position] for position in positions]) for positions in sampler)


def ended(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


def test_the_batches_are_those_of_the_source() -> None:
    ahead, turn = list(supply(real_batches(), torch.device("cpu"))), list(real_batches())
    assert len(ahead) == len(turn) == 12
    for one, other in zip(ahead, turn, strict=True):
        assert one.sample_ids == other.sample_ids
        for name in ("latents", "noise", "text_states", "timestep_uniforms"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_it_works_ahead_but_not_further_than_asked() -> None:
    made: list[int] = []
    source = (made.append(i) or i for i in itertools.count())
    items = Ahead(source, depth=3)
    assert [next(items) for _ in range(2)] == [0, 1]
    deadline = time.monotonic() + 10
    while len(made) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # time enough for one too many
    assert made == [0, 1, 2, 3, 4, 5], "two were taken, three wait, one is in hand"
    items.close()
    assert ended(items.thread)


def test_an_exception_comes_at_its_place_and_ends_the_thread() -> None:
    def source() -> Iterator[int]:
        yield from (0, 1)
        raise ValueError("the third cannot be read")

    items = Ahead(source())
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="the third cannot be read"):
        next(items)
    assert ended(items.thread)
    assert list(items) == [], "nothing comes after it"


def test_the_end_is_the_end() -> None:
    items = Ahead(iter(range(4)), depth=1)
    assert list(items) == [0, 1, 2, 3]
    assert list(items) == []
    assert ended(items.thread)


def test_closing_ends_the_thread_even_if_it_waits_for_room() -> None:
    items = Ahead(itertools.count(), depth=1)
    next(items)
    items.close()
    items.close()
    assert ended(items.thread)
    with pytest.raises(StopIteration):
        next(items)


def test_a_forgotten_iterator_ends_its_thread() -> None:
    items = Ahead(itertools.count())
    thread = items.thread
    del items
    gc.collect()
    assert ended(thread)


def test_a_failing_training_leaves_no_thread() -> None:
    def train() -> None:
        items = Ahead(itertools.count())
        threads.append(items.thread)
        next(items)
        raise RuntimeError("the training failed")

    threads: list[threading.Thread] = []
    with contextlib.suppress(RuntimeError):
        train()
    gc.collect()
    assert ended(threads[0])


@pytest.mark.parametrize("end", ["raise RuntimeError('stop here')", "os.kill(os.getpid(), signal.SIGINT)"])
def test_the_interpreter_ends_while_the_thread_works(end: str) -> None:
    """Tensors are being made when the main thread fails or is interrupted."""
    script = f"""
import itertools, os, signal, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
from data.prefetch import Ahead
items = Ahead((torch.randn(64, 64, generator=torch.Generator()) for _ in itertools.count()), depth=2)
for _ in range(20): next(items)
print("reached", flush=True)
{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.stdout == "reached\n"
    expected = {"r": (1, "RuntimeError: stop here"), "o": (-signal.SIGINT, "KeyboardInterrupt")}[end[0]]
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == expected


def test_waiting_is_counted() -> None:
    def slow() -> Iterator[int]:
        for i in range(3):
            time.sleep(0.05)
            yield i

    turn = InTurn(slow())
    assert list(turn) == [0, 1, 2]
    assert turn.waited >= 0.15
    ahead = Ahead(slow(), depth=4)  # three and the end
    ahead.thread.join(PATIENCE)  # all of them are made before the first is asked for
    assert list(ahead) == [0, 1, 2]
    assert ahead.waited < 0.05, "it waited though everything lay ready"


def test_no_global_generator_is_touched() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert len(list(supply(real_batches(), torch.device("cpu")))) == 12
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]
