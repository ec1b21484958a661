"""Full fine-tuning: every weight of the U-Net, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data.files import replaced_folder
from data.options import Options

if TYPE_CHECKING:  # the flags are read before torch is loaded
    from diffusers import UNet2DConditionModel

    from train.base_model import BaseModel


class Full(Options):
    """Train the whole U-Net. Learns most and forgets most; exports a whole model."""

    kind: Literal["full"] = "full"
    """what is trained: a low-rank adapter (lora) or the whole U-Net (full)"""

    @property
    def label(self) -> str:
        return "full"

    @property
    def trains_base(self) -> bool:
        return True

    def attach(self, unet: UNet2DConditionModel, seed: int) -> None:
        unet.float().requires_grad_(True)

    def export(self, unet: UNet2DConditionModel, base: BaseModel, folder: Path) -> list[Path]:
        """`model/`: a diffusers folder with the trained U-Net; the frozen parts are the base's own files."""
        from train.adapters import files

        target = folder / "model"
        with files.written(target), replaced_folder(target) as beside:
            files.copy_frozen_parts(base, beside)
            unet.save_pretrained(beside / "unet", safe_serialization=True, max_shard_size="100GB")
            files.check_unet(beside, unet)
        return [target]
