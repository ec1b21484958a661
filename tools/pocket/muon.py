"""Muon: momentum whose matrix is made orthogonal before each step; fewer steps than AdamW for the same loss.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the size of the update, which lets it share
AdamW's learning rate: Liu et al. 2025, arXiv 2502.16982, equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from tools.pocket.parallel import part, sum_up

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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            aheads = [self.look_ahead(parameter, group["momentum"]) for parameter in parameters]
            for parameter, direction in zip(parameters, directions(aheads), strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                size = group["lr"] * 0.2 * max(direction.shape) ** 0.5  # 0.2: root mean square of AdamW's updates
                parameter.sub_(direction.reshape(parameter.shape), alpha=size)

    def look_ahead(self, parameter: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Update the momentum with the gradient; returns Nesterov's mix of both as a matrix."""
        assert parameter.grad is not None
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1.0 - momentum)
        return torch.lerp(parameter.grad, buffer, momentum).flatten(1)


def directions(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """`orthogonal` of each matrix, the work shared out among the processes of the stage."""
    mine = set(part(len(matrices)))
    found = [orthogonal(matrix) if index in mine else matrix * 0 for index, matrix in enumerate(matrices)]
    if len(mine) < len(matrices):
        sum_up(found)
    return found


def suits_muon(name: str, parameter: torch.nn.Parameter) -> bool:
    """Hidden matrices and kernels; not norms, biases, nor the first and last layer."""
    outer = name.removeprefix("unet.").startswith(("conv_in", "conv_out"))
    return parameter.ndim >= 2 and min(parameter.flatten(1).shape) >= 16 and not outer
