"""A step's gradients from one pass or from threads, and timesteps drawn by importance in one process or in several."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from data.dataset import Layout
from data.sets import digits
from train.ddpm import process, schedule
from train.ddpm.networks.convnext import AnnotatedUNet, ResnetBlock
from train.ddpm.networks.paper import PaperUNet
from train.ddpm.running import gradients
from train.ddpm.running.batches import Batch, Stream
from train.ddpm.running.config import ObjectiveOptions
from train.ddpm.running.gradients import Parts, Whole
from train.ddpm.running.objective import Question, loss_of
from train.ddpm.running.timesteps import ByImportance, Evenly
from train.workers import SideBySide

T = 20
SCHEDULE = schedule.linear(T, beta_end=0.4)
COST = loss_of(ObjectiveOptions(bound="importance"), SCHEDULE)
STREAM = Stream(digits.load().taken(range(40)), Layout(10), seed=3, steps=T)


def network() -> AnnotatedUNet:
    torch.manual_seed(0)
    return AnnotatedUNet(1, width=8, multiples=(1, 2), block=ResnetBlock)


def losses_of(asked: torch.nn.Module, batch: Batch) -> Tensor:
    xt = process.add_noise(SCHEDULE, batch.x0, batch.eps, batch.t)
    return COST(Question(batch.x0, batch.eps, xt, batch.t), asked(xt, batch.t))


def machine() -> Accelerator:
    return cast(Accelerator, SimpleNamespace(backward=lambda loss: loss.backward()))


@pytest.mark.parametrize("count", [2, 3])
def test_threads_with_a_part_each_find_the_gradient_of_the_whole(count: int) -> None:
    batch = STREAM.batch(0)
    batch.weights[:] = torch.linspace(0.2, 2, 10)  # as if some timesteps were drawn more often
    found: list[tuple[Tensor, list[Tensor]]] = []
    for threads in (1, count, count):
        asked = network()
        crew = SideBySide(threads, threads, list(asked.parameters()))
        who = Parts(crew) if threads > 1 else Whole(machine())
        losses = who.backward(partial(losses_of, asked), batch)
        found.append((losses, [cast(Tensor, weight.grad) for weight in asked.parameters()]))
    whole, parts, again = found
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in whole[1])
    for one, other in zip(parts[1], whole[1], strict=True):
        assert float((one - other).abs().max()) < 1e-5 * largest
    assert all(torch.equal(one, other) for one, other in zip(parts[1], again[1], strict=True)), "bits repeat"


def test_parts_are_the_batch_in_order() -> None:
    batch = STREAM.batch(2)
    parts = batch.parts(3)
    assert [len(part) for part in parts] == [4, 4, 2]
    for name in ("x0", "eps", "t", "weights"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert all(part.labels is None for part in parts)


def test_dropout_keeps_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers come from one generator: which thread asks first would decide."""
    facts: dict[str, Any] = {"device": torch.device("cpu"), "num_processes": 1, "mixed_precision": "no"}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    here = cast(Accelerator, SimpleNamespace(**facts))
    kinds = {
        dropout: gradients.suited(here, PaperUNet(1, widths=(32,), blocks=1, dropout=dropout), 8, compiled=False)
        for dropout in (0.0, 0.1)
    }
    assert isinstance(kinds[0.0], Parts) and isinstance(kinds[0.1], Whole)
    assert isinstance(gradients.suited(here, network(), 8, compiled=True), Whole)


# ---- timesteps


def seen_by(draws: ByImportance, rank: int, processes: int, steps: int) -> list[Tensor]:
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

    alone = ByImportance(4, gather=lambda mine: mine)
    expected = seen_by(alone, 0, 1, 12)
    assert alone.history.complete
    both = [ByImportance(4, gather=partial(gather, rank)) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda rank: seen_by(both[rank], rank, 2, 12), range(2)))
    for one in both:
        assert torch.equal(one.history.losses, alone.history.losses)
        assert torch.equal(one.history.counts, alone.history.counts)
    assert all(torch.equal(torch.cat(pair), whole) for *pair, whole in zip(*halves, expected, strict=True))
    counts = torch.bincount(torch.cat(expected[6:]), minlength=4)
    assert counts[3] > counts[0], "the largest loss is asked about most"


def test_19_a_history_survives_a_checkpoint() -> None:
    first = ByImportance(4, gather=lambda mine: mine)
    seen_by(first, 0, 1, 9)
    second = ByImportance(4, gather=lambda mine: mine)
    second.load_state(first.state())
    assert torch.equal(second.history.losses, first.history.losses)
    assert [t.tolist() for t in seen_by(second, 0, 1, 3)] == [t.tolist() for t in seen_by(first, 0, 1, 3)]
    assert Evenly(4).state() == {}


def test_even_draws_weigh_one() -> None:
    t, weights = Evenly(4).draw(torch.tensor([0.0, 0.26, 0.999999, 0.5]))
    assert (t.tolist(), weights.tolist()) == ([0, 1, 3, 2], [1.0] * 4)
