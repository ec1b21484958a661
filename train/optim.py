"""The optimiser, and a learning rate that is a pure function of the optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from data.options import Options

if TYPE_CHECKING:
    import torch


class OptimConfig(Options):
    """How weights are updated."""

    kind: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw, or bitsandbytes' 8-bit AdamW, whose state takes a quarter of the memory"""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """decay of the mean of gradients"""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """decay of the mean of squared gradients"""
    epsilon: float = Field(default=1e-8, gt=0)
    """added to the root of the second moment"""
    weight_decay: float = Field(default=1e-2, ge=0)
    """decoupled weight decay"""
    clip_norm: float = Field(default=1.0, gt=0)
    """largest global norm of all gradients together; larger ones are scaled down"""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """how the learning rate goes on after the warm-up: constant, or down to 0 at --max-steps"""
    warmup: int = Field(default=0, ge=0)
    """optimiser steps over which the learning rate rises from 0"""


def adamw(parameters: Iterable[torch.nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    from torch.optim import AdamW

    optimizer = AdamW(parameters, **shared(config), fused=True)
    optimizer.register_load_state_dict_post_hook(align_state)
    return optimizer


def adamw_8bit(parameters: Iterable[torch.nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    weights = list(parameters)
    for weight in weights:
        # It makes them contiguous at its first step; done before, its state lies in memory as its shape says.
        weight.data = weight.data.contiguous()
    return AdamW8bit(weights, **shared(config))


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay restored moments out in memory as their weights are: the fused kernel walks both without looking at strides.

    A convolution's weight is channels-last, a moment read from a file is not: a resumed run would silently differ.
    """
    import torch

    for weight, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                slots[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def shared(config: OptimConfig) -> dict:
    """Arguments that every AdamW takes. The learning rate is set before each step."""
    betas = (config.beta1, config.beta2)
    return {"lr": 0.0, "betas": betas, "eps": config.epsilon, "weight_decay": config.weight_decay}


BUILDERS: dict[str, Callable[[Iterable[torch.nn.Parameter], OptimConfig], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw-8bit": adamw_8bit,
}


def learning_rate(step: int, config: OptimConfig, peak: float, max_steps: int) -> float:
    """The learning rate of optimiser step 0, 1, ... whatever the number of processes or accumulation.

    It rises linearly to `peak` over config.warmup steps, then is constant or falls (half a cosine, or a line) so that
    it would be 0 at step max_steps.
    """
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, max_steps - config.warmup)
    return peak * DECAYS[config.schedule](min(1.0, done))


DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
