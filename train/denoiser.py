"""The only caller of the U-Net: everyone else asks a Denoiser and never sees memory formats or tuples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from data.shapes import Latents, TextStates, Timesteps


@dataclass(frozen=True)
class Denoiser:
    """A U-Net, perhaps wrapped by accelerate (autocast, data parallel).

    (B, C, h, w) noisy latents, (B,) timesteps, (B, L, D) text states -> (B, C, h, w) float32: what the network was
    trained to predict (eps, v or x_0).
    """

    unet: nn.Module

    def __call__(self, noisy: Latents, t: Timesteps, states: TextStates) -> Latents:
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        dtype = next(self.unet.parameters()).dtype if not torch.is_autocast_enabled() else noisy.dtype
        (predicted,) = self.unet(noisy.to(dtype), t, encoder_hidden_states=states.to(dtype), return_dict=False)
        return predicted.float()
