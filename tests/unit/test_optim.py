"""Learning rates; every optimiser is its paper's formula; resumed, each ends in the same bits."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch import Tensor, nn

from data.cli import parse
from data.errors import InputError
from tests.small_runs import Toy, advance, config_of, equal, seeded_unet, small_run, trained
from train import checkpoint, optim, trainer
from train.config import ALIASES, CONFIGS, Config, OptimOptions
from train.optim import learning_rate, set_learning_rate
from train.plan import optimizer_line
from train.profiler import optimizer_bytes
from train.trainer import TrainContext, TrainState

PEAK = 3e-4


def adamw_settings(**given: object) -> OptimOptions:
    return OptimOptions.model_validate(given)


def rates(config: OptimOptions, max_steps: int) -> list[float]:
    return [learning_rate(step, config, PEAK, max_steps) for step in range(max_steps + 1)]


def test_constant_after_a_warm_up() -> None:
    found = rates(adamw_settings(warmup=4), 8)
    assert found == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, *[PEAK] * 6], rel=1e-15)


def test_cosine_falls_to_zero_at_the_last_step() -> None:
    found = rates(adamw_settings(schedule="cosine", warmup=2), 10)
    assert found[:2] == pytest.approx([PEAK / 2, PEAK])
    assert found[2:] == pytest.approx([PEAK * math.cos(math.pi * k / 16) ** 2 for k in range(9)], abs=1e-18)
    assert found[6] == pytest.approx(PEAK / 2)
    assert found[10] == 0.0


def test_linear_falls_to_zero_at_the_last_step() -> None:
    found = rates(adamw_settings(schedule="linear", warmup=2), 10)
    assert found[2:] == pytest.approx([PEAK * (8 - k) / 8 for k in range(9)], abs=1e-18)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_it_never_rises_above_the_peak_nor_falls_below_zero(schedule: str) -> None:
    config = adamw_settings(schedule=schedule, warmup=7)
    found = [learning_rate(step, config, PEAK, 5) for step in range(40)]  # also past max_steps, and a warm-up too long
    assert all(0.0 <= rate <= PEAK for rate in found)


def adamw_by_hand(weight: Tensor, gradients: list[Tensor], rate: float, config: OptimOptions) -> Tensor:
    """AdamW in float64. Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2."""
    weight = weight.double()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient.double() ** 2
        unbiased_mean = mean / (1 - config.beta1**step)
        unbiased_square = square / (1 - config.beta2**step)
        weight = weight - rate * config.weight_decay * weight
        weight = weight - rate * unbiased_mean / (unbiased_square.sqrt() + config.epsilon)
    return weight


def train_adamw(
    weight: nn.Parameter, gradients: list[Tensor], rate: float, config: OptimOptions
) -> torch.optim.Optimizer:
    optimizer = optim.BUILDERS[config.kind]([weight], config)
    set_learning_rate(optimizer, rate)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return optimizer


def random_tensors(count: int, *shape: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=draw) for _ in range(count)]


def test_adamw_is_its_formula() -> None:
    config = adamw_settings(beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.3)
    start, *gradients = random_tensors(6, 5, 3)
    weight = nn.Parameter(start.clone())
    train_adamw(weight, gradients, 0.05, config)
    want = adamw_by_hand(start, gradients, 0.05, config)
    assert (weight.double() - want).abs().max() < 1e-6
    assert (want - start).abs().max() > 0.1


@pytest.mark.parametrize(("shape", "dtype"), [((64, 64), torch.uint8), ((63, 65), torch.float32)])
def test_only_large_tensors_are_kept_in_8_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """4096 numbers are the fewest that bitsandbytes quantises; 63 x 65 are one fewer."""
    config = adamw_settings(kind="adamw-8bit", weight_decay=0.1)
    start, *gradients = random_tensors(4, *shape)
    weight = nn.Parameter(start.clone())
    slots = train_adamw(weight, gradients, 0.01, config).state[weight]
    assert slots["state1"].dtype == slots["state2"].dtype == dtype
    assert slots["state1"].shape == shape


def test_8_bit_adamw_follows_the_formula() -> None:
    config = adamw_settings(kind="adamw-8bit", weight_decay=0.1)
    start, *gradients = random_tensors(4, 64, 64)
    weight = nn.Parameter(start.clone())
    train_adamw(weight, gradients, 0.01, config)
    moved, wanted = weight.detach() - start, adamw_by_hand(start, gradients, 0.01, config) - start
    assert torch.corrcoef(torch.stack([moved.flatten(), wanted.float().flatten()]))[0, 1] > 0.99
    assert (moved - wanted).abs().mean() < 0.05 * wanted.abs().mean()


@pytest.mark.parametrize("bad", [{"warmup": -1}, {"beta2": 1.0}, {"epsilon": 0.0}, {"clip_norm": 0.0}, {"kind": "sgd"}])
def test_values_that_cannot_be_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        OptimOptions.model_validate(bad)


def test_8_bit_state_lies_in_memory_as_its_weight_does() -> None:
    """bitsandbytes makes a weight contiguous at its first step; a state made before that would keep the old order."""
    weight = nn.Parameter(torch.ones(32, 16, 3, 3).to(memory_format=torch.channels_last))
    slots = train_adamw(weight, random_tensors(1, 32, 16, 3, 3), 0.01, adamw_settings(kind="adamw-8bit")).state[weight]
    assert weight.is_contiguous()
    assert slots["state1"].stride() == slots["state2"].stride() == weight.stride()


SHAPES = [(6, 5), (8,), (4, 3, 3, 3)]


def settings(kind: str, **given: object) -> OptimOptions:
    return OptimOptions.model_validate({"kind": kind, "weight_decay": 0.1, **given})


def draws(count: int, *shape: int, seed: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def moved(start: Tensor, gradients: list[Tensor], rates: list[float], config: OptimOptions) -> tuple[nn.Parameter, Any]:
    weight = nn.Parameter(start.clone())
    optimizer = optim.build_optimizer([weight], config)
    for gradient, rate in zip(gradients, rates, strict=True):
        optim.set_learning_rate(optimizer, rate)
        weight.grad = gradient.clone()
        optimizer.step()
    return weight, optimizer


# ---- Adafactor


def adafactor_by_hand(start: Tensor, gradients: list[Tensor], rates: list[float], decay: float) -> Tensor:
    """Shazeer & Stern 2018, algorithms 4 (matrices) and 5 (vectors), rate given, d = 1, beta2_t = 1 - t^-0.8.

    A convolution is a stack of small matrices.
    """
    weight = start.double()
    second: Any = 0.0
    rows: Any = 0.0
    columns: Any = 0.0
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g, beta2 = gradient.double(), 1 - step**-0.8
        square = g**2 + 1e-30
        if g.dim() > 1:
            rows = beta2 * rows + (1 - beta2) * square.sum(-1, keepdim=True)
            columns = beta2 * columns + (1 - beta2) * square.sum(-2, keepdim=True)
            second = rows * columns / rows.sum(-2, keepdim=True)
        else:
            second = beta2 * second + (1 - beta2) * square
        update = g / second.sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()))
        weight = weight - rate * decay * weight - rate * update
    return weight


@pytest.mark.parametrize("shape", SHAPES)
def test_adafactor_is_the_papers(shape: tuple[int, ...]) -> None:
    start, *gradients = draws(6, *shape)
    rates = [0.1, 0.05, 0.2, 0.1, 0.01]
    weight, _ = moved(start, gradients, rates, settings("adafactor"))
    expected = adafactor_by_hand(start, gradients, rates, 0.1)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=2e-6)
    assert (expected - start).abs().max() > 0.1


def test_adafactors_rate_is_ours_where_a_weight_is_zero() -> None:
    """torch's own would move LoRA's B, which begins at zero, by a thousandth of the rate."""
    weight, _ = moved(torch.zeros(6, 5), draws(1, 6, 5), [0.1], settings("adafactor"))
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1, rel=0.05)


# ---- Prodigy


def prodigy_by_hand(
    start: Tensor, gradients: list[Tensor], rates: list[float], config: OptimOptions
) -> tuple[Tensor, float]:
    """Mishchenko & Defazio 2023, algorithm 4, with Adam's bias correction in the step. Also returns the step size d."""
    weight, first, d = start.double(), start.double(), 1e-6
    mean, square, s = torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros_like(weight)
    r, beta3 = 0.0, math.sqrt(config.beta2)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = gradient.double()
        corrected = rate * math.sqrt(1 - config.beta2**step) / (1 - config.beta1**step)
        mean = config.beta1 * mean + (1 - config.beta1) * d * g
        square = config.beta2 * square + (1 - config.beta2) * (d * g) ** 2
        r = beta3 * r + d * d * corrected * float((g * (first - weight)).sum())
        s = beta3 * s + d * d * g  # without the rate: the safe warm-up
        now, d = d, max(d, r / float(s.abs().sum()))
        weight = weight - now * corrected * config.weight_decay * weight
        weight = weight - now * corrected * mean / (square.sqrt() + d * config.epsilon)
    return weight, d


