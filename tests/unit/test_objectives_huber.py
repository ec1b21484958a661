"""Pseudo-Huber losses against scipy and their limits; the width's curves in plain numbers; criteria put together."""

import math

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from data import rng
from data.errors import InputError
from train.config import Epsilon, Velocity
from train.ddpm import losses
from train.ddpm import schedule as schedules
from train.ddpm.losses import Criterion, Plain, Scheduled, Weighted
from train.losses import build_criterion

TABLE = schedules.scaled_linear(1000, 0.00085, 0.012)
RESCALED = schedules.zero_terminal_snr(TABLE)
A, B = (rng.normal((6, 4, 3), "huber", name).double() for name in "ab")
C = torch.tensor([1e-3, 0.01, 0.1, 0.5, 1.0, 100.0], dtype=torch.float64)


def test_it_is_twice_scipys() -> None:
    """scipy: c^2 (sqrt(1 + (e / c)^2) - 1)."""
    theirs = 2 * special.pseudo_huber(C.numpy()[:, None, None], (A - B).numpy()).mean(axis=(1, 2))
    assert losses.pseudo_huber(A, B, C).tolist() == pytest.approx(theirs.tolist(), rel=1e-9)
    assert losses.pseudo_smooth_l1(A, B, C).tolist() == pytest.approx((theirs / C.numpy()).tolist(), rel=1e-9)


def test_the_limits() -> None:
    """A large c: the mean square, to (e / 2c)^2; a small one: 2 c |e|, to c^2; and 2 |e| for smooth L1."""
    large, small = torch.full((6,), 1e6, dtype=torch.float64), torch.full((6,), 1e-9, dtype=torch.float64)
    torch.testing.assert_close(losses.pseudo_huber(A, B, large), losses.mse(A, B), rtol=1e-10, atol=0)
    torch.testing.assert_close(losses.pseudo_huber(A, B, small), 2e-9 * losses.l1(A, B), rtol=1e-7, atol=0)
    torch.testing.assert_close(losses.pseudo_smooth_l1(A, B, small), 2 * losses.l1(A, B), rtol=1e-7, atol=0)
    torch.testing.assert_close(losses.pseudo_smooth_l1(A, B, large), losses.mse(A, B) / 1e6, rtol=1e-10, atol=0)


def test_small_errors_keep_their_digits_in_single_precision() -> None:
    """sqrt(e^2 + c^2) - c would be 0 for e = 1e-4, c = 1 in float32."""
    error = torch.full((1, 8), 1e-4)
    found = losses.pseudo_huber(error, torch.zeros(1, 8), torch.ones(1))
    assert found.item() == pytest.approx(1e-8, rel=1e-5)


