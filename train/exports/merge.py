"""The weights of a plain U-Net out of one that carries a LoRA, DoRA or nothing: W' = W + s B A, or DoRA's W'."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from train.adapters import dora
from train.base_model import BaseModel


@torch.no_grad()
def plain_weights(unet: Any, base: BaseModel) -> dict[str, Tensor]:
    """Every weight by diffusers' name. Merged ones are new and float32; the others are the network's own, not copies.

    A base that was cast to half precision for training is read again, so that its rounding does not stay behind.
    """
    weights = weights_of_base(unet)
    if has_adapter(unet) and any(tensor.dtype != torch.float32 for tensor in weights.values()):
        weights = weights_of_base(replace(base, dtype=torch.float32).unet)
    for name, layer in dora.layers(unet):
        weights[f"{name}.weight"] = merged(layer, weights[f"{name}.weight"])
    return weights


def has_adapter(unet: Any) -> bool:
    return next(dora.layers(unet), None) is not None


def weights_of_base(unet: Any) -> dict[str, Tensor]:
    """The base's own tensors under the names that they have without an adapter."""
    state = unet.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


@torch.no_grad()
def merged(layer: Any, weight: Tensor, adapter: str = "default") -> Tensor:
    """One layer's weight with its update, float32, where `weight` lies. DoRA: see train/adapters/dora.py."""
    changed = weight.float() + update(layer, weight, adapter)
    magnitude = dora.magnitudes(layer, adapter)
    if magnitude is None:
        return changed
    scale = magnitude.to(weight.device) / changed.flatten(1).norm(dim=1)
    return changed * scale.view(-1, *[1] * (weight.ndim - 1))


def update(layer: Any, weight: Tensor, adapter: str) -> Tensor:
    """s B A as float32 in the weight's shape."""
    return layer.get_delta_weight(adapter).float().to(weight.device).view(weight.shape)


@torch.no_grad()
def change(layer: Any, weight: Tensor, adapter: str) -> Tensor:
    """What an adapter adds to a layer's weight, float32; without DoRA to the last digit."""
    if dora.magnitudes(layer, adapter) is None:
        return update(layer, weight, adapter)
    return merged(layer, weight, adapter) - weight.float()
