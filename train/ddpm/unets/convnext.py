"""The annotated-diffusion U-Net: ConvNeXt or ResNet blocks, linear attention, sinusoidal time.

Source: Rogge & Rasul 2022, "The Annotated Diffusion Model", after lucidrains/denoising-diffusion-pytorch; the form that
has ConvNeXt blocks. With width 28 and one channel: 2,996,315 parameters (full_skip=False).

Two defects are fixed. The original computes the full-size skip and never uses it; here the last block gets it
(full_skip=True). Its ResNet blocks crash at width 28, which eight groups do not divide; here a layer has as many groups
as divide it, eight at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.shapes import Timesteps
from train.ddpm.unets.layers import TimeAndClassEmbedding

HEADS, HEAD_WIDTH = 4, 32
GROUPS = 8  # of a ResNet block's norm, at most
Build = Callable[..., nn.Module]


class ConvNextBlock(nn.Module):
    """7 x 7 depthwise, then 3 x 3 wide and 3 x 3 back. After Liu et al. 2022, arXiv 2201.03545, with GroupNorm(1)."""

    def __init__(self, inside: int, outside: int, embedding_width: int = 0, *, multiple: int = 2) -> None:
        """embedding_width: width of the time embedding, 0 for a block without time."""
        super().__init__()
        self.time = nn.Linear(embedding_width, inside) if embedding_width else None
        self.depthwise = nn.Conv2d(inside, inside, 7, padding=3, groups=inside)
        wide = outside * multiple
        self.first_norm, self.first = nn.GroupNorm(1, inside), nn.Conv2d(inside, wide, 3, padding=1)
        self.second_norm, self.second = nn.GroupNorm(1, wide), nn.Conv2d(wide, outside, 3, padding=1)
        self.shortcut = shortcut(inside, outside)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.depthwise(x)
        if self.time is not None and embedding is not None:
            h = h + self.time(functional.gelu(embedding))[:, :, None, None]
        h = functional.gelu(self.first(self.first_norm(h)))
        return self.second(self.second_norm(h)) + self.shortcut(x)


class ResnetBlock(nn.Module):
    """Two convolutions with GroupNorm and SiLU. After He et al. 2015, arXiv 1512.03385.

    scale_shift: the time scales and shifts the output of the first norm, instead of being added (Nichol & Dhariwal
    2021, arXiv 2102.09672, section 6).
    """

    def __init__(self, inside: int, outside: int, embedding_width: int = 0, *, scale_shift: bool = False) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.time = nn.Linear(embedding_width, outside * (2 if scale_shift else 1)) if embedding_width else None
        self.first, self.first_norm = nn.Conv2d(inside, outside, 3, padding=1), group_norm(outside)
        self.second, self.second_norm = nn.Conv2d(outside, outside, 3, padding=1), group_norm(outside)
        self.shortcut = shortcut(inside, outside)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.first_norm(self.first(x))
        if self.time is None or embedding is None:
            h = functional.silu(h)
        elif self.scale_shift:
            scale, shift = self.time(functional.silu(embedding))[:, :, None, None].chunk(2, dim=1)
            h = functional.silu(h * (scale + 1) + shift)
        else:
            h = functional.silu(h) + self.time(functional.silu(embedding))[:, :, None, None]
        return functional.silu(self.second_norm(self.second(h))) + self.shortcut(x)


class Attention(nn.Module):
    """x + attention over all pixels of the normed x, 4 heads of 32. Source: arXiv 1706.03762, eq. 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.query_key_value = nn.Conv2d(width, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.out = nn.Conv2d(HEADS * HEAD_WIDTH, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(self.norm(x)).reshape(len(x), 3, HEADS, HEAD_WIDTH, -1)
        query, key, value = parts.unbind(dim=1)  # (B, HEADS, d, H * W) each
        # softmax(Q K^T / sqrt(d)) V
        found = functional.scaled_dot_product_attention(query.mT, key.mT, value.mT).mT
        return x + self.out(found.reshape(len(x), -1, *x.shape[2:]))


class LinearAttention(nn.Module):
    """x + attention of linear cost in the number of pixels: keys are multiplied with values first.

    Source: Shen et al. 2018, arXiv 1812.01243, section 3.2 (softmax normalisation).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.query_key_value = nn.Conv2d(width, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.out, self.out_norm = nn.Conv2d(HEADS * HEAD_WIDTH, width, 1), nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2)
        query, key, value = (
            project_heads(weight, pixels) for weight in self.query_key_value.weight.flatten(1).chunk(3)
        )
        # softmax_d(Q), softmax_n(K)
        query, key = query.softmax(dim=-2), key.softmax(dim=-1)
        # (V K^T / sqrt(d)) Q
        found = (value @ key.mT * HEAD_WIDTH**-0.5) @ query
        return x + self.out_norm(self.out(found.reshape(len(x), -1, *x.shape[2:])))


class AnnotatedUNet(nn.Module):
    """(B, channels, H, W) -> (B, out_channels, H, W); H and W are multiples of 2^(levels - 1).

    width: channels of the first level, `multiples` times that at the others. init_width: output channels of the first
    convolution, by default two thirds of width. classes: 0 for none. time: False for a network of x_t alone.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 28,
        multiples: tuple[int, ...] = (1, 2, 4),
        init_width: int | None = None,
        out_channels: int | None = None,
        block: Build = ConvNextBlock,
        classes: int = 0,
        full_skip: bool = True,
        time: bool = True,
    ) -> None:
        super().__init__()
        start = init_width or width // 3 * 2
        widths = [start, *(width * multiple for multiple in multiples)]
        levels = list(pairwise(widths))
        embedding_width = 4 * width if time else 0
        self.told = TimeAndClassEmbedding(width, embedding_width, classes, nn.GELU) if time else None
        self.full_skip = full_skip
        self.enter = nn.Conv2d(channels, start, 7, padding=3)
        self.down = nn.ModuleList([Level(inside, outside, embedding_width, block) for inside, outside in levels])
        self.shrink = nn.ModuleList([nn.Conv2d(outside, outside, 4, 2, 1) for _, outside in levels[:-1]])
        self.middle_first, self.middle_attention = block(widths[-1], widths[-1], embedding_width), Attention(widths[-1])
        self.middle_second = block(widths[-1], widths[-1], embedding_width)
        back = levels[:0:-1]
        self.up = nn.ModuleList([Level(2 * outside, inside, embedding_width, block) for inside, outside in back])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(inside, inside, 4, 2, 1) for inside, _ in back])
        self.last = block(2 * width if full_skip else width, width)
        self.leave = nn.Conv2d(width, out_channels or channels, 1)

    def forward(self, xt: Tensor, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        embedding = None if self.told is None else self.told(t, labels)
        x = self.enter(xt)
        skips: list[Tensor] = []
        for number, level in enumerate(self.down):
            x = level(x, embedding)
            skips.append(x)
            x = self.shrink[number](x) if number < len(self.shrink) else x
        x = self.middle_second(self.middle_attention(self.middle_first(x, embedding)), embedding)
        for level, grow in zip(self.up, self.grow, strict=True):
            x = grow(level(torch.cat([x, skips.pop()], dim=1), embedding))
        full = skips.pop()
        assert not skips, "every skip is used"
        return self.leave(self.last(torch.cat([x, full], dim=1) if self.full_skip else x))


class Level(nn.Module):
    """Two blocks and linear attention at one size."""

    def __init__(self, inside: int, outside: int, embedding_width: int, block: Build) -> None:
        super().__init__()
        self.first, self.second = block(inside, outside, embedding_width), block(outside, outside, embedding_width)
        self.attention = LinearAttention(outside)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return self.attention(self.second(self.first(x, embedding), embedding))


def project_heads(weight: Tensor, pixels: Tensor) -> Tensor:
    """(HEADS * d, C), (B, C, N) -> (B, HEADS, d, N): a 1 x 1 convolution whose result has each head's pixels together.

    A convolution of channels-last images would leave the heads of a pixel together, for every later step to rearrange.
    """
    return torch.bmm(weight.expand(len(pixels), -1, -1), pixels).unflatten(1, (HEADS, -1))


def group_norm(width: int) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the width, GROUPS at most."""
    return nn.GroupNorm(math.gcd(GROUPS, width), width)


def shortcut(inside: int, outside: int) -> nn.Module:
    return nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)
