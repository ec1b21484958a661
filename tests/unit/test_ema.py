"""The moving average: its closed form, which weights are used when, and that looking leaves no trace."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.errors import InputError
from tests.small_runs import Toy, advance, config_of, equal, small_run, trained
from train import trainer
from train.config import EmaOptions
from train.metrics import MetricsLogger
from train.model import Denoiser
from train.optim import Ema
from train.run_folder import run_identity

FINITE = torch.tensor(1.0)


def averaging(**given: object) -> EmaOptions:
    return EmaOptions.model_validate({"decay": 0.9, **given})


def walk(steps: int, config: EmaOptions) -> tuple[Ema, nn.Parameter, list[Tensor]]:
    """A weight that takes the values of a random walk; its average, the weight and all the values."""
    draw = torch.Generator().manual_seed(3)
    values = list(torch.randn(steps + 1, 5, 7, generator=draw).cumsum(0))
    weight = nn.Parameter(values[0].clone())
    average = Ema({"layer.weight": weight}, config)
    for value in values[1:]:
        with torch.no_grad():
            weight.copy_(value)
        average.update(FINITE)
    return average, weight, values


def closed_form(values: list[Tensor], decays: list[float]) -> Tensor:
    """w_0 prod d_i + sum_k (1 - d_k) w_k prod_{i > k} d_i, in float64."""
    total = values[0].double() * math.prod(decays)
    for k, (value, decay) in enumerate(zip(values[1:], decays, strict=True)):
        total += (1 - decay) * value.double() * math.prod(decays[k + 1 :])
    return total


@pytest.mark.parametrize("steps", [1, 2, 40, 300])
def test_closed_form_while_it_warms_up(steps: int) -> None:
    average, _, values = walk(steps, averaging(decay=0.97))
    decays = [min(0.97, (1 + n) / (10 + n)) for n in range(steps)]
    assert decays[0] == 0.1 and (steps < 300 or decays[-1] == 0.97)
    torch.testing.assert_close(
        average.averages["layer.weight"].double(), closed_form(values, decays), rtol=0, atol=1e-5
    )
    assert int(average.updates) == steps


@pytest.mark.parametrize("steps", [1, 60])
def test_closed_form_without_warm_up(steps: int) -> None:
    average, _, values = walk(steps, averaging(decay=0.9, warmup=False))
    found = average.averages["layer.weight"].double()
    torch.testing.assert_close(found, closed_form(values, [0.9] * steps), rtol=0, atol=1e-5)


def test_on_the_cpu_or_beside_the_weights_it_has_the_same_bits() -> None:
    here, there = walk(20, averaging())[0], walk(20, averaging(device="cpu"))[0]
    assert equal(here.state(), there.state())


def test_it_is_float32_whatever_the_weights_are() -> None:
    """bf16 has 8 bits of mantissa: with a decay of 0.999 an average in bf16 would stand still."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    average = Ema({"a.b": weight}, averaging(decay=0.999, warmup=False))
    with torch.no_grad():
        weight.fill_(2)
    average.update(FINITE)
    assert average.averages["a.b"].dtype == torch.float32
    assert average.averages["a.b"].tolist() == pytest.approx([1.001] * 3, abs=1e-6)
    before = weight.detach().clone()
    with average.swapped():
        assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, before)


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_step_that_was_left_out_is_not_averaged(norm: float) -> None:
    average, weight, _ = walk(4, averaging())
    before = average.state()
    with torch.no_grad():
        weight.add_(1)
    average.update(torch.tensor(norm))
    assert equal(average.state(), before)


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_and_back_bit_for_bit(fails: bool) -> None:
    average, weight, values = walk(9, averaging())
    state = average.state()
    try:
        with average.swapped():
            assert torch.equal(weight, state["layer.weight"])
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert torch.equal(weight, values[-1]) and equal(average.state(), state)


def test_large_networks_are_averaged_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_average()
    monkeypatch.setattr(Ema, "CHUNK", 1)
    assert equal(small_average(), whole)


def small_average() -> dict[str, Tensor] | None:
    toy = Toy()
    average = Ema(dict(toy.named_parameters()), averaging())
    with torch.no_grad():
        for weight in toy.parameters():
            weight.add_(1)
    average.update(FINITE)
    return average.state()


# ---- in the loop