def test_prodigy_is_the_papers() -> None:
    """Gradients that point one way, so that the step size grows; with a warm-up. It measures how far the weights have
    come by subtraction: those of 1 would hide a way of 1e-6 behind float32's rounding.
    """
    start, drift = draws(2, 6, 5)
    start *= 1e-6
    gradients = [drift + 0.1 * noise for noise in draws(40, 6, 5, seed=8)]
    rates = [min(1.0, (step + 1) / 5) for step in range(40)]
    config = settings("prodigy")
    weight, optimizer = moved(start, gradients, rates, config)
    expected, d = prodigy_by_hand(start, gradients, rates, config)
    assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-3) and d > 1e-5
    travelled = (expected - start).abs().max()
    assert (weight.detach().double() - expected).abs().max() < 2e-3 * travelled


def test_prodigy_finds_its_step_size() -> None:
    """A quadratic with its minimum 3 away, whatever the scale of its gradients."""
    for scale in (1e-3, 1.0, 1e3):
        weight = nn.Parameter(torch.zeros(20))
        optimizer = optim.build_optimizer([weight], settings("prodigy", weight_decay=0.0))
        for _ in range(300):
            optim.set_learning_rate(optimizer, 1.0)
            weight.grad = scale * (weight.detach() - 3)
            optimizer.step()
        assert float((weight.detach() - 3).abs().max()) < 0.3, scale


