"""Distances between what a network predicted and what it should have: one number a sample.

They are not averaged over the batch, so that a caller can weight timesteps first. The sum runs in float32 (float64 for
float64 inputs), because a squared half-precision error overflows above 255.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from data.errors import choose
from data.shapes import PerSample

Loss = Callable[[Tensor, Tensor], PerSample]


def mse(prediction: Tensor, target: Tensor) -> PerSample:
    """Mean squared error of each sample, (B, ...) and (B, ...) -> (B,). Source: arXiv 2006.11239, eq. 14 (L_simple)."""
    error = difference(prediction, target)
    # (1/n) sum_i e_i^2
    return per_sample(error.square())


def l1(prediction: Tensor, target: Tensor) -> PerSample:
    """Mean absolute error of each sample, (B, ...) and (B, ...) -> (B,)."""
    error = difference(prediction, target)
    # (1/n) sum_i |e_i|
    return per_sample(error.abs())


def huber(prediction: Tensor, target: Tensor, delta: float = 1.0) -> PerSample:
    """Squared near zero, absolute beyond delta > 0, (B, ...) and (B, ...) -> (B,). Source: Huber 1964.

    With delta = 1 it is the "smooth L1" of the annotated-diffusion lineage; for small errors it is half of `mse`.
    """
    error = difference(prediction, target)
    # e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2)
    return per_sample(functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta))


def pseudo_huber(prediction: Tensor, target: Tensor, c: PerSample) -> PerSample:
    """Like `mse` for errors far under c > 0, 2 c times `l1` far above; smooth. (B, ...), (B, ...), (B,) -> (B,).

    Source: Khrapov et al. 2024, arXiv 2403.16728, with a c for each timestep; scaled as kohya-ss/sd-scripts does it,
    so that a large c gives `mse` itself.
    """
    error = difference(prediction, target)
    c = c.to(error.dtype).reshape(-1, *[1] * (error.ndim - 1))
    # 2 c (sqrt(e^2 + c^2) - c), without taking two near numbers from one another
    square = error.square()
    return per_sample(2.0 * c * square / ((square + c.square()).sqrt() + c))


def pseudo_smooth_l1(prediction: Tensor, target: Tensor, c: PerSample) -> PerSample:
    """`pseudo_huber` over c: 2 times `l1` for errors far above c, whatever c is. (B, ...), (B, ...), (B,) -> (B,)."""
    value = pseudo_huber(prediction, target, c)
    # 2 (sqrt(e^2 + c^2) - c)
    return value / c.to(value.dtype)


LOSSES: dict[str, Loss] = {"mse": mse, "l2": mse, "l1": l1, "huber": huber}  # l2: another name for mse


def named(name: str) -> Loss:
    """The loss `name` of LOSSES; InputError with a suggestion for an unknown one."""
    return LOSSES[choose(name, LOSSES, what="loss")]


def difference(prediction: Tensor, target: Tensor) -> Tensor:
    """prediction - target in float32, or in float64 if one of them is."""
    shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}"
    assert prediction.shape == target.shape, f"broadcasting would hide a mistake: {shapes}"
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(wide) - target.to(wide)


def per_sample(error: Tensor) -> PerSample:
    """The mean over every axis but the first."""
    assert error.ndim >= 2, f"a batch of samples, not {tuple(error.shape)}"
    return error.mean(dim=tuple(range(1, error.ndim)))
