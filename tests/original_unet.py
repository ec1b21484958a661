"""Stable Diffusion v1's U-Net as the original repository builds it, so that its checkpoints load under their own names.

Written from the published structure (Rombach et al. 2022, arXiv 2112.10752; CompVis' openaimodel.py and attention.py):
a reader of the original layout that shares no line with diffusers.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, outputs), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor, words: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, width: int, words: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(words, width, bias=False)
        self.to_v = nn.Linear(words, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(words), self.to_v(words))
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedGelu(width), nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, words: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(width, width, heads), Attention(width, words, heads)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = self.attn1(normed, normed) + x
        x = self.attn2(self.norm2(x), words) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, words: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, words, heads)])

    def forward(self, x: Tensor, time: Tensor, words: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x))
        rows = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            rows = block(rows, words)
        return self.proj_out(rows.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))) + x


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor, words: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, words: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Convolution(nn.Conv2d):
    def __call__(self, x: Tensor, time: Tensor, words: Tensor) -> Tensor:
        return super().__call__(x)


class OriginalUNet(nn.Module):
    """config: diffusers' config.json of the same network. Called as diffusers' is."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        widths, per_level = list(config["block_out_channels"]), config["layers_per_block"]
        self.groups, self.words, self.heads = (
            config["norm_num_groups"],
            config["cross_attention_dim"],
            config["attention_head_dim"],
        )
        self.base, self.time = widths[0], 4 * widths[0]
        self.time_embed = nn.Sequential(nn.Linear(self.base, self.time), nn.SiLU(), nn.Linear(self.time, self.time))
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([Convolution(config["in_channels"], widths[0], 3, padding=1)])]
        )
        passed, width = [widths[0]], widths[0]
        for level, kind in enumerate(config["down_block_types"]):
            for _ in range(per_level):
                self.input_blocks.append(self.block(width, widths[level], "CrossAttn" in kind))
                width = widths[level]
                passed.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(width)]))
                passed.append(width)
        self.middle_block = nn.ModuleList([*self.block(width, width, True), *self.block(width, width, False)])
        self.output_blocks = nn.ModuleList()
        for level, kind in enumerate(config["up_block_types"]):
            for number in range(per_level + 1):
                wide = widths[::-1][level]
                parts = self.block(width + passed.pop(), wide, "CrossAttn" in kind)
                width = wide
                if number == per_level and level < len(widths) - 1:
                    parts.append(Upsample(width))
                self.output_blocks.append(parts)
        self.out = nn.Sequential(
            nn.GroupNorm(self.groups, width), nn.SiLU(), nn.Conv2d(width, config["out_channels"], 3, padding=1)
        )

    def block(self, inputs: int, outputs: int, attends: bool) -> nn.ModuleList:
        parts = nn.ModuleList([ResBlock(inputs, outputs, self.time, self.groups)])
        if attends:
            parts.append(SpatialTransformer(outputs, self.words, self.heads, self.groups))
        return parts

    def load(self, checkpoint: Mapping[str, Tensor]) -> None:
        """A single-file checkpoint's U-Net: every name must be there, and no other."""
        prefix = "model.diffusion_model."
        own = {key.removeprefix(prefix): tensor for key, tensor in checkpoint.items() if key.startswith(prefix)}
        self.load_state_dict(own, strict=True)

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        half = self.base // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        kept: list[Tensor] = []
        for parts in self.input_blocks:
            for part in parts:  # type: ignore[attr-defined]
                x = part(x, time, encoder_hidden_states)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, time, encoder_hidden_states)
        for parts in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for part in parts:  # type: ignore[attr-defined]
                x = part(x, time, encoder_hidden_states)
        return (self.out(x),)
