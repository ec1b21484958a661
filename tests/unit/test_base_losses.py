"""The base's losses come out of the cache exactly as they were measured, for the same questions alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.small_runs import TABLES, Toy, config_of, entries, small_run
from train import trainer, validation
from train.ddpm import schedule
from train.losses import Epsilon, Velocity
from train.metrics import SilentLogger
from train.model import Denoiser
from train.validation import LossesBySplit, Validator, measure_cached

CPU = torch.device("cpu")
PICTURES = entries(4)
NETWORK = ("a hash of the U-Net", "its adapter")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))


def validator(**changes: object) -> Validator:
    plain = Validator({"held-out": PICTURES[:2], "train": PICTURES[2:]}, Epsilon(), TABLES, 0.5, timesteps=3)
    return replace(plain, **changes)  # type: ignore[arg-type]


def counting(asked: Validator, network: Toy, times: list[int]) -> Callable[[], LossesBySplit]:
    def measure() -> LossesBySplit:
        times.append(1)
        return asked.measure(Denoiser(network), CPU)

    return measure


def test_measured_once_and_equal_bit_for_bit() -> None:
    times: list[int] = []
    measure = counting(validator(), Toy(), times)
    first, second = (measure_cached(validator(), NETWORK, CPU)(measure) for _ in range(2))
    assert len(times) == 1
    plain = measure()
    for found in (first, second):
        assert found.keys() == plain.keys()
        for side, losses in found.items():
            assert losses.values.dtype == np.float64 and np.array_equal(losses.values, plain[side].values)


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
    times: list[int] = []
    measure_cached(validator(), NETWORK, CPU)(counting(validator(), Toy(), times))
    asked = validator(**OTHERS[other])
    measure_cached(asked, NETWORK, CPU)(counting(asked, Toy(), times))
    assert len(times) == 2


def test_a_picture_that_was_renamed_is_none() -> None:
    times: list[int] = []
    measure_cached(validator(), NETWORK, CPU)(counting(validator(), Toy(), times))
    renamed = {"held-out": [replace(PICTURES[0], sample_id="x"), PICTURES[1]], "train": PICTURES[2:]}
    measure_cached(validator(sides=renamed), NETWORK, CPU)(counting(validator(), Toy(), times))
    assert len(times) == 1


def test_another_network_or_machine_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    measure = counting(validator(), Toy(), times)
    measure_cached(validator(), NETWORK, CPU)(measure)
    measure_cached(validator(), ("another U-Net", "its adapter"), CPU)(measure)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    measure_cached(validator(), NETWORK, CPU)(measure)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    measure_cached(validator(), NETWORK, CPU)(measure)
    assert len(times) == 4


def test_only_the_first_look_is_the_bases(tmp_path: Path) -> None:
    """The loop asks for the base's losses before the first step, and measures ever after."""
    state, task = small_run(tmp_path, Toy())
    asked: list[int] = []

    def noting(measure: Callable[[], LossesBySplit]) -> LossesBySplit:
        asked.append(state.step)
        return measure()

    trainer.fit(state, replace(task, measure_base=noting), SilentLogger())
    assert asked == [0] and state.step == config_of().max_steps


def test_without_a_memory_it_is_measured() -> None:
    times: list[int] = []
    for _ in range(2):
        validation.measure_uncached(counting(validator(), Toy(), times))
    assert len(times) == 2