def test_the_gradient_is_bounded() -> None:
    """d/de = 2 c e / sqrt(e^2 + c^2), at most 2 c however far off a sample is; 0 at no error."""
    prediction = torch.tensor([[0.0, 0.3, -1.0, 1e6]], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([0.1], dtype=torch.float64)
    (found,) = torch.autograd.grad(losses.pseudo_huber(prediction, torch.zeros_like(prediction), c).sum(), prediction)
    wanted = [2 * 0.1 * e / math.hypot(e, 0.1) / 4 for e in (0.0, 0.3, -1.0, 1e6)]
    assert found[0].tolist() == pytest.approx(wanted, rel=1e-12)


def test_half_precision_is_computed_in_single() -> None:
    large = torch.full((2, 4), 300.0, dtype=torch.float16)
    found = losses.pseudo_huber(large, -large, torch.tensor([0.1, 1.0], dtype=torch.float64))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([2 * 0.1 * (600 - 0.1), 2 * (600 - 1)], rel=1e-3)


@pytest.mark.parametrize("c", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("schedule", [TABLE, RESCALED], ids=["plain", "rescaled"])
def test_widths_in_plain_numbers(schedule: schedules.Schedule, c: float) -> None:
    """As kohya's sd-scripts computes them, at every timestep; finite where no signal is left."""
    found = {name: losses.huber_deltas(name, schedule, c).tolist() for name in losses.HUBER_SCHEDULES}
    rate = -math.log(c) / 1000
    for t, abar in enumerate(schedule.alphas_cumprod.tolist()):
        sigma = math.sqrt((1 - abar) / abar) if abar else math.inf
        assert found["constant"][t] == c
        assert found["exponential"][t] == pytest.approx(math.exp(-rate * t), rel=1e-12)
        assert found["snr"][t] == pytest.approx((1 - c) / (1 + sigma) ** 2 + c, rel=1e-9)
    assert found["exponential"][0] == 1.0
    assert found["snr"][-1] == c if not schedule.has_signal_left else found["snr"][-1] > c or c == 1.0


def test_widths_by_name() -> None:
    with pytest.raises(InputError, match="unknown Huber schedule 'sn'"):
        losses.huber_deltas("sn", TABLE, 0.1)


def test_each_sample_has_the_width_and_the_weight_of_its_own_timestep() -> None:
    t = torch.tensor([0, 10, 100, 500, 900, 999])
    objective = Epsilon(loss="huber", huber_c=0.05, huber_schedule="exponential", weighting="min-snr", gamma=2.0)
    together = build_criterion(objective, TABLE)(A, B, t)
    for row, step in enumerate(t.tolist()):
        c = 0.05 ** (step / 1000)
        abar = TABLE.alphas_cumprod[step].item()
        weight = min(abar / (1 - abar), 2.0) * (1 - abar) / abar
        error = (A - B)[row].numpy()
        assert together[row].item() == pytest.approx(weight * np.mean(2 * c * (np.hypot(error, c) - c)), rel=1e-9)


def test_what_is_not_asked_for_is_not_there() -> None:
    """The default loss is the mean square itself, bit for bit: nothing is multiplied by one."""
    t = torch.zeros(6, dtype=torch.int64)
    assert build_criterion(Epsilon(), TABLE) == Plain(losses.mse)
    assert torch.equal(build_criterion(Velocity(), TABLE)(A.float(), B.float(), t), losses.mse(A.float(), B.float()))
    assert isinstance(build_criterion(Epsilon(loss="smooth-l1"), TABLE), Scheduled)
    assert isinstance(build_criterion(Epsilon(weighting="soft-min-snr"), TABLE), Weighted)


def test_the_defaults_are_kohyas() -> None:
    t = torch.arange(0, 1000, 200)
    default, said = Epsilon(loss="huber"), Epsilon(loss="huber", huber_c=0.1, huber_schedule="snr")
    found = [build_criterion(each, TABLE)(A[:5], B[:5], t) for each in (default, said)]
    assert torch.equal(*found)


@pytest.mark.parametrize("loss", ["mse", "huber", "smooth-l1"])
@pytest.mark.parametrize("weighting", ["none", "min-snr", "soft-min-snr"])
@pytest.mark.parametrize("schedule", [TABLE, RESCALED], ids=["plain", "rescaled"])
def test_loss_and_gradient_are_finite_everywhere(loss: str, weighting: str, schedule: schedules.Schedule) -> None:
    objective = Velocity.model_validate({"loss": loss, "weighting": weighting})
    t = torch.arange(1000)
    prediction = rng.normal((1000, 4), "finite").requires_grad_()
    criterion = build_criterion(objective, schedule.to("cpu"))
    found = criterion(prediction, torch.zeros(1000, 4), t)
    (gradient,) = torch.autograd.grad(found.sum(), prediction)
    assert bool(found.isfinite().all()) and bool(gradient.isfinite().all())
    assert found.dtype == torch.float32


def test_compilation_finds_one_graph() -> None:
    """A read of the device, or a table made in the loop, would break it."""
    criterion: Criterion = build_criterion(Epsilon(loss="huber", weighting="min-snr"), TABLE.to("cpu"))

    def cost(prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        return criterion(prediction, target, t)

    t = torch.arange(6)
    compiled = torch.compile(cost, backend="eager", fullgraph=True)
    assert torch.equal(compiled(A, B, t), cost(A, B, t))
