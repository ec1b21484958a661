"""Full fine-tuning: every weight of the U-Net, or of some of its blocks, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from data.errors import InputError
from data.options import Options
from train.adapters import blocks

if TYPE_CHECKING:  # the flags are read before torch is loaded
    from diffusers import UNet2DConditionModel

    from train.base_model import BaseModel
    from train.exports.request import Request

NAMED = 3  # blocks that fit in a folder's name


class Full(Options):
    """Train the U-Net itself. Learns most and forgets most; exports a whole model."""

    kind: Literal["full"] = "full"
    """what is trained: a low-rank adapter (lora) or the U-Net itself (full)"""
    blocks: list[str] = Field(default=["all"])
    """blocks that are trained: all, last-layers, or names such as up_blocks.3, mid_block, conv_out; may be repeated"""

    @field_validator("blocks")
    @classmethod
    def not_empty(cls, names: list[str]) -> list[str]:
        if not names:
            raise InputError("no blocks are chosen", where="--adapter.blocks", allowed=blocks.ALLOWED)
        return names

    @property
    def label(self) -> str:
        if "all" in self.blocks:
            return "full"
        named = len(self.blocks) <= NAMED
        return "full-" + ("-".join(self.blocks) if named else f"{len(self.blocks)}-blocks")

    @property
    def trains_base(self) -> bool:
        return True

    def attach(self, unet: UNet2DConditionModel, seed: int) -> None:
        """The chosen blocks become trainable. All weights are float32, which keeps each number of a half base."""
        chosen = blocks.resolve(unet, self.blocks, "--adapter.blocks")
        unet.float()
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(blocks.inside(name, chosen))
        blocks.train_norms_safely(unet)

    def export(
        self, unet: UNet2DConditionModel, base: BaseModel, folder: Path, request: Request | None = None
    ) -> list[Path]:
        """`model/`: a diffusers folder with the trained U-Net; frozen parts are the base's own. See train/exports."""
        from train.exports import models
        from train.exports.request import Request

        return models.export(unet, base, folder, request or Request(), folder_too=True)
