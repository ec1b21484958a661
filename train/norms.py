"""Norms of half-precision numbers in float32 on a CPU, as autocast has it on GPUs.

For bfloat16 numbers in channels-last order torch's group norm takes up to five times as long there.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train import workers


def widen(unet: Any, accelerator: Accelerator, *, compiled: bool) -> None:
    """Let a small network compute them so. In a large one, what they read and write would take twice the memory."""
    if accelerator.mixed_precision == "bf16" and workers.is_small_on_cpu(unet, accelerator) and not compiled:
        for layer in unet.modules():
            if type(layer) in (nn.GroupNorm, nn.LayerNorm):
                layer.float().register_forward_pre_hook(in_float32)


def in_float32(layer: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    """Under autocast only: what comes next takes float32 numbers there."""
    return (given[0].float(),) if torch.is_autocast_enabled("cpu") else given
