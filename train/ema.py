"""An exponential moving average of the trained weights: what is validated, drawn and exported in their place.

    average <- average + (1 - d_n) (weights - average),   d_n = min(decay, (1 + n) / (10 + n)) while it warms up

n counts the updates before this one. Source: Polyak & Juditsky 1992; the warm-up is TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.errors import InputError
from train.config import Averaging

CHUNK = 1 << 24  # weights updated at once: the difference of all of them would take as much memory as they do


class Average(Protocol):
    """What the loop asks of an average."""

    def update(self, norm: Tensor) -> None:
        """After an optimiser step. norm: () of its gradients; if it is not finite the weights did not move."""
        ...

    def swapped(self) -> Any:
        """A context in which the network has the averaged weights; afterwards it has its own, bit for bit."""
        ...

    def state(self) -> dict[str, Tensor] | None:
        """A copy on the CPU for the checkpoint, or None if nothing is averaged."""
        ...

    def load_state(self, saved: Mapping[str, Tensor] | None, where: object) -> None:
        """Put a saved state back. Raises InputError if it does not fit."""
        ...


class Off:
    """No average: the weights are used as they are."""

    def update(self, norm: Tensor) -> None:
        pass

    @contextmanager
    def swapped(self) -> Iterator[None]:
        yield

    def state(self) -> None:
        return None

    def load_state(self, saved: Mapping[str, Tensor] | None, where: object) -> None:
        if saved is not None:
            raise InputError("the checkpoint holds an average of the weights, and none was asked for", where=where)


class Ema:
    """Float32 averages of the given weights, on their device or on the CPU.

    The number of updates is kept on the device too, so that a step left out by the fp16 scaler is left out here
    without the device having to be waited for.
    """

    COUNT = "updates"  # its name among the saved tensors; no weight has a name without a dot

    def __init__(self, weights: Mapping[str, nn.Parameter], config: Averaging) -> None:
        assert config.decay > 0
        self.weights, self.config = dict(weights), config
        self.averages = {name: self.here(weight).clone() for name, weight in self.weights.items()}
        device = next(iter(self.averages.values())).device
        self.updates = torch.zeros((), dtype=torch.int64, device=device)

    def here(self, weight: Tensor) -> Tensor:
        """A weight in float32 where the averages are; itself if it is that already."""
        device = torch.device("cpu") if self.config.device == "cpu" else weight.device
        return weight.detach().to(device, torch.float32)

    def decay(self) -> Tensor:
        """() float64: the decay of the next update."""
        n = self.updates.double()
        ceiling = torch.full_like(n, self.config.decay)
        return torch.minimum(ceiling, (1 + n) / (10 + n)) if self.config.warmup else ceiling

    @torch.no_grad()
    def update(self, norm: Tensor) -> None:
        """Subtract, multiply, add: each is rounded once and alike everywhere, so the CPU's averages are the GPU's bit
        for bit, and --ema.device can change within a run.
        """
        moved = torch.isfinite(norm).to(self.updates.device)
        weight = torch.where(moved, 1 - self.decay(), 0.0).float()
        for names in chunks(self.averages, CHUNK):
            averages = [self.averages[name] for name in names]
            difference = torch._foreach_sub([self.here(self.weights[name]) for name in names], averages)
            torch._foreach_mul_(difference, weight)
            torch._foreach_add_(averages, difference)
        self.updates += moved

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Contents change places, one tensor at a time: no second copy of the network is made."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for name, weight in self.weights.items():
            own = weight.detach().clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(own)

    def state(self) -> dict[str, Tensor]:
        kept = {name: average.cpu().clone() for name, average in self.averages.items()}
        return kept | {self.COUNT: self.updates.cpu().clone()}

    def load_state(self, saved: Mapping[str, Tensor] | None, where: object) -> None:
        if saved is None:
            raise InputError("the checkpoint holds no average of the weights (--ema.decay)", where=where)
        odd = sorted((self.averages.keys() | {self.COUNT}) ^ saved.keys())
        odd += [name for name, average in self.averages.items() if name in saved and average.shape != saved[name].shape]
        if odd:
            raise InputError(f"{len(odd)} averages do not fit this adapter, e.g. {odd[0]}", where=where)
        for name, average in self.averages.items():
            average.copy_(saved[name])
        self.updates.copy_(saved[self.COUNT])


def build(weights: Mapping[str, nn.Parameter], config: Averaging) -> Average:
    """The average that the config asks for, equal to the weights until the first update."""
    return Ema(weights, config) if config.decay else Off()


def chunks(tensors: Mapping[str, Tensor], size: int) -> Iterable[list[str]]:
    """Names in order, in lists of at most `size` numbers together, or of one tensor if that is larger."""
    names: list[str] = []
    total = 0
    for name, tensor in tensors.items():
        if names and total + tensor.numel() > size:
            yield names
            names, total = [], 0
        names.append(name)
        total += tensor.numel()
    yield names
