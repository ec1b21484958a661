"""The edge between frozen and trained layers, in the graph of the backward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


class Edge(Function):
    """A tensor whose gradient is computed whenever that of a weight is, and goes nowhere.

    A leaf that requires a gradient would not do: torch.autograd.grad computes what leads to the weights it is asked
    about, and nothing leads from such a leaf to them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None]:
        return None, None
