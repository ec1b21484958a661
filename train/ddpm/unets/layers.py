"""Layers that several networks share: embeddings of timestep and class, and upsampling.

Every network here is called `network(xt, t, labels=None)`: (B, C, H, W), (B,) int64, (B,) int64 -> (B, C', H, W).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.shapes import Timesteps

MAX_PERIOD = 10_000.0  # the longest period is 2 pi times so many timesteps


def sinusoidal_embedding(t: Timesteps, width: int) -> Tensor:
    """(B,) -> (B, width) float32: sines, then cosines, of t at width / 2 frequencies from 1 down to 1 / MAX_PERIOD.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, as in the DDPM code: both ends are included.
    """
    half = width // 2
    assert width == 2 * half and half > 1, f"an even width of 4 or more, not {width}"
    # w_i = MAX_PERIOD^(-i / (half - 1))
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(index * (-math.log(MAX_PERIOD) / (half - 1)))
    angles = t.float()[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ClassEmbedding(nn.Module):
    """A vector for each class and one for "no class", which is label `count` and what labels=None means."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.table = nn.Embedding(count + 1, width)

    def forward(self, labels: Tensor | None, batch: int) -> Tensor:
        """(B,) -> (B, width)."""
        if labels is None:
            labels = torch.full((batch,), self.count, device=self.table.weight.device)
        return self.table(labels)


class TimeAndClassEmbedding(nn.Module):
    """Sinusoidal embedding of t through two layers, plus that of the class. (B,), (B,) -> (B, width)."""

    def __init__(self, sines: int, width: int, classes: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.sines = sines
        self.first, self.activation, self.second = nn.Linear(sines, width), activation(), nn.Linear(width, width)
        self.classes = ClassEmbedding(classes, width) if classes else None

    def forward(self, t: Timesteps, labels: Tensor | None) -> Tensor:
        sines = sinusoidal_embedding(t, self.sines).to(self.first.weight.dtype)
        time = self.second(self.activation(self.first(sines)))
        return time if self.classes is None else time + self.classes(labels, len(t))


def upsample_nearest(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), each value four times.

    torch 2.13's compiler loses the gradient of `interpolate` for every layer below it (measured on the CPU, 2026-11-21,
    see train/torch_compile.py); the backward pass of its replacement is a plain sum.
    """
    if not torch.compiler.is_compiling():
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
    b, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
