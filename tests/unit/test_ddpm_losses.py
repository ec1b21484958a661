"""Losses against numbers worked out by hand."""

import pytest
import torch

from data import rng
from train.ddpm import losses

# one sample with errors 0, 1, -3, 0.5; one without any
PREDICTION = torch.tensor([[1.0, 2.0, -1.0, 0.5], [1.0, 2.0, 3.0, 4.0]])
TARGET = torch.tensor([[1.0, 1.0, 2.0, 0.0], [1.0, 2.0, 3.0, 4.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", (0 + 1 + 9 + 0.25) / 4),
        ("l2", (0 + 1 + 9 + 0.25) / 4),
        ("l1", (0 + 1 + 3 + 0.5) / 4),
        ("huber", (0 + 0.5 + 2.5 + 0.125) / 4),  # 1/2 e^2 up to 1, |e| - 1/2 beyond
    ],
)
def test_values_by_hand(name: str, expected: float) -> None:
    assert losses.get_loss(name)(PREDICTION, TARGET).tolist() == [expected, 0.0]


def test_huber_lies_between_its_two_limits() -> None:
    a, b = rng.normal((4, 50), "a").double(), rng.normal((4, 50), "b").double()
    torch.testing.assert_close(losses.huber(a, b, delta=1e3), losses.mse(a, b) / 2, rtol=1e-12, atol=0)
    narrow = losses.huber(a, b, delta=1e-9) / 1e-9  # delta (|e| - delta / 2)
    torch.testing.assert_close(narrow, losses.l1(a, b), rtol=1e-8, atol=0)
    smooth = torch.nn.functional.smooth_l1_loss(a, b, reduction="none").mean(1)
    torch.testing.assert_close(losses.huber(a, b), smooth, rtol=1e-12, atol=0)


def test_gradients_in_closed_form() -> None:
    prediction = PREDICTION.clone().requires_grad_()
    gradient = {
        name: torch.autograd.grad(losses.get_loss(name)(prediction, TARGET).sum(), prediction)[0]
        for name in losses.LOSSES
    }
    assert gradient["mse"][0].tolist() == [0.0, 0.5, -1.5, 0.25]  # 2 e / n
    assert gradient["l1"][0].tolist() == [0.0, 0.25, -0.25, 0.25]  # sign(e) / n
    assert gradient["huber"][0].tolist() == [0.0, 0.25, -0.25, 0.125]  # e / n, clipped at 1 / n


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 8, 8), (3, 4, 2, 5, 5), (1, 1)])
def test_one_number_a_sample_and_each_its_own(name: str, shape: tuple[int, ...]) -> None:
    a, b = rng.normal(shape, "a"), rng.normal(shape, "b")
    together = losses.get_loss(name)(a, b)
    assert together.shape == shape[:1]
    alone = torch.cat([losses.get_loss(name)(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_half_precision_is_summed_in_single(name: str) -> None:
    # 300^2 overflows float16, and 4,096 times 0.1 added up in bfloat16 would stop at 32
    large = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert losses.get_loss(name)(large, -large).isfinite().all()
    many = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)
    found = losses.get_loss(name)(many, torch.zeros_like(many))
    expected = losses.get_loss(name)(many.double(), torch.zeros_like(many).double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert losses.get_loss(name)(many, torch.zeros(1, 4096)).dtype == torch.float32
    assert expected.dtype == torch.float64


def test_shapes_are_checked() -> None:
    with pytest.raises(AssertionError, match=r"prediction \(2, 4\), target \(2, 1\)"):
        losses.mse(PREDICTION, TARGET[:, :1])
    with pytest.raises(AssertionError, match="a batch of samples"):
        losses.l1(torch.ones(3), torch.ones(3))
