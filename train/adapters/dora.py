"""DoRA on top of peft's layers: W' = m (W + s B A) / ||W + s B A||, one magnitude m for each row.

Source: Liu et al. 2024, arXiv 2402.09353, eq. 5 and section 4.3 (the norm is a constant for the gradient).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraConv2dLayer
from torch import Tensor, nn


class ConvMagnitude(DoraConv2dLayer):
    """peft's for a convolution. Its own cannot read channels-last weights, and takes norms in half precision."""

    def get_lora_weight(self, lora_A: nn.Module, lora_B: nn.Module, adapter_name: str | None = None) -> Tensor:
        """(out, in * k * k): B A, whatever the order in memory."""
        down, up = lora_A.weight, lora_B.weight
        assert isinstance(down, Tensor) and isinstance(up, Tensor)
        return up.flatten(1) @ down.flatten(1)

    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        """(1, out, 1, 1) float32: the norm of each output's weights."""
        changed = weight.float() + scaling * lora_weight.float()
        return changed.flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.ndim - 2))


def layers(unet: nn.Module, adapter: str = "default") -> Iterator[tuple[str, Any]]:
    """The layers that carry an adapter, by name."""
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield name, module


@torch.no_grad()
def settle(unet: nn.Module, adapter: str = "default") -> None:
    """Magnitudes in float32, equal to the norms that the forward pass takes: then B = 0 is the base, bit for bit."""
    for _, layer in layers(unet, adapter):
        weight = layer.get_base_layer().weight
        if weight.ndim > 2:
            layer.lora_magnitude_vector[adapter] = ConvMagnitude(fan_in_fan_out=False)
        magnitude = layer.lora_magnitude_vector[adapter]
        norm = magnitude.get_weight_norm(weight.float(), torch.zeros_like(weight, dtype=torch.float32), 1.0)
        magnitude.weight = nn.Parameter(norm)


def magnitudes(layer: Any, adapter: str = "default") -> Tensor | None:
    """(out,) DoRA's magnitudes of a layer, or None where there are none."""
    vectors = layer.lora_magnitude_vector
    return vectors[adapter].weight.detach().flatten() if vectors is not None and adapter in vectors else None