def test_prodigy_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    optim.build_optimizer([nn.Parameter(torch.zeros(1))], settings("prodigy"))
    assert capsys.readouterr().out == ""


# ---- schedule-free


def schedule_free_by_hand(
    start: Tensor, gradients: list[Tensor], rates: list[float], config: OptimOptions
) -> tuple[Tensor, Tensor]:
    """Defazio et al. 2024, algorithm 1: (x, the average; y, where gradients are taken)."""
    x = z = y = start.double()
    square, total = torch.zeros_like(x), 0.0
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = gradient.double()
        square = config.beta2 * square + (1 - config.beta2) * g**2
        z = z - rate * (g / ((square / (1 - config.beta2**step)).sqrt() + config.epsilon) + config.weight_decay * y)
        share = max(rates[:step]) ** 2
        total += share
        x = x + share / total * (z - x)
        y = (1 - config.beta1) * z + config.beta1 * x
    return x, y


@pytest.mark.parametrize("warmup", [0, 4])
def test_schedule_free_is_the_papers(warmup: int) -> None:
    config = settings("schedule-free", warmup=warmup)
    start, *gradients = draws(11, 6, 5)
    rates = [learning_rate(step, config, 0.05, 10) for step in range(10)]
    weight, optimizer = moved(start, gradients, rates, config)
    x, y = schedule_free_by_hand(start, gradients, rates, config)
    torch.testing.assert_close(weight.detach().double(), y, rtol=0, atol=1e-6)
    kept = weight.detach().clone()
    with optim.averaged_weights(optimizer):
        torch.testing.assert_close(weight.detach().double(), x, rtol=0, atol=1e-6)
    assert torch.equal(weight.detach(), kept) and (x - y).abs().max() > 1e-3


