"""Timesteps drawn by importance in one process or in several."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from train.ddpm.runs.objective import ImportanceTimesteps, UniformTimesteps


def seen_by(draws: ImportanceTimesteps, rank: int, processes: int, steps: int) -> list[Tensor]:
    """The timesteps that a process draws; the loss at t is t + 1."""
    drawn = []
    for step in range(steps):
        uniforms = torch.rand(24, generator=torch.Generator().manual_seed(step)).chunk(processes)[rank]
        t, weights = draws.draw(uniforms)
        assert weights.dtype == torch.float32
        draws.seen(t, t.float() + 1)
        drawn.append(t)
    return drawn


def test_19_every_process_has_the_history_of_all() -> None:
    """Two processes draw, together, what one process with the whole batch draws."""
    box: dict[int, Tensor] = {}
    meeting = threading.Barrier(2)

    def gather(rank: int, mine: Tensor) -> Tensor:
        box[rank] = mine
        meeting.wait(20)
        joined = torch.cat([box[0], box[1]])
        meeting.wait(20)
        return joined

    alone = ImportanceTimesteps(4, gather=lambda mine: mine)
    expected = seen_by(alone, 0, 1, 12)
    assert alone.history.complete
    both = [ImportanceTimesteps(4, gather=partial(gather, rank)) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda rank: seen_by(both[rank], rank, 2, 12), range(2)))
    for one in both:
        assert torch.equal(one.history.losses, alone.history.losses)
        assert torch.equal(one.history.counts, alone.history.counts)
    assert all(torch.equal(torch.cat(pair), whole) for *pair, whole in zip(*halves, expected, strict=True))
    counts = torch.bincount(torch.cat(expected[6:]), minlength=4)
    assert counts[3] > counts[0], "the largest loss is asked about most"


def test_19_a_history_survives_a_checkpoint() -> None:
    first = ImportanceTimesteps(4, gather=lambda mine: mine)
    seen_by(first, 0, 1, 9)
    second = ImportanceTimesteps(4, gather=lambda mine: mine)
    second.load_state(first.state())
    assert torch.equal(second.history.losses, first.history.losses)
    assert [t.tolist() for t in seen_by(second, 0, 1, 3)] == [t.tolist() for t in seen_by(first, 0, 1, 3)]
    assert UniformTimesteps(4).state() == {}


def test_even_draws_weigh_one() -> None:
    t, weights = UniformTimesteps(4).draw(torch.tensor([0.0, 0.26, 0.999999, 0.5]))
    assert (t.tolist(), weights.tolist()) == ([0, 1, 3, 2], [1.0] * 4)
