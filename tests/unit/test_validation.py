"""The loss at fixed noise depends on the image and the network alone; its interval covers; the base's is cached."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from data import rng
from data.dataset import EncodedImage, mean_latents
from data.errors import InputError
from tests.small_runs import TABLES, Toy, config_of, entries, small_run
from train import trainer, validation
from train.config import Epsilon, Objective, Velocity
from train.ddpm import diffusion, schedule
from train.metrics import MetricsLogger
from train.model import Denoiser
from train.validation import Losses, Validator, entry_hash, measure_cached, paired_difference

CPU = torch.device("cpu")
TABLE = schedule.linear(1000)
SCALING = 0.5


class TinyUnet(nn.Module):
    """Ten numbers in the shape of a U-Net; dropout that would show if it were left in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.1, 1.0, 10))
        self.dropout = nn.Dropout(0.5)

    def forward(self, noisy: Tensor, t: Tensor, *, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        shift = encoder_hidden_states.mean(dim=(1, 2)) + self.scale[t * 10 // 1000]
        return (self.dropout(noisy * self.scale[:2].reshape(2, 1, 1)) + shift.reshape(-1, 1, 1, 1),)


def entry(name: str) -> EncodedImage:
    moments, states = (rng.normal(shape, "test", name, index) for index, shape in enumerate([(4, 3, 5), (7, 6)]))
    other = rng.normal((7, 6), "test", name, "another caption")
    return EncodedImage(name, (moments, moments.flip(-1)), (states, other))


ENTRIES = [entry(f"{number}.png") for number in range(4)]


def validator(
    held_out: list[EncodedImage], train: list[EncodedImage], objective: Objective | None = None, count: int = 8
) -> Validator:
    return Validator({"held-out": held_out, "train": train}, objective or Epsilon(), TABLE, SCALING, count)


@pytest.fixture
def unet() -> TinyUnet:
    return TinyUnet()


def test_it_is_the_mean_square_of_what_the_network_gets_wrong(unet: TinyUnet) -> None:
    found = validator(ENTRIES[:1], []).measure(Denoiser(unet), CPU)["held-out"]
    moments, states = ENTRIES[0].moments[0], ENTRIES[0].text_states[0]
    eps = rng.normal((8, 2, 3, 5), "validation", entry_hash(ENTRIES[0]))
    unet.eval().requires_grad_(False)
    for index in range(8):
        t = torch.tensor([1000 * (2 * index + 1) // 16])
        noisy = diffusion.add_noise(TABLE, moments[None, :2] * SCALING, eps[index][None], t)
        (answer,) = unet(noisy, t, encoder_hidden_states=states[None], return_dict=False)
        assert found.values[0, index] == pytest.approx(float((answer - eps[index]).square().mean()), rel=1e-5)


class Small(TinyUnet):
    """A device with room for few rows at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def forward(self, noisy: Tensor, t: Tensor, **others: Any) -> tuple[Tensor]:
        if len(noisy) > self.room:
            raise torch.OutOfMemoryError("injected")
        return super().forward(noisy, t, **others)


@pytest.mark.parametrize("room", [1, 3, 4, 8])
def test_timesteps_are_asked_in_pieces_where_memory_runs_out(unet: TinyUnet, room: int) -> None:
    expected = validator(ENTRIES, []).measure(Denoiser(unet), CPU)["held-out"].values
    small = Small(room)
    small.load_state_dict(unet.state_dict())
    assert np.allclose(validator(ENTRIES, []).measure(Denoiser(small), CPU)["held-out"].values, expected, rtol=1e-6)


def test_a_single_timestep_that_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"validation: a single image does not fit"):
        validator(ENTRIES, []).measure(Denoiser(Small(0)), CPU)


def test_a_picture_that_was_renamed_is_asked_the_same(unet: TinyUnet) -> None:
    renamed = [replace(image, sample_id=f"another/{image.sample_id}") for image in ENTRIES]
    before, after = (validator(images, []) for images in (ENTRIES, renamed))
    assert before.questions == after.questions != validator(ENTRIES[:3], []).questions
    one, other = (each.measure(Denoiser(unet), CPU)["held-out"].values for each in (before, after))
    assert np.array_equal(one, other)


def test_neighbours_and_order_change_no_bit(unet: TinyUnet) -> None:
    one, two, three, four = ENTRIES
    alone = [validator([image], []).measure(Denoiser(unet), CPU)["held-out"].values[0] for image in ENTRIES]
    found = validator([one, two], [three, four]).measure(Denoiser(unet), CPU)
    turned = validator([four, two, one], [three]).measure(Denoiser(unet), CPU)
    assert np.array_equal(found["held-out"].values, np.stack(alone[:2]))
    assert np.array_equal(found["train"].values, np.stack(alone[2:]))
    assert np.array_equal(turned["held-out"].values, np.stack([alone[3], alone[1], alone[0]]))
    assert not np.array_equal(alone[0], alone[1])


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(training: bool, unet: TinyUnet) -> None:
    unet.train(training)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    np_before = cast("tuple[Any, ...]", np.random.get_state())
    weights = unet.scale.detach().clone()
    first = validator(ENTRIES, []).measure(Denoiser(unet), CPU)["held-out"].values
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(cast("tuple[Any, ...]", np.random.get_state())[1], np_before[1])
    assert unet.training == unet.dropout.training == training
    assert unet.scale.grad is None and torch.equal(unet.scale, weights)
    torch.manual_seed(2)
    assert np.array_equal(validator(ENTRIES, []).measure(Denoiser(unet), CPU)["held-out"].values, first)


def test_the_mode_comes_back_after_an_error(unet: TinyUnet) -> None:
    @dataclass(frozen=True)
    class Broken:
        unet: nn.Module

        def __call__(self, *given: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    unet.train()
    with pytest.raises(RuntimeError, match="out of memory"):
        validator(ENTRIES, []).measure(cast(Denoiser, Broken(unet)), CPU)
    assert unet.training


def test_a_side_without_pictures_is_left_out(unet: TinyUnet) -> None:
    assert validator([], ENTRIES[:1]).measure(Denoiser(unet), CPU).keys() == {"train"}


def test_a_perfect_network_has_no_loss() -> None:
    """Velocity of a image that is known: the answer computed from the noisy latents themselves."""
    x0 = mean_latents(ENTRIES[0].moments[0], SCALING)

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, noisy: Tensor, t: Tensor, **given: Any) -> tuple[Tensor]:
            known = x0.expand_as(noisy)
            return (diffusion.velocity(TABLE, known, diffusion.eps_from_x0(TABLE, noisy, known, t), t),)

    found = validator(ENTRIES[:1], [], Velocity()).measure(Denoiser(Oracle()), CPU)["held-out"]
    assert found.values.max() < 1e-6


def test_means_of_losses() -> None:
    losses = Losses(np.array([[1.0, 3.0], [5.0, 7.0], [0.0, 2.0]]))
    assert losses.mean == 3.0
    assert losses.per_picture.tolist() == [2.0, 6.0, 1.0]
    assert losses.per_timestep == [2.0, 4.0]


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_interval_is_that_of_the_paired_t_test(confidence: float) -> None:
    draw = np.random.default_rng(0)
    base, change = draw.normal(1.0, 0.5, (9, 4)), draw.normal(-0.02, 0.05, (9, 4))
    found = paired_difference(Losses(base + change), Losses(base), confidence)
    want = stats.ttest_1samp(change.mean(axis=1), 0.0).confidence_interval(confidence)
    assert found.mean == pytest.approx(change.mean(), abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(want.low, abs=1e-12), pytest.approx(want.high, abs=1e-12))


def test_pairing_takes_out_what_pictures_share() -> None:
    """Losses of images spread by 0.5, changes by 0.01: unpaired, this change could not be seen."""
    draw = np.random.default_rng(1)
    base, change = draw.normal(1.0, 0.5, (16, 1)), draw.normal(-0.02, 0.01, (16, 1))
    found = paired_difference(Losses(base + change), Losses(base))
    assert found.high < 0
    assert found.high - found.low < 0.02


def test_the_interval_covers_the_truth_in_95_of_100() -> None:
    """2000 draws: a true coverage of 95 % shows as 95 +- 0.5 (one standard error)."""
    draw = np.random.default_rng(2)
    changes = draw.normal(0.3, 1.0, (2000, 6, 1))
    nothing = Losses(np.zeros((6, 1)))
    intervals = [paired_difference(Losses(change), nothing) for change in changes]
    covered = sum(interval.low <= 0.3 <= interval.high for interval in intervals) / len(intervals)
    assert 0.93 < covered < 0.97


def test_one_picture_tells_nothing_about_others() -> None:
    found = paired_difference(Losses(np.array([[1.0, 2.0]])), Losses(np.array([[1.0, 1.0]])))
    assert (found.mean, found.low, found.high) == (0.5, float("-inf"), float("inf"))
    assert str(found) == "+0.5000 [-inf, +inf]"


CPU = torch.device("cpu")
IMAGES = entries(4)
NETWORK = ("a hash of the U-Net", "its adapter")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))


def question(**changes: object) -> Validator:
    plain = Validator({"held-out": IMAGES[:2], "train": IMAGES[2:]}, Epsilon(), TABLES, 0.5, timesteps=3)
    return replace(plain, **changes)  # type: ignore[arg-type]


class Counted(Toy):
    """Counts its forward passes."""

    passes = 0

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        self.passes += 1
        return super().forward(*args, **kwargs)


def test_measured_once_and_equal_bit_for_bit() -> None:
    toy = Counted()
    first, passes = measure_cached(question(), NETWORK, Denoiser(toy), CPU), toy.passes
    second = measure_cached(question(), NETWORK, Denoiser(toy), CPU)
    assert toy.passes == passes > 0
    plain = question().measure(Denoiser(toy), CPU)
    for found in (first, second):
        assert found.keys() == plain.keys()
        for side, losses in found.items():
            assert losses.values.dtype == np.float64 and np.array_equal(losses.values, plain[side].values)


def is_measured(asked: Validator, network: Sequence[object] = NETWORK) -> bool:
    toy = Counted()
    measure_cached(asked, network, Denoiser(toy), CPU)
    return toy.passes > 0


OTHERS: dict[str, dict[str, object]] = {
    "a image less": {"sides": {"held-out": IMAGES[:1], "train": IMAGES[2:]}},
    "sides exchanged": {"sides": {"train": IMAGES[:2], "held-out": IMAGES[2:]}},
    "other latents": {
        "sides": {
            "held-out": [replace(IMAGES[0], moments=(IMAGES[0].moments[0] + 1e-6,)), IMAGES[1]],
            "train": IMAGES[2:],
        }
    },
    "another caption": {
        "sides": {
            "held-out": [replace(IMAGES[0], text_states=(IMAGES[0].text_states[0] * 2,)), IMAGES[1]],
            "train": IMAGES[2:],
        }
    },
    "more timesteps": {"timesteps": 4},
    "another objective": {"objective": Velocity()},
    "another schedule": {"schedule": schedule.linear(1000)},
    "another scale": {"scaling_factor": 0.18215},
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_questions_are_a_miss(other: str) -> None:
    assert is_measured(question()) and is_measured(question(**OTHERS[other]))


def test_a_picture_that_was_renamed_is_none() -> None:
    assert is_measured(question())
    renamed = {"held-out": [replace(IMAGES[0], sample_id="x"), IMAGES[1]], "train": IMAGES[2:]}
    assert not is_measured(question(sides=renamed))


def test_another_network_or_machine_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_measured(question()) and is_measured(question(), ("another U-Net", "its adapter"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert is_measured(question())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert is_measured(question())


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