def test_our_warm_up_is_schedule_frees_own() -> None:
    from schedulefree import AdamWScheduleFree

    config = settings("schedule-free", warmup=4)
    start, *gradients = draws(9, 6, 5)
    ours, _ = moved(start, gradients, [learning_rate(step, config, 0.05, 8) for step in range(8)], config)
    theirs = nn.Parameter(start.clone())
    optimizer = AdamWScheduleFree([theirs], lr=0.05, weight_decay=0.1, warmup_steps=4)
    optimizer.train()
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-6, atol=1e-7)


def test_the_average_is_what_is_looked_at_and_training_goes_on_as_if_it_had_not_been(tmp_path: Any) -> None:
    changes: dict[str, Any] = {"optim": {"kind": "schedule-free"}, "max_steps": 6}
    alone, task = small_run(tmp_path, Toy(), **changes)
    advance(alone, task, 6)
    state, task = small_run(tmp_path, Toy(), **changes)
    for _ in range(6):
        own = trained(state)
        with state.evaluation_weights():
            inside = trained(state)
        assert equal(trained(state), own)
        assert state.step < 2 or all(not torch.equal(inside[name], own[name]) for name in own)
        advance(state, task, 1)
    assert equal(trained(state), trained(alone))
    assert equal(state.optimizer.state_dict(), alone.optimizer.state_dict())


def test_an_error_while_looking_leaves_the_training_weights(tmp_path: Any) -> None:
    state, task = small_run(tmp_path, Toy(), optim={"kind": "schedule-free"}, ema={"decay": 0.9})
    advance(state, task, 3)
    own, average = trained(state), state.ema.state()
    with pytest.raises(RuntimeError), state.evaluation_weights():
        raise RuntimeError
    assert equal(trained(state), own) and equal(state.ema.state(), average)
    advance(state, task, 1)


# ---- what is refused, and what is said


@pytest.mark.parametrize(("kind", "library"), sorted(optim.LIBRARIES.items()))
def test_a_missing_library_is_one_line(kind: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError) as caught:
        optim.build_optimizer([nn.Parameter(torch.zeros(1))], settings(kind))
    expected = f"{kind} needs the library {library}, which is not installed. Get it with: pip install {library}"
    assert str(caught.value) == f"--optim.kind: {expected}"


def flags(*argv: str) -> Config:
    return parse(Config, list(argv), prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["schedule-free"], "--optim.schedule: schedule-free replaces a learning-rate schedule"),
        (["prodigy"], "--learning-rate: 0.0015 with prodigy, which finds the step size itself"),
        (["prodigy", "--lr", "50"], "--learning-rate: 50 with prodigy, which finds the step size itself"),
        (["adafactor", "--optim.beta1", "0.5"], "--optim.beta1: adafactor has no such setting"),
        (["adafactor", "--optim.epsilon", "1e-6"], "--optim.epsilon: adafactor has no such setting"),
    ],
)
def test_what_an_optimiser_would_ignore_is_refused(argv: list[str], expected: str) -> None:
    """Over the embedded preset: 1e-3, cosine."""
    with pytest.raises(InputError) as caught:
        flags("--optim.kind", *argv)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


