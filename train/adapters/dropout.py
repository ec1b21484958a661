"""Dropout of a LoRA's inputs whose masks are a function of (seed, optimiser step, slot), never of a generator's state.

So a resumed run, another number of processes or more accumulation drop the same numbers of the same samples. Which
sample stands in a slot is told before each forward pass; each sample's timestep uniform, 53 bits drawn from (seed,
step, slot), names its position, and stays with it when a micro-batch is split.
"""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from data import seeds

sample_keys: list[Tensor] = []  # (B,) int64: of the samples in the network; one network trains in a process


def set_sample_keys(uniforms: Tensor) -> None:
    """Say which samples the next forward pass (and its backward pass) is about: (B,) float64, one of each position."""
    sample_keys[:] = [uniforms.double().view(torch.int64)]


class PositionedDropout(nn.Module):
    """Zeroes a share of each sample's inputs and scales the others by 1 / (1 - share); the identity in evaluation.

    (B, ...) -> (B, ...). name: of the layer, so that each has masks of its own. Source: Srivastava et al. 2014,
    JMLR 15, section 4.
    """

    def __init__(self, share: float, name: str) -> None:
        super().__init__()
        self.share = share
        self.salt = seeds.seed_for("lora dropout", name)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        (keys,) = sample_keys
        assert len(keys) == len(x), "set_sample_keys() comes before each forward pass"
        dropped = seeds.counted(keys.to(x.device), self.salt, x[0].numel()) < round(self.share * 2**seeds.COUNTED_BITS)
        return x.masked_fill(dropped.view(x.shape), 0.0) / (1.0 - self.share)


def replace(unet: nn.Module, share: float, adapter: str = "default") -> None:
    """Put ours where peft put torch's, which draws from the global generator."""
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_dropout:
            module.lora_dropout[adapter] = PositionedDropout(share, name)
