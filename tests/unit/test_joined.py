"""AdamW of all weights at once is torch's AdamW of each of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.small_runs import advance, seeded_unet, small_run
from train import checkpoint, optim
from train.joined import JoinedAdamW
from train.optim import OptimConfig
from train.state import State, Task, evaluated
from train.workers import SideBySide

CONFIG = OptimConfig(weight_decay=0.1, clip_norm=0.5)
RATE = 0.01
Maker = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def network() -> nn.ModuleList:
    """Weights of odd sizes: a convolution in channels-last, a number, and one that is exactly a line of the cache."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Conv2d(3, 5, 3), nn.Linear(7, 9), nn.LayerNorm(16)])
    layers.register_parameter("number", nn.Parameter(torch.tensor(0.5)))
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def joined(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return optim.build(weights, CONFIG, joined=True)


def apart(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return optim.build(weights, CONFIG)


class Trainee:
    """Its gradients are functions of the step; each backward pass adds to what is there, as autograd does. Of another's
    state it gets what a file would hold: moments in the order of their shapes.
    """

    def __init__(self, make: Maker) -> None:
        self.weights = list(network().parameters())
        self.optimizer = make(self.weights)

    def train(self, *steps: int, without: Sequence[int] = (), scale: float = 1.0) -> "Trainee":
        for step in steps:
            optim.set_learning_rate(self.optimizer, RATE / (step + 1))
            for index, weight in enumerate(self.weights):
                if index not in without:
                    add(weight, scale * draw(weight, 100 * step + index))
            torch.nn.utils.clip_grad_norm_(optim.clippable(self.optimizer), CONFIG.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def load(self, other: "Trainee") -> "Trainee":
        with torch.no_grad():
            for mine, theirs in zip(self.weights, other.weights, strict=True):
                mine.copy_(theirs)
        self.optimizer.load_state_dict(checkpoint.unflatten(*checkpoint.flatten(other.optimizer.state_dict())))
        return self


def add(weight: nn.Parameter, gradient: Tensor) -> None:
    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)


def draw(like: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(like).copy_(drawn).detach()


def assert_same(one: Trainee, other: Trainee) -> None:
    """To float32's last bits: sums over everything and over each weight are rounded differently."""
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    mine, theirs = one.optimizer.state_dict(), other.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert mine["state"].keys() == theirs["state"].keys()
    for index, slot in theirs["state"].items():
        assert mine["state"][index].keys() == slot.keys()
        for name, value in slot.items():
            torch.testing.assert_close(mine["state"][index][name], value, rtol=1e-5, atol=1e-7)


def is_joined(trainee: Trainee) -> bool:
    return isinstance(trainee.optimizer, JoinedAdamW) and trainee.optimizer.moments is not None


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_it_does_what_torch_does(scale: float) -> None:
    """With gradients that are clipped and with some that are not."""
    together = Trainee(joined).train(0, 1, 2, 3, scale=scale)
    assert isinstance(together.optimizer, JoinedAdamW) and is_joined(together)
    assert_same(together, Trainee(apart).train(0, 1, 2, 3, scale=scale))


def test_weights_stay_where_and_what_they_are() -> None:
    layers = network()
    before = {name: weight.clone() for name, weight in layers.named_parameters()}
    joined(list(layers.parameters()))
    for name, weight in layers.named_parameters():
        assert torch.equal(weight, before[name]) and weight.stride() == before[name].stride() and weight.is_leaf
    assert len({weight.untyped_storage().data_ptr() for weight in layers.parameters()}) == 1
    assert all(4 * weight.storage_offset() % 64 == 0 for weight in layers.parameters())


def test_clipping_sees_the_norm_of_all_gradients() -> None:
    trainee = Trainee(joined)
    for weight in trainee.weights:
        add(weight, torch.ones_like(weight))
    norm = torch.nn.utils.clip_grad_norm_(optim.clippable(trainee.optimizer), 1.0)
    count = sum(weight.numel() for weight in trainee.weights)
    assert float(norm) == pytest.approx(count**0.5)
    left = torch.cat([weight.grad.flatten() for weight in trainee.weights if weight.grad is not None])
    assert len(left) == count and float(left.norm()) == pytest.approx(1.0)


def test_the_norm_of_many_numbers_is_exact() -> None:
    """torch adds up the squares of one long tensor in float32: it would come out 4e-4 too small here."""
    weights = [nn.Parameter(torch.zeros(1000, 1000)) for _ in range(10)]
    optimizer = joined(weights)
    for index, weight in enumerate(weights):
        weight.grad = draw(weight, index)
    exact = sum(float(weight.grad.double().square().sum()) for weight in weights if weight.grad is not None) ** 0.5
    norm = torch.nn.utils.clip_grad_norm_(optim.clippable(optimizer), 1.0)
    assert float(norm) == pytest.approx(exact, rel=2e-6)
    left = sum(float(weight.grad.double().square().sum()) for weight in weights if weight.grad is not None) ** 0.5
    assert left == pytest.approx(1.0, rel=2e-6)


def test_an_infinite_norm_is_forgotten() -> None:
    """As where a gradient scaler leaves the step out: what lies between the weights must not stay NaN."""
    trainee = Trainee(joined)
    for scale in (float("inf"), 1.0):
        for index, weight in enumerate(trainee.weights):
            add(weight, scale * draw(weight, index))
        norm = torch.nn.utils.clip_grad_norm_(optim.clippable(trainee.optimizer), 1.0)
        assert bool(norm.isfinite()) == (scale == 1.0)
        trainee.optimizer.zero_grad()


def test_gradients_add_up_and_go() -> None:
    """Those that autograd leaves, those that are given together, and both."""
    trainee = Trainee(joined).train(0)
    optimizer = trainee.optimizer
    assert isinstance(optimizer, JoinedAdamW) and all(weight.grad is None for weight in trainee.weights)
    ones = [torch.ones_like(weight) for weight in trainee.weights]
    count = sum(weight.numel() for weight in trainee.weights)
    for weight, one in zip(trainee.weights, ones, strict=True):
        add(weight, one.clone())
        add(weight, one)
    assert sum(float(piece.grad.sum()) for piece in optim.clippable(optimizer) if piece.grad is not None) == 2 * count
    optimizer.add([one.bfloat16() for one in ones])
    assert float(optimizer.gradients.sum()) == 3 * count
    optimizer.zero_grad()
    optimizer.add(ones)
    optimizer.add([one.bfloat16() for one in ones])
    assert float(optimizer.gradients.sum()) == 2 * count
    for weight in trainee.weights:
        weight.grad = None  # as the probe leaves them
    optimizer.add([ones[0], *[None for _ in ones[1:]]])
    assert optim.clippable(optimizer) == trainee.weights
    assert [weight.grad is None for weight in trainee.weights] == [False, *[True for _ in ones[1:]]]
    assert torch.equal(trainee.weights[0].grad or ones[0], ones[0])


def test_what_has_no_gradient_is_left_out() -> None:
    """As torch does it: neither its moments nor weight decay touch it."""
    together = Trainee(joined).train(0, 1, without=[2])
    start = list(network().parameters())
    assert torch.equal(together.weights[2], start[2]) and len(together.optimizer.state) == len(start) - 1
    assert_same(together, Trainee(apart).train(0, 1, without=[2]))
    assert_same(together.train(2, 3), Trainee(apart).train(0, 1, without=[2]).train(2, 3))


def test_what_loses_its_gradient_later_is_left_out_from_then_on() -> None:
    together = Trainee(joined).train(0, 1)
    assert is_joined(together)
    together.train(2, without=[1]).train(3, 4)
    assert not is_joined(together)
    assert_same(together, Trainee(apart).train(0, 1).train(2, without=[1]).train(3, 4))


@pytest.mark.parametrize(("before", "after"), [(apart, joined), (joined, apart), (joined, joined)])
def test_a_state_goes_on_in_the_other_kind(before: Maker, after: Maker) -> None:
    """What a GPU began may go on here, and what began here there."""
    expected = Trainee(apart).train(0, 1, 2, 3)
    found = Trainee(after).load(Trainee(before).train(0, 1)).train(2, 3)
    assert_same(found, expected)
    assert is_joined(found) == (after is joined)


def test_a_state_of_uneven_steps_goes_on_one_by_one() -> None:
    uneven = Trainee(apart).train(0, without=[0]).train(1)
    found = Trainee(joined).load(uneven).train(2, 3)
    assert not is_joined(found)
    assert_same(found, uneven.train(2, 3))


def test_what_is_saved_counts_each_weights_steps() -> None:
    """torch adds one to the count of each weight: were it one count, another optimiser would run ahead."""
    trainee = Trainee(joined).train(0, 1)
    other = Trainee(apart)
    other.optimizer.load_state_dict(trainee.optimizer.state_dict())
    other.train(2)
    assert {float(slot["step"]) for slot in other.optimizer.state.values()} == {3.0}


def test_a_state_of_no_steps() -> None:
    fresh = Trainee(joined)
    fresh.optimizer.load_state_dict(Trainee(apart).optimizer.state_dict())
    assert_same(fresh.train(0), Trainee(apart).train(0))


def test_a_weight_that_was_moved_is_noticed() -> None:
    trainee = Trainee(joined).train(0)
    trainee.weights[1].data = trainee.weights[1].data.clone()
    with pytest.raises(RuntimeError, match="were moved in memory"):
        trainee.train(1)


@pytest.mark.parametrize("odd", [torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, 4)[:, :2]])
def test_what_cannot_be_joined(odd: Tensor) -> None:
    with pytest.raises(ValueError, match="cannot be joined"):
        joined([nn.Parameter(torch.zeros(3)), nn.Parameter(odd)])


def test_other_optimisers_are_as_they_are() -> None:
    config = OptimConfig(kind="adafactor")
    assert type(optim.build([nn.Parameter(torch.zeros(3))], config, joined=True)).__name__ == "Adafactor"


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_trainer_joins_what_is_small(
    adapter: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays within rounding of a run that does not, whoever computes the gradients."""
    assert isinstance(small_state(tmp_path, adapter)[0].optimizer.optimizer, JoinedAdamW)
    together = losses(*small_state(tmp_path, adapter), threads)
    monkeypatch.setattr("train.joined.suited", lambda *_, **__: False)
    state, task = small_state(tmp_path, adapter)
    assert not isinstance(state.optimizer.optimizer, JoinedAdamW)
    torch.testing.assert_close(together, losses(state, task, threads), rtol=1e-4, atol=1e-6)


def small_state(folder: Path, adapter: str) -> tuple[State, Task]:
    changes: dict[str, Any] = {"shapes": [(4, 4, 4)], "learning_rate": 1e-3, "batch_size": 4, "accumulate": 2}
    return small_run(folder, seeded_unet(), adapter={"kind": adapter}, ema={"decay": 0.9}, **changes)


def losses(state: State, task: Task, threads: int) -> Tensor:
    """Of three steps, with validation's other weights in between."""
    weights = optim.weights(state.optimizer)
    state.workers = SideBySide(threads, threads, weights) if threads > 1 else None
    found = list[Tensor]()
    for _ in range(3):
        found += advance(state, task, 1).losses
        with evaluated(state):
            pass
    inner = state.optimizer.optimizer
    assert not isinstance(inner, JoinedAdamW) or inner.moments is not None
    return torch.stack(found)
