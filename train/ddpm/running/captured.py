"""A network compiled for drawing: on a GPU each of a sampler's looks then replays one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.errors import InputError
from data.shapes import Images, Timesteps
from train.compiled import TOLERANCE, relative_errors


class Captured(nn.Module):
    """network(x_t, t, labels) through torch.compile, a graph for each size of a batch; without gradients.

    A small network's looks take less time to compute than to ask for, kernel by kernel; a graph is asked for at once.
    The first answer is held against that of the network as it is. Raises InputError where they differ.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.compiled = torch.compile(network, mode="reduce-overhead", dynamic=False)
        self.proved = False

    @torch.no_grad()
    def forward(self, xt: Images, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        # a graph writes its answers to one place, and solvers of second order keep one for the next step
        answer = self.compiled(xt, t, labels).clone()
        if not self.proved:
            prove(answer, self.network(xt, t, labels))
            self.proved = True
        return answer


def prove(found: Tensor, expected: Tensor) -> None:
    """Raise InputError unless the compiler computed the same."""
    (error,) = relative_errors([found.float()], [expected.float()])
    if not error <= TOLERANCE["no"]:  # also if it is not a number
        what = f"torch {torch.__version__}'s compiler computes another answer, {100 * error:.0f} % off"
        raise InputError(what, where="--compile", fix="Draw without it.")
