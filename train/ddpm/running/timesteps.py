"""Which timesteps a batch is asked about: all as often, or more often where the bound is large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from data.shapes import PerSample, Timesteps
from train.ddpm import importance
from train.ddpm.importance import History


class Draws(Protocol):
    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        """(B,) numbers in [0, 1) -> (B,) timesteps and the (B,) float32 weights of their losses, both on the device."""
        ...

    def seen(self, t: Timesteps, losses: PerSample) -> None:
        """The (B,) unweighted losses that this process found at its (B,) timesteps."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as lists of numbers."""
        ...

    def load_state(self, saved: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Evenly:
    """Every one of `steps` timesteps as often as any other."""

    steps: int

    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        return (uniforms * self.steps).long().clamp(max=self.steps - 1), torch.ones_like(uniforms)

    def seen(self, t: Timesteps, losses: PerSample) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, saved: dict[str, Any]) -> None:
        pass


@dataclass
class ByImportance:
    """In proportion to the size of the last losses. Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 18.

    The history lies on the CPU, and every step waits for its losses: the next step's timesteps depend on them. It is
    the same in every process, because each adds what all of them found, in the order of their ranks: `gather` joins
    the (B,) tensors of all processes, as accelerate's does, and returns its argument where there is only one. With
    histories of their own, processes would weigh one timestep differently, and the mean of their gradients would be of
    no one distribution.
    """

    steps: int
    gather: Callable[[Tensor], Tensor]
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = importance.empty(self.steps)

    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        t, weights = self.history.draw(uniforms.cpu())
        return t.to(uniforms.device), weights.to(uniforms.device)

    def seen(self, t: Timesteps, losses: PerSample) -> None:
        self.history = self.history.seen(self.gather(t).cpu(), self.gather(losses.float()).cpu())

    def state(self) -> dict[str, Any]:
        return {"losses": self.history.losses.tolist(), "counts": self.history.counts.tolist()}

    def load_state(self, saved: dict[str, Any]) -> None:
        losses, counts = (torch.tensor(saved[name]) for name in ("losses", "counts"))
        self.history = History(losses.to(self.history.losses), counts.to(self.history.counts))
