"""What is trained: the whole U-Net, some of its blocks, or a low-rank adapter (train/lora.py).

To add a kind: its options as a class in train/config.py, and its functions in INJECT and EXPORT.
Trainable means `requires_grad`: saving, loading and counting go by that, never by matching names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import InputError
from train import lora
from train.config import AdapterOptions, FullOptions
from train.exporters import full_model, lora_files
from train.exporters.verify import ExportRequest
from train.model import BaseModel


def inject(unet: Any, options: AdapterOptions, seed: int) -> None:
    """Make a frozen U-Net trainable; new weights are float32 and a function of the seed."""
    INJECT[options.kind](unet, options, seed)


def unfreeze(unet: Any, options: FullOptions, seed: int) -> None:
    """Train the chosen blocks. All weights become float32, which keeps each number of a half-precision base."""
    chosen = lora.resolve_blocks(unet, options.blocks, "--adapter.blocks")
    unet.float()
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(lora.is_inside(name, chosen))
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm) and module.weight.requires_grad:
            module.register_forward_pre_hook(require_input_gradient)


def require_input_gradient(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Let the input of a trained group norm need a gradient too, as torch 2.13 on a CPU (2026-11-21) crashes otherwise:
    with channels-last input from a frozen block, its backward pass writes to a null pointer.
    """
    (x,) = inputs
    crashes = norm.training and x.device.type == "cpu" and not x.requires_grad
    return (x.detach().requires_grad_(),) if crashes else inputs


def export(
    unet: Any, base: BaseModel, folder: Path, options: AdapterOptions, request: ExportRequest | None = None
) -> list[Path]:
    """Write the trained weights in the formats that other tools load; load them back and compare. Raises InputError.

    request: which formats, and the metadata for their headers; None: the default formats without metadata of a run.
    """
    return EXPORT[options.kind](unet, base, folder, request or ExportRequest())


def export_full(unet: Any, base: BaseModel, folder: Path, request: ExportRequest) -> list[Path]:
    """`model/`: a diffusers folder with the trained U-Net; frozen parts are the base's own."""
    return full_model.export_model(unet, base, folder, request, folder_too=True)


def export_lora(unet: Any, base: BaseModel, folder: Path, request: ExportRequest) -> list[Path]:
    """`lora.safetensors` (diffusers) and `lora-kohya.safetensors`; merged models if requested."""
    files = lora_files.export_lora(unet, base, folder, request)
    return files + full_model.export_model(unet, base, folder, request, folder_too=request.options.merge)


INJECT: dict[str, Callable[[Any, Any, int], None]] = {"lora": lora.inject_lora, "full": unfreeze}
EXPORT: dict[str, Callable[[Any, BaseModel, Path, ExportRequest], list[Path]]] = {
    "lora": export_lora,
    "full": export_full,
}


def trainable_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the network's order."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def trainable_state(unet: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable parameters on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in trainable_parameters(unet).items()}


@torch.no_grad()
def load_trainable_state(unet: nn.Module, saved: Mapping[str, Tensor], where: object) -> None:
    """Restore a saved state; every name and shape must match. Raises InputError."""
    parameters = trainable_parameters(unet)
    wrong = sorted(parameters.keys() ^ saved.keys())
    wrong += [name for name in parameters if name in saved and parameters[name].shape != saved[name].shape]
    if wrong:
        raise InputError(f"{len(wrong)} weights do not fit this adapter, e.g. {wrong[0]}", where=where)
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])
