"""The U-Net of Ho et al. 2020, arXiv 2006.11239, appendix B: 35,746,307 parameters for CIFAR-10.

Four sizes with 128, 256, 256, 256 channels, two residual blocks each (three on the way up), self-attention at the
second, GroupNorm(32), dropout, the last convolution of every block and of the network initialised to zero, so that an
untrained one predicts 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.shapes import Timesteps
from train.ddpm.unets.layers import TimeAndClassEmbedding, upsample_nearest

EPSILON = 1e-6  # of every norm


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, add the time; norm, SiLU, dropout, convolution; add the input."""

    def __init__(self, inside: int, outside: int, embedding_width: int, *, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = paper_norm(groups, inside), conv3x3(inside, outside)
        self.time = nn.Linear(embedding_width, outside)
        self.norm2, self.conv2 = paper_norm(groups, outside), zero_init(conv3x3(outside, outside))
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time(functional.silu(embedding))[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return h + self.shortcut(x)


class SelfAttention(nn.Module):
    """One head over all pixels. Source: arXiv 1706.03762, eq. 1."""

    def __init__(self, width: int, *, groups: int) -> None:
        super().__init__()
        self.norm = paper_norm(groups, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, high, wide = x.shape
        pixels = self.norm(x).reshape(batch, width, high * wide).mT
        # softmax(Q K^T / sqrt(d)) V
        found = functional.scaled_dot_product_attention(self.query(pixels), self.key(pixels), self.value(pixels))
        return x + self.out(found).mT.reshape(batch, width, high, wide)


class Level(nn.Module):
    """The blocks of one size, with attention after each or after none, and the change of size after them."""

    def __init__(self, blocks: list[ResidualBlock], attentions: list[SelfAttention], resize: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resize = resize

    def at(self, number: int, x: Tensor, embedding: Tensor) -> Tensor:
        """x after the numbered block."""
        x = self.blocks[number](x, embedding)
        return self.attentions[number](x) if len(self.attentions) else x


class Downsample(nn.Module):
    """Half the size by a strided convolution, padded at the right and below only, like TensorFlow's SAME."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: nearest-neighbour upsampling, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(upsample_nearest(x))


class PaperUNet(nn.Module):
    """(B, channels, H, W) -> (B, out_channels, H, W); H and W are multiples of 2^(levels - 1).

    attention: the levels that have it, 0 being the full size. groups: of the norms; it divides every width.
    """

    def __init__(
        self,
        channels: int,
        *,
        widths: tuple[int, ...] = (128, 256, 256, 256),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        groups: int = 32,
        dropout: float = 0.1,
        out_channels: int | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        first, last, embedding_width = widths[0], widths[-1], 4 * widths[0]
        self.told = TimeAndClassEmbedding(first, embedding_width, classes, nn.SiLU)
        self.enter = conv3x3(channels, first)
        entering = [first, *widths[:-1]]  # input channels of each level on the way down

        def block(inside: int, outside: int) -> ResidualBlock:
            return ResidualBlock(inside, outside, embedding_width, groups=groups, dropout=dropout)

        def attentions(level: int, count: int) -> list[SelfAttention]:
            return [SelfAttention(widths[level], groups=groups) for _ in range(count * (level in attention))]

        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            column = [block(entering[level] if number == 0 else width, width) for number in range(blocks)]
            shrink = Downsample(width) if level < len(widths) - 1 else None
            self.down.append(Level(column, attentions(level, blocks), shrink))
        self.middle = nn.ModuleList([block(last, last), SelfAttention(last, groups=groups), block(last, last)])
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            below = widths[min(level + 1, len(widths) - 1)]
            skips = [*[widths[level]] * blocks, entering[level]]
            inside = [below, *[widths[level]] * blocks]
            column = [block(h + skip, widths[level]) for h, skip in zip(inside, skips, strict=True)]
            self.up.append(Level(column, attentions(level, blocks + 1), Upsample(widths[level]) if level else None))
        self.norm, self.leave = paper_norm(groups, first), zero_init(conv3x3(first, out_channels or channels))

    def forward(self, xt: Tensor, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        embedding = self.told(t, labels)
        x = self.enter(xt)
        skips = [x]
        for level in self.down:
            assert isinstance(level, Level)
            for number in range(len(level.blocks)):
                x = level.at(number, x, embedding)
                skips.append(x)
            if level.resize is not None:
                x = level.resize(x)
                skips.append(x)
        before, attention, after = self.middle
        x = after(attention(before(x, embedding)), embedding)
        for level in self.up:
            assert isinstance(level, Level)
            for number in range(len(level.blocks)):
                x = level.at(number, torch.cat([x, skips.pop()], dim=1), embedding)
            x = x if level.resize is None else level.resize(x)
        assert not skips, "every skip is used"
        return self.leave(functional.silu(self.norm(x)))


def paper_norm(groups: int, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=EPSILON)


def conv3x3(inside: int, outside: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size."""
    return nn.Conv2d(inside, outside, 3, padding=1)


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The layer with its weights and biases set to 0."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
