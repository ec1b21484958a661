"""Who computes the gradients of a batch: one pass over all of it, or threads side by side with a part each.

A network of this size leaves threads that share each of its layers waiting for one another; threads with a part of the
batch each wait once a step. See train/workers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.shapes import PerSample
from train import workers
from train.ddpm.running.batches import Batch
from train.workers import SideBySide

LossesOf = Callable[[Batch], PerSample]


class Gradients(Protocol):
    def backward(self, losses_of: LossesOf, batch: Batch) -> PerSample:
        """Add the gradient of mean(weights * losses) to the weights' gradients; returns the losses, (B,)."""
        ...


@dataclass(frozen=True)
class Whole:
    """One pass, with all threads or on the accelerator."""

    accelerator: Accelerator

    def backward(self, losses_of: LossesOf, batch: Batch) -> PerSample:
        losses = losses_of(batch)
        self.accelerator.backward((losses * batch.weights).mean())
        return losses.detach()


@dataclass(frozen=True)
class Parts:
    """A part for each thread; gradients are added in the order of the parts, so the same machine repeats its bits."""

    crew: SideBySide

    def backward(self, losses_of: LossesOf, batch: Batch) -> PerSample:
        def part(rows: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            losses = losses_of(rows)
            total = (losses * rows.weights).sum() / len(batch)
            return losses.detach(), torch.autograd.grad(total, self.crew.trained, allow_unused=True)

        found = list(self.crew.each(part, batch.parts(self.crew.count)))
        for _, gradients in found:
            self.crew.add(gradients)
        return torch.cat([losses for losses, _ in found])


def suited(accelerator: Accelerator, network: nn.Module, batch_size: int, *, compiled: bool) -> Gradients:
    """Parts where that is faster and safe. Dropout draws from one generator, whose order threads would change."""
    crew = workers.suited(accelerator, network, batch_size, compiled=compiled)
    return Parts(crew) if isinstance(crew, SideBySide) and not drops_out(network) else Whole(accelerator)


def drops_out(network: nn.Module) -> bool:
    """Whether the network has dropout, which draws from torch's generator."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in network.modules())
