"""Blocks of the U-Net by name: `up_blocks.3`, `mid_block`, `conv_out`, and presets of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.errors import InputError, suggest

PRESETS = ("all", "last-layers")
ALLOWED = (
    "all, last-layers (the last up block and the output layers), or names such as up_blocks.3, mid_block, conv_out"
)
OUTPUT = ("conv_norm_out", "conv_out")


def resolve(unet: Any, names: Sequence[str], where: str) -> list[str]:
    """Module names for names and presets. Raises InputError for a name that no part of this U-Net has."""
    known = [name for name, module in unet.named_modules() if name and next(module.parameters(), None) is not None]
    found: list[str] = []
    for name in names:
        if name not in PRESETS and name not in known:
            near = suggest(name, [*PRESETS, *sorted(known, key=len)])
            raise InputError(f"this U-Net has no block {name!r}{near}", where=where, allowed=ALLOWED)
        found += preset(unet, name) if name in PRESETS else [name]
    return list(dict.fromkeys(found))


def preset(unet: Any, name: str) -> list[str]:
    """all: every part. last-layers: the last up block, the output norm and the output convolution."""
    if name == "all":
        own = [weight for weight, _ in unet.named_parameters(recurse=False)]
        return [*(child for child, _ in unet.named_children()), *own]
    return [f"up_blocks.{len(unet.up_blocks) - 1}", *OUTPUT]


def train_norms_safely(unet: Any) -> None:
    """Let the input of each trained group norm need a gradient too.

    torch 2.13 on a CPU, 2026-11-21: the backward pass of a channels-last group norm whose weights are trained and whose
    input needs no gradient, as at the edge of a frozen block, writes to a null pointer and ends the process.
    """
    from torch.nn import GroupNorm

    for module in unet.modules():
        if isinstance(module, GroupNorm) and module.weight.requires_grad:
            module.register_forward_pre_hook(require_input_gradient)


def require_input_gradient(norm: Any, inputs: tuple[Any]) -> tuple[Any]:
    (x,) = inputs
    crashes = norm.training and x.device.type == "cpu" and not x.requires_grad
    return (x.detach().requires_grad_(),) if crashes else inputs


def inside(name: str, blocks: Sequence[str]) -> bool:
    """Whether a module or parameter lies in one of the blocks."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def nearest(name: str, blocks: Sequence[str]) -> str | None:
    """The smallest of the blocks that a module lies in."""
    return max((block for block in blocks if inside(name, [block])), key=len, default=None)
