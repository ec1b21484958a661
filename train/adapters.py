"""The protocol of an adapter, and what every kind shares.

Trainable means `requires_grad`: saving, loading and counting go by that, never by matching names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from data.cli import Options
from data.errors import InputError
from train import lora
from train.lora import LoraOptions
from train.model import BaseModel

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from train.exporters.verify import ExportRequest


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
        self, unet: UNet2DConditionModel, base: BaseModel, folder: Path, request: ExportRequest | None = None
    ) -> list[Path]:
        """Write the trained weights in the formats that other tools load; load them back and compare.

        request: which formats, and what their headers tell; None: the default ones, telling nothing of a run.
        """
        ...


def trainable_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the network's order."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def trainable_state(unet: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable parameters on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in trainable_parameters(unet).items()}


@torch.no_grad()
def load_trainable_state(unet: nn.Module, saved: Mapping[str, Tensor], where: object) -> None:
    """Put a saved state back; every name and shape must be there, and no other. Raises InputError."""
    parameters = trainable_parameters(unet)
    odd = sorted(parameters.keys() ^ saved.keys())
    odd += [name for name in parameters if name in saved and parameters[name].shape != saved[name].shape]
    if odd:
        raise InputError(f"{len(odd)} weights do not fit this adapter, e.g. {odd[0]}", where=where)
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])


NAMED_BLOCKS = 3  # blocks that fit in a folder's name


class FullOptions(Options):
    """Train the U-Net itself. Learns most and forgets most; exports a whole model."""

    kind: Literal["full"] = "full"
    """what is trained: a low-rank adapter (lora) or the U-Net itself (full)"""
    blocks: list[str] = Field(default=["all"])
    """blocks that are trained: all, last-layers, or names such as up_blocks.3, mid_block, conv_out; may be repeated"""

    @field_validator("blocks")
    @classmethod
    def not_empty(cls, names: list[str]) -> list[str]:
        if not names:
            raise InputError("no blocks are chosen", where="--adapter.blocks", allowed=lora.ALLOWED_BLOCKS)
        return names

    @property
    def label(self) -> str:
        if "all" in self.blocks:
            return "full"
        named = len(self.blocks) <= NAMED_BLOCKS
        return "full-" + ("-".join(self.blocks) if named else f"{len(self.blocks)}-blocks")

    @property
    def trains_base(self) -> bool:
        return True

    def attach(self, unet: UNet2DConditionModel, seed: int) -> None:
        """The chosen blocks become trainable. All weights are float32, which keeps each number of a half base."""
        chosen = lora.resolve_blocks(unet, self.blocks, "--adapter.blocks")
        unet.float()
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(lora.is_inside(name, chosen))
        lora.fix_group_norm_backward(unet)

    def export(
        self, unet: UNet2DConditionModel, base: BaseModel, folder: Path, request: ExportRequest | None = None
    ) -> list[Path]:
        """`model/`: a diffusers folder with the trained U-Net; frozen parts are the base's own. See train/exports."""
        from train.exporters import full_model
        from train.exporters.verify import ExportRequest

        return full_model.export_model(unet, base, folder, request or ExportRequest(), folder_too=True)


AdapterOptions = Annotated[FullOptions | LoraOptions, Field(discriminator="kind")]
