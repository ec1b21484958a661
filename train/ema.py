"""Exponential moving average of the trained weights: what is validated, previewed and exported in their place.

    average <- average + (1 - d_n) (weights - average),   d_n = min(decay, (1 + n) / (10 + n)) with warm-up

n counts the updates before this one. Source: Polyak & Juditsky 1992; the warm-up is TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from data.errors import InputError
from train.config import EmaOptions

CHUNK = 16  # tensors per update: the differences of all of them would take as much memory as the weights


class Ema:
    """Float32 averages of named weights, on their device or on the CPU; nothing at all if the decay is 0.

    The number of updates is a tensor on that device too: a step skipped by the fp16 scaler is skipped here without
    waiting for the device.
    """

    COUNT = "updates"  # its name among the saved tensors; no weight has a name without a dot

    def __init__(self, weights: Mapping[str, nn.Parameter], config: EmaOptions) -> None:
        self.weights, self.config = dict(weights) if config.decay else {}, config
        self.averages = {name: self.copy_of(weight).clone() for name, weight in self.weights.items()}
        device = next(iter(self.averages.values())).device if self.averages else None
        self.updates = torch.zeros((), dtype=torch.int64, device=device)

    def copy_of(self, weight: Tensor) -> Tensor:
        """A weight in float32 where its average is; itself if it is that already."""
        return weight.detach().to("cpu" if self.config.device == "cpu" else weight.device, torch.float32)

    @torch.no_grad()
    def update(self, norm: Tensor) -> None:
        """After an optimiser step. norm: () of its gradients; if it is not finite, the step was skipped.

        Subtract, multiply, add: each is rounded once, alike on every device, so --ema.device can change within a run.
        """
        if not self.averages:
            return
        moved, n = torch.isfinite(norm).to(self.updates.device), self.updates.double()
        decay = torch.full_like(n, self.config.decay)
        decay = torch.minimum(decay, (1 + n) / (10 + n)) if self.config.warmup else decay
        share = torch.where(moved, 1 - decay, 0.0).float()
        names = list(self.averages)
        for start in range(0, len(names), CHUNK):
            averages = [self.averages[name] for name in names[start : start + CHUNK]]
            weights = [self.copy_of(self.weights[name]) for name in names[start : start + CHUNK]]
            differences = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(differences, share)
            torch._foreach_add_(averages, differences)
        self.updates += moved

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again, bit for bit."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for name, weight in self.weights.items():  # one at a time: no second copy of the network
            own = weight.detach().clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(own)

    def state(self) -> dict[str, Tensor] | None:
        """A copy on the CPU for the checkpoint; None if nothing is averaged."""
        saved = {name: average.cpu().clone() for name, average in self.averages.items()}
        return saved | {self.COUNT: self.updates.cpu().clone()} if saved else None

    def load_state(self, saved: Mapping[str, Tensor] | None, where: object) -> None:
        """Restore a saved state. Raises InputError if it does not fit."""
        if (saved is None) != (not self.averages):
            has = "no average" if saved is None else "an average"
            raise InputError(f"the checkpoint holds {has} of the weights, unlike this run (--ema.decay)", where=where)
        if saved is None:
            return
        own = self.averages | {self.COUNT: self.updates}
        wrong = sorted(own.keys() ^ saved.keys())
        wrong += [name for name in own if name in saved and own[name].shape != saved[name].shape]
        if wrong:
            raise InputError(f"{len(wrong)} averages do not fit this adapter, e.g. {wrong[0]}", where=where)
        for name, average in own.items():
            average.copy_(saved[name])
