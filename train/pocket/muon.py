"""Muon: momentum whose matrix is made orthogonal before each step; fewer steps than AdamW for the same loss.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the size of the update, which lets it share
AdamW's learning rate: Liu et al. 2025, arXiv 2502.16982, equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

ITERATIONS = 4
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that drives singular values towards 1


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About U V^T of the matrix' singular value decomposition, by Newton-Schulz iterations; (rows, columns)."""
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; convolutions are seen as (outputs, inputs x kernel)."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update(self, parameter: torch.nn.Parameter, group: dict) -> None:
        """The update of one weight, with the root mean square that AdamW's would have (0.2)."""
        assert parameter.grad is not None
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1.0 - group["momentum"])
        ahead = torch.lerp(parameter.grad, buffer, group["momentum"]).flatten(1)
        direction = orthogonal(ahead).reshape(parameter.shape)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction, alpha=group["lr"] * 0.2 * max(ahead.shape) ** 0.5)


def suits_muon(name: str, parameter: torch.nn.Parameter) -> bool:
    """Hidden matrices and kernels; not norms, biases, nor the first and last layer."""
    outer = name.startswith(("conv_in", "conv_out"))
    return parameter.ndim >= 2 and min(parameter.flatten(1).shape) >= 16 and not outer
