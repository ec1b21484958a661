"""What a LoRA does to the networks it is laid over: its share of each block's weights, and of the predicted noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from data import seeds

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from data.shapes import Latents

WORDS = "a picture"  # that the probe is asked for
SIDE = 16  # of the probe's latents at most: the effect is looked for, not a picture


def block_of(layer: str) -> str:
    """unet.down_blocks.0.attentions... -> down 0; the text encoder is one block."""
    network, kind, place, *_ = f"{layer}...".split(".")
    if network != "unet":
        return "text"
    return {"down_blocks": f"down {place}", "up_blocks": f"up {place}", "mid_block": "middle"}.get(kind, "other")


def by_block(changes: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """(layer, squared norm of its change, of its weights) -> the share that changes, for each block in order."""
    sums: dict[str, tuple[float, float]] = {}
    for layer, change, weights in changes:
        before = sums.get(block_of(layer), (0.0, 0.0))
        sums[block_of(layer)] = (before[0] + change, before[1] + weights)
    return {block: math.sqrt(change / weights) if weights else math.inf for block, (change, weights) in sums.items()}


class Probe:
    """One question to the U-Net, always the same: noise halfway, and a few words."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.pipe = pipe
        unet = pipe.unet
        least = 2 ** (len(unet.config.block_out_channels) - 1)
        side = max(least, min(SIDE, unet.config.sample_size) // least * least)
        noise = seeds.normal((1, unet.config.in_channels, side, side), "LoRA probe")
        self.latents = noise.to(pipe.device, unet.dtype)
        self.timestep = pipe.scheduler.config.num_train_timesteps // 2

    @torch.no_grad()
    def __call__(self) -> Latents:
        """The prediction with whatever the networks wear now, in float32."""
        states = self.pipe.encode_prompt(WORDS, self.pipe.device, 1, False)[0]
        return self.pipe.unet(self.latents, self.timestep, encoder_hidden_states=states, return_dict=False)[0].float()


def share(changed: Latents, base: Latents) -> float:
    """The norm of the change over the norm of what is changed."""
    return ((changed - base).norm() / base.norm()).item()
