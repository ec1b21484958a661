"""What a network is told beside x_t: the timestep as sines, a class as one more vector, or no class; and resizing.

Every network here is called `network(xt, t, labels=None)`: (B, C, H, W), (B,) int64, (B,) int64 -> (B, C', H, W).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.shapes import Timesteps

LONGEST = 10_000.0  # the slowest sine turns once in 2 pi times so many timesteps


def sinusoidal_embedding(t: Timesteps, width: int) -> Tensor:
    """(B,) -> (B, width) float32: sines, then cosines, of t at width / 2 frequencies from 1 down to 1 / LONGEST.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, as the DDPM code has it: both ends are included.
    """
    half = width // 2
    assert width == 2 * half and half > 1, f"an even width of 4 or more, not {width}"
    # w_i = LONGEST^(-i / (half - 1))
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(index * (-math.log(LONGEST) / (half - 1)))
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
    """t as sines through two layers, plus the class' vector: what every block is told. (B,), (B,) -> (B, width)."""

    def __init__(self, sines: int, width: int, classes: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.sines = sines
        self.first, self.activation, self.second = nn.Linear(sines, width), activation(), nn.Linear(width, width)
        self.classes = ClassEmbedding(classes, width) if classes else None

    def forward(self, t: Timesteps, labels: Tensor | None) -> Tensor:
        told = self.second(self.activation(self.first(sinusoidal_embedding(t, self.sines).to(self.first.weight.dtype))))
        return told if self.classes is None else told + self.classes(labels, len(t))


def upsample_nearest(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), each number four times.

    torch 2.13's compiler loses the gradient of `interpolate` for every layer below it (measured 2026-11-21, CPU, see
    train/torch_compile.py); what stands for it there has a plain sum for its backward pass.
    """
    if not torch.compiler.is_compiling():
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
    b, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
