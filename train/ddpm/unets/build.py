"""diffusers' UNet2DModel behind the same call, as the course's second network: it is told t and predicts eps."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from data.shapes import Timesteps


class DiffusersUNet(nn.Module):
    """UNet2DModel of the given settings; label `classes` means no class, as does labels=None."""

    def __init__(self, classes: int = 0, **settings: Any) -> None:
        super().__init__()
        self.classes = classes
        self.unet = UNet2DModel(num_class_embeds=classes + 1 if classes else None, **settings)

    def forward(self, xt: Tensor, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        if self.classes and labels is None:
            labels = torch.full_like(t, self.classes)
        return self.unet(xt, t, class_labels=labels, return_dict=False)[0]