def manual(state: trainer.TrainState, task: trainer.TrainContext, steps: int, decay: float) -> dict[str, Tensor]:
    """The average of the weights after each of some steps, added up by hand."""
    values = [trained(state)]
    for _ in range(steps):
        advance(state, task, 1)
        values.append(trained(state))
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(steps)]
    return {name: closed_form([value[name] for value in values], decays) for name in values[0]}


@pytest.mark.parametrize("kind", ["adamw", "schedule-free"])
def test_the_loop_steps_it_and_validates_it(kind: str, tmp_path: Path) -> None:
    state, task = small_run(tmp_path, Toy(), ema={"decay": 0.95}, optim={"kind": kind}, accumulate=2)
    expected = manual(state, task, 5, 0.95)
    own = trained(state)
    with state.evaluation_weights():
        inside = trained(state)
    for name, value in expected.items():
        torch.testing.assert_close(inside[name].double(), value, rtol=0, atol=1e-6)
        assert not torch.equal(inside[name], own[name])
    assert equal(trained(state), own)


def test_what_is_looked_at_is_the_average(tmp_path: Path) -> None:
    state, task = small_run(tmp_path, Toy(), ema={"decay": 0.95}, learning_rate=0.1)
    advance(state, task, 4)
    own = task.validator.measure(state.denoiser, state.accelerator.device)["held-out"].mean
    kept = state.ema.state()
    assert kept is not None
    averaged = Toy()
    averaged.load_state_dict({name: value for name, value in kept.items() if name != Ema.COUNT})
    expected = task.validator.measure(Denoiser(averaged), state.accelerator.device)["held-out"].mean
    report = Said()
    trainer.validate(state, task, report, on_grid=True)
    assert report.lines[-1]["validation"]["held-out"] == pytest.approx(expected, rel=1e-6)
    assert abs(expected - own) > 1e-3


class Said(MetricsLogger):
    """Remembers what was reported."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def write(self, lines: Any) -> None:
        self.lines += lines


def test_the_scaler_leaves_a_step_out_of_the_average(tmp_path: Path) -> None:
    """Through accelerate's own scaler and a fused optimiser, which does not say that it left a step out."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=3e38, growth_interval=1000)  # type: ignore[assignment]
    before = accelerator.state._mixed_precision
    accelerator.state._mixed_precision = "fp16"
    try:
        state, task = small_run(tmp_path, Toy(), accelerator=accelerator, ema={"decay": 0.9})
        with torch.no_grad():
            state.plain_unet().words.weight.mul_(100)
        state.ema.load_state(trained(state) | {Ema.COUNT: torch.tensor(7)}, tmp_path)
        kept = state.ema.state()
        window = advance(state, task, 1)
        assert not math.isfinite(float(window.norms[0]))
        assert equal(state.ema.state(), kept)
        accelerator.scaler.update(1.0)
        window = advance(state, task, 1)
        assert math.isfinite(float(window.norms[0])) and not equal(state.ema.state(), kept)
    finally:
        accelerator.state._mixed_precision = before


def test_off_by_default(tmp_path: Path) -> None:
    state, task = small_run(tmp_path, Toy())
    assert state.ema.state() is None
    advance(state, task, 1)
    own = trained(state)
    with state.evaluation_weights():
        assert equal(trained(state), own)


def test_an_average_of_other_weights_is_refused() -> None:
    average, _, _ = walk(1, averaging())
    good = average.state()
    for bad in ({}, good | {"other.weight": torch.zeros(1)}, good | {"layer.weight": torch.zeros(2)}):
        with pytest.raises(InputError, match=r"here: \d averages do not fit this adapter, e.g. "):
            average.load_state(bad, "here")
    with pytest.raises(InputError, match="here: the checkpoint holds no average of the weights"):
        average.load_state(None, "here")
    with pytest.raises(InputError, match="here: the checkpoint holds an average of the weights"):
        Ema({}, EmaOptions()).load_state(good, "here")


def test_where_it_lies_does_not_make_another_run() -> None:
    def of(**given: Any) -> str:
        return run_identity(config_of(**given), "data", "model")

    assert of(ema={"decay": 0.9}) == of(ema={"decay": 0.9, "device": "cpu"})
    assert len({of(), of(ema={"decay": 0.9}), of(ema={"decay": 0.8}), of(ema={"decay": 0.9, "warmup": False})}) == 4
    assert of() == of(memory={"gradient_checkpointing": True})
    assert len({of(), of(memory={"tf32": False}), of(memory={"attention": "xformers"}), of(compile=True)}) == 4
