"""A run of fit.py while it trains: what changes (State), what does not (Task), and what waits to be read (Window)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.dataset import Layout
from train.ddpm.running.batches import Stream
from train.ddpm.running.config import FitConfig
from train.ddpm.running.errors import Side
from train.ddpm.running.model import Model
from train.ddpm.running.objective import Corrupt, Loss
from train.ddpm.running.timesteps import Draws
from train.ddpm.schedule import Schedule
from train.ema import Ema
from train.speed import Speed
from train.validation import Losses


@dataclass
class State:
    """All that changes while a run trains."""

    step: int  # optimiser steps done
    network: nn.Module  # as accelerate and the compiler wrapped it
    optimizer: Any  # accelerate's, around the one of train/optim.py
    accelerator: Accelerator
    ema: Ema
    draws: Draws
    base: dict[str, Losses] = field(default_factory=dict)  # x_0 errors before step 1, by side

    def plain_network(self) -> nn.Module:
        """The network itself, whose weights have their own names."""
        return self.accelerator.unwrap_model(self.network, keep_torch_compile=False)


@dataclass(frozen=True)
class Task:
    """All that does not change while a run trains."""

    config: FitConfig
    layout: Layout
    steps: int  # optimiser steps in all
    schedule: Schedule  # on the device
    stream: Stream
    corrupt: Corrupt
    loss: Loss
    sides: dict[str, Side]  # what is looked at
    model: Model  # around the plain network
    folder: Path
    identity: str
    speed: Speed
    drops_out: bool  # whether the network has dropout, which draws from torch's generator
    publish: Callable[[], None] = lambda: None


@dataclass
class Window:
    """Steps whose numbers still lie on the device: reading them at every step would make it wait."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def read(self) -> tuple[list[float], list[float], float]:
        """Losses, gradient norms, and the seconds since the last reading; both lists wait for the device here."""
        losses, norms = torch.stack(self.losses).tolist(), torch.stack(self.norms).tolist()
        return losses, norms, time.perf_counter() - self.began

    def clear(self) -> None:
        self.losses.clear()
        self.norms.clear()
        self.rates.clear()
        self.began = time.perf_counter()