def test_the_plan_says_which_weights_come_out() -> None:
    line = optimizer_line(config_of(ema={"decay": 0.999}, optim={"warmup": 5}))
    expected = (
        "adamw, learning rate 0.01, constant after 5 steps of warm-up; validated and exported: the moving average"
    )
    assert line == f"{expected} (EMA 0.999) of the weights"
    assert "exported: its own average of the weights" in optimizer_line(config_of(optim={"kind": "schedule-free"}))
    line = optimizer_line(config_of(optim={"kind": "prodigy"}, learning_rate=1))
    assert line == "prodigy, learning rate 1 (a factor on the step size it finds), constant"


@pytest.mark.parametrize("kind", sorted(optim.BUILDERS))
def test_the_planned_bytes_are_those_of_the_state(kind: str) -> None:
    shapes = [(64, 32, 3, 3), (64, 64), (64,), (300, 200), (40, 40, 1, 1)]
    weights = [nn.Parameter(draws(1, *shape)[0]) for shape in shapes]
    optimizer = optim.build_optimizer(weights, settings(kind))
    optim.set_learning_rate(optimizer, 1e-3)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    found = sum(t.numel() * t.element_size() for slots in optimizer.state.values() for t in tensors(slots))
    assert optimizer_bytes(kind, shapes) == pytest.approx(found, abs=64)


def tensors(slots: dict[str, Any]) -> list[Tensor]:
    return [value for value in slots.values() if isinstance(value, Tensor)]


KINDS = sorted(optim.BUILDERS)
EMA = {"decay": 0.9}


def resumed_settings(kind: str, **more: Any) -> dict[str, Any]:
    rate = 1.0 if kind == "prodigy" else 1e-3
    return {"learning_rate": rate, "optim": {"kind": kind, "warmup": 3, "weight_decay": 0.1}, "ema": EMA, **more}


def reopened(folder: Path, network: Any, **changes: Any) -> tuple[TrainState, TrainContext]:
    """The run as another process would find it."""
    state, task = small_run(folder, network, **changes)
    kept, skipped = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None and not skipped
    state.load(kept, task.checkpoints)
    return state, task


def everything(state: TrainState) -> dict[str, Any]:
    return {"weights": trained(state), "optimizer": state.optimizer.state_dict(), "ema": state.ema.state()}


@pytest.mark.parametrize("kind", KINDS)
def test_twice_resumed_toy(kind: str, tmp_path: Path) -> None:
    """With a convolution in channels-last, whose moments a file holds in another order."""
    whole, task = small_run(tmp_path, Toy(), **resumed_settings(kind), accumulate=2)
    expected = advance(whole, task, 6)
    parts, task = small_run(tmp_path, Toy(), **resumed_settings(kind), accumulate=2)
    losses = []
    for session, steps in enumerate((2, 1, 3)):
        if session:
            parts, task = reopened(tmp_path, Toy(), **resumed_settings(kind), accumulate=2)
        losses += advance(parts, task, steps).losses
        parts.save(task.checkpoints, task.identity)
    assert torch.equal(torch.stack(losses), torch.stack(expected.losses))
    assert equal(everything(parts), everything(whole))
    start = dict(Toy().named_parameters())
    assert not any(torch.equal(start[name], weight) for name, weight in trained(whole).items())


