"""Drawing with a compiled network: the same pictures, an answer of its own for every look, and a proof."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.errors import InputError
from data.options import parse
from train.ddpm import samplers
from train.ddpm.networks.kinds import ConvNext, Frame
from train.ddpm.running import drawing, model, using
from train.ddpm.running.captured import Captured, prove
from train.ddpm.running.config import ObjectiveOptions, ScheduleOptions
from train.ddpm.running.sample_options import SampleOptions

SCHEDULE = ScheduleOptions(steps=20)


def small() -> model.Model:
    options, frame = ConvNext(width=8, multiples=(1, 2), block="resnet"), Frame(1, 8, 3)
    torch.manual_seed(0)
    network, schedule = options.build(frame).eval().requires_grad_(False), model.make_schedule(SCHEDULE)
    classes, device = ("a", "b", "c"), torch.device("cpu")
    return model.Model(network, options, frame, schedule, SCHEDULE, ObjectiveOptions(), classes, "digits", device)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """torch.compile without its code generator, which takes minutes; and what it was asked for."""
    asked: list[dict[str, object]] = []
    real = partial(torch.compile, backend="aot_eager")

    def quick(network: nn.Module, *, mode: str, dynamic: bool) -> Any:
        asked.append({"mode": mode, "dynamic": dynamic})
        return real(network, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", quick)
    return asked


def pictures(found: model.Model, name: str) -> Tensor:
    labels = found.labels_of([], 3, "--only")
    return drawing.draw(found, samplers.make(name, count=3), 3, seed=1, labels=labels, scale=2.0, clip=True)


@pytest.mark.filterwarnings("ignore")
def test_the_same_pictures(compiles: list[dict[str, object]]) -> None:
    plain = small()
    captured = plain.with_network(Captured(plain.network))
    for name in ("ddim", "dpm++"):
        torch.testing.assert_close(pictures(captured, name), pictures(plain, name), atol=1e-4, rtol=0)
    assert compiles == [{"mode": "reduce-overhead", "dynamic": False}]


def test_an_answer_is_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph answers into one place: what was kept of the look before must not change with the next."""
    place = torch.zeros(1, 1, 2, 2)

    def graph(network: nn.Module, **_: object) -> object:
        return lambda xt, t, labels: place.copy_(network(xt, t, labels))

    class Doubles(nn.Module):
        def forward(self, xt: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return 2 * xt

    monkeypatch.setattr(torch, "compile", graph)
    captured, t = Captured(Doubles()), torch.zeros(1, dtype=torch.int64)
    first = captured(torch.ones(1, 1, 2, 2), t)
    second = captured(torch.full((1, 1, 2, 2), 3.0), t)
    assert (first.unique().item(), second.unique().item()) == (2.0, 6.0)


def test_another_answer_is_refused() -> None:
    expected = torch.ones(2, 1, 2, 2)
    prove(expected * 1.001, expected)
    for wrong in (expected * 1.5, expected * float("nan")):
        with pytest.raises(InputError, match=r"--compile: torch .*'s compiler computes another answer"):
            prove(wrong, expected)


def test_the_flag_asks_for_it(tmp_path: Path, compiles: list[dict[str, object]]) -> None:
    found = small()
    folder = model.save(found, found.network.state_dict(), tmp_path / "export")
    for flags, kind in (([], type(found.network)), (["--compile"], Captured)):
        options = parse(SampleOptions, ["--run", str(folder), "--threads", "1", *flags], prog="sample.py")
        assert type(using.open_model(options)[1].network) is kind


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_it_is_a_graph() -> None:
    plain = small()
    there = model.Model(**(vars(plain) | {"network": plain.network.cuda(), "device": torch.device("cuda")}))
    captured = there.with_network(Captured(there.network))
    for name in ("ddim", "dpm++", "heun"):
        torch.testing.assert_close(pictures(captured, name), pictures(there, name), atol=1e-3, rtol=0)
