"""Full fine-tuning of a small network in bfloat16 on a CPU: all weights are rounded to it at once.

Autocast casts each weight when its layer is reached, and each gradient back into float32 when it is computed: the same
numbers by hundreds of small operations, which take 3 % of a step of the embedded network (two threads, AMD,
2026-11-22). Latents and text states are rounded before the first layer, not in it: they meet no norm there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.schema import Batch
from train.joined import JoinedAdamW
from train.workers import Item, LossesOf, Result, Workers

CAST = (nn.Linear, nn.Conv2d)  # layers whose weights autocast casts


@dataclass(frozen=True)
class HalfWeights:
    """One after the other, through copies of the weights in bfloat16; what autocast leaves in float32 stays in it."""

    network: nn.Module
    optimizer: JoinedAdamW
    count: int = 1

    @cached_property
    def copies(self) -> Tensor:
        """Room for all of them."""
        return torch.empty_like(self.optimizer.everything, dtype=torch.bfloat16)

    @cached_property
    def swaps(self) -> list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter, nn.Parameter]]:
        """Of each copy: the layer's weights, its name among them, the weight itself, the copy."""
        parts = zip(self.optimizer.weights, self.optimizer.views(self.copies), strict=True)
        copies = {weight: nn.Parameter(part) for weight, part in parts}
        return [
            (layer._parameters, name, weight, copies[weight])
            for layer in self.network.modules()
            if type(layer) in CAST
            for name, weight in layer._parameters.items()
            if weight is not None and weight in copies
        ]

    @cached_property
    def asked(self) -> list[nn.Parameter]:
        """What gradients are asked of, in the order of the optimiser's weights."""
        copies = {weight: copy for _, _, weight, copy in self.swaps}
        return [copies.get(weight, weight) for weight in self.optimizer.weights]

    def backward(self, losses_of: LossesOf, batch: Batch, divisor: int) -> Tensor:
        with self.in_place():
            losses = losses_of(batch)
            gradients = torch.autograd.grad(losses.sum() / divisor, self.asked, allow_unused=True)
        self.optimizer.add(gradients)
        return losses.detach()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the network has the copies."""
        self.copies.copy_(self.optimizer.everything)
        try:
            for weights, name, _, copy in self.swaps:
                weights[name] = copy
            yield
        finally:
            for weights, name, weight, _ in self.swaps:
                weights[name] = weight

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        return map(work, items)


def suited(
    accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer, *, trains_base: bool
) -> Workers | None:
    """This, where it computes the same: the network's own weights are trained, by one process, and joined.

    A LoRA's are few, and some kinds of it compute with their weights besides.
    """
    alone = accelerator.mixed_precision == "bf16" and accelerator.num_processes == 1
    if not (alone and trains_base and isinstance(optimizer, JoinedAdamW)):
        return None
    return HalfWeights(network, optimizer)
