"""Who computes the parts of a micro-batch: one after the other, or threads side by side.

In a small network the threads of one operation mostly wait for one another. A step of 8 pictures through the embedded
U-Net takes two threads with four pictures each 0.91 to 0.98 of the time of two threads in every layer on a quiet 2-core
CPU, and half to two thirds beside other jobs, where each operation waits for the slower thread (2026-11-22).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.schema import Batch
from train import pieces

AT_LEAST = 2  # pictures for each: with one, Python's lock and torch's calls take longer than what they call
SMALL = 50_000_000  # weights: above, a layer has enough to do for all threads, and every thread needs its gradients
Item = TypeVar("Item")
Result = TypeVar("Result")
LossesOf = Callable[[Batch], Tensor]


class Workers(Protocol):
    """Both kinds compute the same sums, in another order."""

    @property
    def count(self) -> int: ...

    def backward(self, losses_of: LossesOf, batch: Batch, divisor: int) -> Tensor:
        """Add the gradient of sum(losses) / divisor to the weights' gradients; returns the losses, (B,)."""
        ...

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        """The results of independent work, in order."""
        ...


@dataclass(frozen=True)
class OneByOne:
    """One after the other, each with all threads or on the accelerator."""

    accelerator: Accelerator
    count: int = 1

    def backward(self, losses_of: LossesOf, batch: Batch, divisor: int) -> Tensor:
        losses = losses_of(batch)
        self.accelerator.backward(losses.sum() / divisor)
        return losses.detach()

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        return map(work, items)


@dataclass(frozen=True)
class SideBySide:
    """`count` threads on a CPU; gradients are added in the order of the parts, so the same machine repeats its bits."""

    count: int
    threads: int  # of all of them together
    trained: Sequence[nn.Parameter]

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        own = max(1, self.threads // self.count)
        return ThreadPoolExecutor(self.count, "worker", initializer=torch.set_num_threads, initargs=(own,))

    def backward(self, losses_of: LossesOf, batch: Batch, divisor: int) -> Tensor:
        def part(rows: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            losses = losses_of(rows)
            return losses.detach(), torch.autograd.grad(losses.sum() / divisor, self.trained, allow_unused=True)

        found = list(self.pool.map(part, pieces.of(batch, self.count)))
        for _, gradients in found:
            self.add(gradients)
        return torch.cat([losses for losses, _ in found])

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        pairs = [(weight, new) for weight, new in zip(self.trained, gradients, strict=True) if new is not None]
        for weight, new in pairs:
            weight.grad = new if weight.grad is None else weight.grad.add_(new)

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        return self.pool.map(work, items)


def suited(accelerator: Accelerator, unet: nn.Module, batch_size: int, *, compiled: bool) -> Workers:
    """Threads side by side where they are faster and safe: a small network in float32 in a single process on a CPU.

    Autocast as accelerate wraps it, data-parallel hooks and compiled graphs are not made for several threads.
    """
    count = min(torch.get_num_threads(), batch_size // AT_LEAST)
    alone = is_small_on_cpu(unet, accelerator) and accelerator.num_processes == 1
    if count < 2 or not alone or compiled or accelerator.mixed_precision != "no":
        return OneByOne(accelerator)
    return SideBySide(count, torch.get_num_threads(), [weight for weight in unet.parameters() if weight.requires_grad])


def is_small_on_cpu(network: nn.Module, accelerator: Accelerator) -> bool:
    """Whether what surrounds its products takes as long as they do."""
    return accelerator.device.type == "cpu" and sum(weight.numel() for weight in network.parameters()) <= SMALL
