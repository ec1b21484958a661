"""The base's losses come out of the cache exactly as they were measured, for the same questions alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.small_runs import TABLES, Toy, config_of, entries, small_run
from train import trainer, validation
from train.config import Epsilon, Velocity
from train.ddpm import schedule
from train.metrics import MetricsLogger
from train.model import Denoiser
from train.validation import Validator, measure_cached

CPU = torch.device("cpu")
PICTURES = entries(4)
NETWORK = ("a hash of the U-Net", "its adapter")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))


def validator(**changes: object) -> Validator:
    plain = Validator({"held-out": PICTURES[:2], "train": PICTURES[2:]}, Epsilon(), TABLES, 0.5, timesteps=3)
    return replace(plain, **changes)  # type: ignore[arg-type]


class Counted(Toy):
    """Counts its forward passes."""

    passes = 0

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        self.passes += 1
        return super().forward(*args, **kwargs)


def test_measured_once_and_equal_bit_for_bit() -> None:
    toy = Counted()
    first, passes = measure_cached(validator(), NETWORK, Denoiser(toy), CPU), toy.passes
    second = measure_cached(validator(), NETWORK, Denoiser(toy), CPU)
    assert toy.passes == passes > 0
    plain = validator().measure(Denoiser(toy), CPU)
    for found in (first, second):
        assert found.keys() == plain.keys()
        for side, losses in found.items():
            assert losses.values.dtype == np.float64 and np.array_equal(losses.values, plain[side].values)


def is_measured(asked: Validator, network: Sequence[object] = NETWORK) -> bool:
    toy = Counted()
    measure_cached(asked, network, Denoiser(toy), CPU)
    return toy.passes > 0


OTHERS: dict[str, dict[str, object]] = {
    "a picture less": {"sides": {"held-out": PICTURES[:1], "train": PICTURES[2:]}},
    "sides exchanged": {"sides": {"train": PICTURES[:2], "held-out": PICTURES[2:]}},
    "other latents": {
        "sides": {
            "held-out": [replace(PICTURES[0], moments=(PICTURES[0].moments[0] + 1e-6,)), PICTURES[1]],
            "train": PICTURES[2:],
        }
    },
    "another caption": {
        "sides": {
            "held-out": [replace(PICTURES[0], text_states=(PICTURES[0].text_states[0] * 2,)), PICTURES[1]],
            "train": PICTURES[2:],
        }
    },
    "more timesteps": {"timesteps": 4},
    "another objective": {"objective": Velocity()},
    "another schedule": {"schedule": schedule.linear(1000)},
    "another scale": {"scaling_factor": 0.18215},
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_questions_are_a_miss(other: str) -> None:
    assert is_measured(validator()) and is_measured(validator(**OTHERS[other]))


def test_a_picture_that_was_renamed_is_none() -> None:
    assert is_measured(validator())
    renamed = {"held-out": [replace(PICTURES[0], sample_id="x"), PICTURES[1]], "train": PICTURES[2:]}
    assert not is_measured(validator(sides=renamed))


def test_another_network_or_machine_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_measured(validator()) and is_measured(validator(), ("another U-Net", "its adapter"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert is_measured(validator())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert is_measured(validator())


@pytest.mark.parametrize("base", [None, NETWORK])
def test_only_the_first_look_is_the_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Sequence[object] | None
) -> None:
    """The base's losses come from the cache before the first step, if they may, and are measured ever after."""
    state, task = small_run(tmp_path, Toy())
    steps: list[int] = []
    original = validation.measure_cached
    monkeypatch.setattr(validation, "measure_cached", lambda *given: steps.append(state.step) or original(*given))
    trainer.fit(state, replace(task, base=base), MetricsLogger())
    assert steps == ([0] if base else []) and state.step == config_of().max_steps
