"""A run while it trains: what changes (State) and what does not (Task)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from data.dataset import Layout
from data.schema import Batch
from train import base_losses, optim
from train.base_losses import Found, Measure
from train.config import Config
from train.ddpm.criteria import Criterion
from train.ddpm.schedule import Schedule
from train.denoiser import Denoiser
from train.ema import Ema
from train.objectives import Objective
from train.preservation import ADRIFT, Anchor
from train.previews import Easel
from train.speed import Speed
from train.stopping import Progress
from train.validation import Validator


@dataclass
class State:
    """All that changes while a run trains."""

    step: int  # optimiser steps done
    unet: nn.Module  # as accelerate wrapped it
    optimizer: Any  # accelerate's, around the one of train/optim.py
    accelerator: Accelerator
    ema: Ema  # average of the trained weights, if one is kept
    pieces: int = 1  # that a micro-batch is cut into, since memory ran out
    progress: Progress = field(default_factory=Progress)  # what the validations said so far
    anchor: Anchor = ADRIFT  # what preserved prompts are held by

    def plain_unet(self) -> Any:
        return self.accelerator.unwrap_model(self.unet, keep_torch_compile=False)

    def unwrapped_unet(self) -> Any:
        """As plain_unet(), in its weights' own precision: accelerate's autocast is taken off, for good."""
        return self.accelerator.unwrap_model(self.unet, keep_fp32_wrapper=False, keep_torch_compile=False)

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.unet)


@dataclass(frozen=True)
class Task:
    """All that does not change while a run trains."""

    config: Config
    layout: Layout
    objective: Objective
    schedule: Schedule  # on the device
    batches: Callable[[int, int], Iterator[Batch]]  # micro-batches of the steps [start, stop)
    validator: Validator
    checkpoints: Path
    identity: str
    measure_base: Callable[[Measure], Found] = base_losses.measured  # of the network before the first step
    easel: Easel | None = None
    speed: Speed = field(default_factory=Speed)
    publish: Callable[[], None] = lambda: None  # the report so far, for someone who looks while it trains

    @cached_property
    def criterion(self) -> Criterion:
        """The training loss, with its tables made from the final schedule, once."""
        return self.objective.criterion(self.schedule)


@contextmanager
def evaluated(state: State) -> Iterator[None]:
    """Inside, the network has the weights that are validated, drawn and exported: the moving average, if there is one,
    else schedule-free's own, else those that are trained. Afterwards everything is as it was, bit for bit.
    """
    with optim.own_average(state.optimizer), state.ema.swapped():
        yield
