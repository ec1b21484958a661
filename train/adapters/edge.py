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


def needing_gradient(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A norm's input, as one that needs a gradient while the norm trains on a CPU; for register_forward_pre_hook."""
    (x,) = inputs
    crashes = module.training and x.device.type == "cpu" and not x.requires_grad
    return (Edge.apply(x, module.weight),) if crashes else inputs
