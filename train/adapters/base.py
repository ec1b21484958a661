"""The protocol of an adapter, and what every kind shares.

Trainable means `requires_grad`: saving, loading and counting go by that, never by matching names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from data.errors import InputError
from train.base_model import BaseModel

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from train.exports.request import Request


class Adapter(Protocol):
    """What is trained. A frozen config object; the weights live in the U-Net."""

    @property
    def label(self) -> str:
        """A short name for the run's folder, e.g. lora-r16."""
        ...

    @property
    def trains_base(self) -> bool:
        """Whether the base model's own weights change (they are then kept in float32)."""
        ...

    def attach(self, unet: UNet2DConditionModel, seed: int) -> None:
        """Make the U-Net trainable in this way; new weights are float32 and a function of the seed."""
        ...

    def export(
        self, unet: UNet2DConditionModel, base: BaseModel, folder: Path, request: Request | None = None
    ) -> list[Path]:
        """Write the trained weights in the formats that other tools load; load them back and compare.

        request: which formats, and what their headers tell; None: the default ones, telling nothing of a run.
        """
        ...


def trainable(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the network's order."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def state(unet: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable parameters on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in trainable(unet).items()}


@torch.no_grad()
def load_state(unet: nn.Module, saved: Mapping[str, Tensor], where: object) -> None:
    """Put a saved state back; every name and shape must be there, and no other. Raises InputError."""
    parameters = trainable(unet)
    odd = sorted(parameters.keys() ^ saved.keys())
    odd += [name for name in parameters if name in saved and parameters[name].shape != saved[name].shape]
    if odd:
        raise InputError(f"{len(odd)} weights do not fit this adapter, e.g. {odd[0]}", where=where)
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])