@pytest.mark.parametrize(
    ("adapter", "kind"), [*(("lora", kind) for kind in KINDS), ("full", "adamw-8bit"), ("full", "schedule-free")]
)
def test_resumed_unet(adapter: str, kind: str, tmp_path: Path) -> None:
    """With validation before every step, for which other weights are put into the network: it leaves no trace."""
    changes = resumed_settings(kind, adapter={"kind": adapter}, batch_size=1, shapes=[(4, 4, 4)])
    whole, task = small_run(tmp_path / "whole", seeded_unet(), **changes)
    expected = advance(whole, task, 4)
    parts, task = small_run(tmp_path, seeded_unet(), **changes)
    window = trainer.MetricBuffer()
    for session in range(2):
        if session:
            parts, task = reopened(tmp_path, seeded_unet(), **changes)
        batches = task.batches(parts.step, 4)
        for _ in range(2):
            with parts.evaluation_weights():
                task.validator.measure(parts.denoiser, parts.accelerator.device)
            trainer.train_step(parts, task, batches, window)
        parts.save(task.checkpoints, task.identity)
    assert torch.equal(torch.stack(window.losses), torch.stack(expected.losses))
    assert equal(everything(parts), everything(whole))


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_resumed_in_half_precision(adapter: str, tmp_path: Path, bf16_on_cpu: Accelerator) -> None:
    changes = resumed_settings("adamw", adapter={"kind": adapter}, shapes=[(4, 4, 4)], accelerator=bf16_on_cpu)
    whole, task = small_run(tmp_path / "whole", seeded_unet(), **changes)
    expected = advance(whole, task, 4)
    parts, task = small_run(tmp_path, seeded_unet(), **changes)
    losses = advance(parts, task, 2).losses
    parts.save(task.checkpoints, task.identity)
    parts, task = reopened(tmp_path, seeded_unet(), **changes)
    losses += advance(parts, task, 2).losses
    assert torch.equal(torch.stack(losses), torch.stack(expected.losses))
    assert equal(everything(parts), everything(whole))


@pytest.mark.parametrize("forget", ["optimizer", "ema"])
def test_it_would_be_seen(forget: str, tmp_path: Path) -> None:
    """The tests above can fail: without the optimiser's state, or the average's, the end is another."""
    whole, task = small_run(tmp_path, Toy(), **resumed_settings("schedule-free"))
    advance(whole, task, 2)
    whole.save(task.checkpoints, task.identity)
    advance(whole, task, 2)
    parts, task = small_run(tmp_path, Toy(), **resumed_settings("schedule-free"))
    kept, _ = checkpoint.newest_checkpoint(task.checkpoints, task.identity)
    assert kept is not None
    before = everything(parts)
    parts.load(kept, task.checkpoints)
    if forget == "optimizer":
        parts.optimizer.load_state_dict(before["optimizer"])
    else:
        parts.ema.load_state(before["ema"], tmp_path)
    advance(parts, task, 2)
    assert not equal(everything(parts)["weights" if forget == "optimizer" else "ema"], everything(whole)["weights"])
    assert not equal(everything(parts), everything(whole))


def test_a_checkpoint_of_before_there_were_averages(tmp_path: Path) -> None:
    """It has no ema.safetensors: it loads into a run without one, and is refused by name by a run with one."""
    plain, task = small_run(tmp_path, Toy())
    advance(plain, task, 1)
    plain.save(task.checkpoints, task.identity)
    (folder,) = checkpoint.list_checkpoints(task.checkpoints)
    assert not (folder / "ema.safetensors").exists()
    again, _ = reopened(tmp_path, Toy())
    assert equal(everything(again), everything(plain))
    averaged, _ = small_run(tmp_path, Toy(), ema=EMA)
    with pytest.raises(InputError, match=r"checkpoints: the checkpoint holds no average of the weights"):
        averaged.load(checkpoint.load_checkpoint(folder, task.identity), task.checkpoints)


def test_the_average_is_sealed_like_the_rest(tmp_path: Path) -> None:
    state, task = small_run(tmp_path, Toy(), ema=EMA)
    advance(state, task, 1)
    state.save(task.checkpoints, task.identity)
    (folder,) = checkpoint.list_checkpoints(task.checkpoints)
    content = bytearray((folder / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "ema.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged checkpoint \(ema.safetensors changed since it was written\)"):
        checkpoint.load_checkpoint(folder, task.identity)
    (folder / "ema.safetensors").unlink()
    with pytest.raises(InputError, match=r"torn checkpoint \(No such file or directory\)"):
        checkpoint.load_checkpoint(folder, task.identity)
