"""What a step does with gradients, whatever the processes, the accumulation, the adapter and their size."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.dataset import Batch
from tests.small_runs import Toy, advance, seeded_unet, small_run, trained
from train import optim
from train.config import OptimOptions
from train.losses import DenoisingLoss
from train.model import Denoiser
from train.trainer import TrainState


def rates(folder: Path, schedule: str, accumulate: int, processes: int) -> list[float]:
    """The learning rate that the optimiser really had at each of twelve steps."""
    optimiser = {"warmup": 4, "schedule": schedule}
    changes: dict[str, Any] = {"optim": optimiser, "max_steps": 12, "batch_size": 1, "learning_rate": 1e-3}
    state, task = small_run(folder, Toy(), accumulate=accumulate, processes=processes, **changes)
    found: list[float] = []
    state.optimizer.optimizer.register_step_pre_hook(lambda o, *_: found.append(o.param_groups[0]["lr"]))
    assert advance(state, task, 12).rates == found
    return found


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_follows_the_optimiser_step_alone(schedule: str, tmp_path: Path) -> None:
    """Schedulers of others run as many times faster as there are processes, or slower by the accumulation."""
    config = OptimOptions.model_validate({"warmup": 4, "schedule": schedule})
    expected = [optim.learning_rate(step, config, 1e-3, 12) for step in range(12)]
    assert expected[3] == 1e-3 and (schedule == "constant") == (expected[-1] == 1e-3)
    for processes in (1, 2, 4):
        for accumulate in (1, 4):
            assert rates(tmp_path, schedule, accumulate, processes) == expected


# ---- accumulation


class Constant(nn.Module):
    """Its answer is one number, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def set_attn_processor(self, processor: Any) -> None:
        """It has no attention."""

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.value.expand(x.shape),)


def linear(slope: float) -> Any:
    """In place of the objective: `slope` times the mean of the answer, whose gradient is the slope for each sample."""

    def losses(self: DenoisingLoss, denoiser: Denoiser, batch: Batch, teacher: Any = None) -> Tensor:
        return slope * denoiser(batch.latents, batch.timestep_uniforms, batch.text_states).flatten(1).mean(1)

    return losses


def clipped_norms(state: TrainState) -> list[float]:
    """A list that gets the global norm of the gradients at each step of the optimiser, as it is given them."""
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [w.grad.double().flatten() for w in optim.optimized_weights(optimizer) if w.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))

    state.optimizer.optimizer.register_step_pre_hook(note)
    return norms


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (2, 4), (4, 2), (3, 3), (1, 8)])
def test_every_update_has_weight_one(
    batch: int, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of 1 average to 1 at every step. Seven images: windows end in the middle of an epoch, and none is
    cut short at its end, which would weigh it less.
    """
    monkeypatch.setattr(DenoisingLoss, "__call__", linear(1.0))
    changes: dict[str, Any] = {"batch_size": batch, "accumulate": accumulate, "max_steps": 9, "optim": {"clip_norm": 9}}
    state, task = small_run(tmp_path, Constant(), **changes)
    norms = clipped_norms(state)
    window = advance(state, task, 9)
    assert norms == pytest.approx([1.0] * 9, abs=1e-6)
    assert {len(ids) for ids in window.sample_ids} == {batch * accumulate}


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_accumulated_gradients_are_those_of_one_batch(adapter: str, tmp_path: Path) -> None:
    """4 x 2 and 2 x 4 against 1 x 8 images, to 1e-6 of the largest gradient."""
    found = [first_gradients(tmp_path, adapter, 8 // accumulate, accumulate) for accumulate in (1, 2, 4)]
    largest = max(float(gradient.abs().max()) for gradient in found[0])
    assert largest > 0
    for other in found[1:]:
        for one, several in zip(found[0], other, strict=True):
            torch.testing.assert_close(several, one, rtol=0, atol=1e-6 * max(1.0, largest))


def first_gradients(folder: Path, adapter: str, batch: int, accumulate: int) -> list[Tensor]:
    changes: dict[str, Any] = {"batch_size": batch, "accumulate": accumulate, "optim": {"clip_norm": 1e9}}
    state, task = small_run(folder, seeded_unet(), adapter={"kind": adapter}, shapes=[(4, 4, 4)], **changes)
    found: list[Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        found.extend(w.grad.clone() for w in optim.optimized_weights(optimizer) if w.grad is not None)

    state.optimizer.optimizer.register_step_pre_hook(note)
    advance(state, task, 1)
    return found


# ---- clipping


def steep(self: DenoisingLoss, denoiser: Denoiser, batch: Batch, teacher: Any = None) -> Tensor:
    """The objective with gradients a million times too large."""
    return 1e6 * ordinary(self, denoiser, batch, teacher)


ordinary = DenoisingLoss.__call__


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_huge_gradients_are_clipped(adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step, not only at the first; the directions stay: all are scaled by one factor."""
    monkeypatch.setattr(DenoisingLoss, "__call__", steep)
    changes: dict[str, Any] = {"adapter": {"kind": adapter}, "shapes": [(4, 4, 4)], "learning_rate": 1e-4}
    state, task = small_run(tmp_path, seeded_unet(), optim={"clip_norm": 0.5}, **changes)
    norms = clipped_norms(state)
    window = advance(state, task, 3)
    assert all(float(norm) > 1e3 for norm in window.norms), "the gradients were huge"
    assert norms == pytest.approx([0.5] * 3, rel=1e-4)


@pytest.mark.parametrize("kind", sorted(optim.BUILDERS))
def test_huge_scaled_gradients_are_clipped(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in fp16 on a GPU, with torch's gradient scaler for the CPU: unscaled first, then clipped; each optimiser."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1000)  # type: ignore[assignment]
    before = accelerator.state._mixed_precision
    accelerator.state._mixed_precision = "fp16"
    monkeypatch.setattr(DenoisingLoss, "__call__", steep)
    changes: dict[str, Any] = {"optim": {"clip_norm": 0.5, "kind": kind}, "learning_rate": 1.0}
    try:
        state, task = small_run(tmp_path, Toy(), accelerator=accelerator, **changes)
        accelerator.native_amp = True  # only now: the toy itself stays in float32
        norms = clipped_norms(state)
        window = advance(state, task, 2)
    finally:
        accelerator.state._mixed_precision = before
    assert all(1e3 < float(norm) < math.inf for norm in window.norms)
    assert norms == pytest.approx([0.5] * 2, rel=1e-3)
    assert all(bool(weight.isfinite().all()) for weight in trained(state).values())


@pytest.mark.parametrize("scale", [0.5, 0.999, 1.5, math.nan])
def test_only_what_is_too_large_is_scaled(scale: float) -> None:
    """The norm is told as it was; gradients below the limit keep their bits; NaN spreads, as in torch's clipping."""
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    for weight in weights[:2]:
        weight.grad = torch.full_like(weight, 7**-0.5 * scale)
    before = [weight.grad.clone() for weight in weights if weight.grad is not None]
    norm = optim.clip_gradients(Accelerator(cpu=True), torch.optim.SGD(weights, lr=1.0), 1.0)
    assert float(norm) == pytest.approx(scale, rel=1e-6, nan_ok=True)
    after = [weight.grad for weight in weights if weight.grad is not None]
    if scale < 1:
        assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))
    else:
        assert float(torch.cat([one.flatten() for one in after]).norm()) == pytest.approx(
            1.0 if scale > 1 else math.nan, rel=1e-5, nan_ok=True
        )
