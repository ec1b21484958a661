"""The U-Net of annotated-diffusion as published, with its two defects: what ours is compared with.

Only `rearrange` is written as reshape, and the modules that ConvNeXt blocks do not use are left out.
"""

import math
import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, einsum, nn


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn, self.norm = fn, nn.GroupNorm(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class SinusoidalPositionEmbeddings(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, time: Tensor) -> Tensor:
        half_dim = self.dim // 2
        scale = math.log(10000) / (half_dim - 1)
        embeddings = torch.exp(torch.arange(half_dim) * -scale)
        embeddings = time[:, None] * embeddings[None, :]
        return torch.cat((embeddings.sin(), embeddings.cos()), dim=-1)


class ConvNextBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, *, time_emb_dim: int | None = None, mult: int = 2) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(time_emb_dim, dim)) if time_emb_dim else None
        self.ds_conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.net = nn.Sequential(
            nn.GroupNorm(1, dim),
            nn.Conv2d(dim, dim_out * mult, 3, padding=1),
            nn.GELU(),
            nn.GroupNorm(1, dim_out * mult),
            nn.Conv2d(dim_out * mult, dim_out, 3, padding=1),
        )
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        h = self.ds_conv(x)
        if self.mlp is not None and time_emb is not None:
            h = h + self.mlp(time_emb)[:, :, None, None]
        return self.net(h) + self.res_conv(x)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.scale, self.heads = dim_head**-0.5, heads
        self.to_qkv = nn.Conv2d(dim, dim_head * heads * 3, 1, bias=False)
        self.to_out: nn.Module = nn.Conv2d(dim_head * heads, dim, 1)

    def parts(self, x: Tensor) -> list[Tensor]:
        b, _, h, w = x.shape
        return [part.reshape(b, self.heads, -1, h * w) for part in self.to_qkv(x).chunk(3, dim=1)]

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.parts(x)
        sim = einsum("b h d i, b h d j -> b h i j", q * self.scale, k)
        sim = sim - sim.amax(dim=-1, keepdim=True).detach()
        out = einsum("b h i j, b h d j -> b h i d", sim.softmax(dim=-1), v)
        return self.to_out(out.transpose(2, 3).reshape(b, -1, h, w))


class LinearAttention(Attention):
    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__(dim, heads, dim_head)
        self.to_out = nn.Sequential(nn.Conv2d(dim_head * heads, dim, 1), nn.GroupNorm(1, dim))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.parts(x)
        q, k = q.softmax(dim=-2) * self.scale, k.softmax(dim=-1)
        context = einsum("b h d n, b h e n -> b h d e", k, v)
        return self.to_out(einsum("b h d e, b h d n -> b h e n", context, q).reshape(b, -1, h, w))


class Unet(nn.Module):
    def __init__(self, dim: int, dim_mults: tuple[int, ...] = (1, 2, 4, 8), channels: int = 3) -> None:
        super().__init__()
        init_dim = dim // 3 * 2
        self.init_conv = nn.Conv2d(channels, init_dim, 7, padding=3)
        dims = [init_dim, *(dim * m for m in dim_mults)]
        in_out = list(pairwise(dims))
        time = dim * 4
        self.time_mlp = nn.Sequential(
            SinusoidalPositionEmbeddings(dim), nn.Linear(dim, time), nn.GELU(), nn.Linear(time, time)
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for ind, (dim_in, dim_out) in enumerate(in_out):
            is_last = ind >= len(in_out) - 1
            self.downs.append(
                nn.ModuleList([
                    ConvNextBlock(dim_in, dim_out, time_emb_dim=time),
                    ConvNextBlock(dim_out, dim_out, time_emb_dim=time),
                    Residual(PreNorm(dim_out, LinearAttention(dim_out))),
                    nn.Identity() if is_last else nn.Conv2d(dim_out, dim_out, 4, 2, 1),
                ])
            )  # fmt: skip
        mid = dims[-1]
        self.mid_block1 = ConvNextBlock(mid, mid, time_emb_dim=time)
        self.mid_attn = Residual(PreNorm(mid, Attention(mid)))
        self.mid_block2 = ConvNextBlock(mid, mid, time_emb_dim=time)
        for dim_in, dim_out in reversed(in_out[1:]):
            self.ups.append(
                nn.ModuleList([
                    ConvNextBlock(dim_out * 2, dim_in, time_emb_dim=time),
                    ConvNextBlock(dim_in, dim_in, time_emb_dim=time),
                    Residual(PreNorm(dim_in, LinearAttention(dim_in))),
                    nn.ConvTranspose2d(dim_in, dim_in, 4, 2, 1),
                ])
            )  # fmt: skip
        self.final_conv = nn.Sequential(ConvNextBlock(dim, dim), nn.Conv2d(dim, channels, 1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.init_conv(x)
        t = self.time_mlp(time)
        h = []
        for block1, block2, attn, downsample in self.downs:  # type: ignore[misc]
            x = attn(block2(block1(x, t), t))
            h.append(x)
            x = downsample(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, t)), t)
        for block1, block2, attn, upsample in self.ups:  # type: ignore[misc]
            x = torch.cat((x, h.pop()), dim=1)
            x = upsample(attn(block2(block1(x, t), t)))
        return self.final_conv(x)


RENAMED = (
    (r"^init_conv\.", "enter."),
    (r"^time_mlp\.1\.", "told.first."),
    (r"^time_mlp\.3\.", "told.second."),
    (r"^downs\.(\d+)\.3\.", r"shrink.\1."),
    (r"^ups\.(\d+)\.3\.", r"grow.\1."),
    (r"^downs\.", "down."),
    (r"^ups\.", "up."),
    (r"^(down|up)\.(\d+)\.0\.", r"\1.\2.first."),
    (r"^(down|up)\.(\d+)\.1\.", r"\1.\2.second."),
    (r"^(down|up)\.(\d+)\.2\.", r"\1.\2.attention."),
    (r"^mid_block1\.", "middle_first."),
    (r"^mid_attn\.", "middle_attention."),
    (r"^mid_block2\.", "middle_second."),
    (r"^final_conv\.0\.", "last."),
    (r"^final_conv\.1\.", "leave."),
    (r"\.fn\.norm\.", ".norm."),
    (r"\.fn\.fn\.", "."),
    (r"\.to_qkv\.", ".query_key_value."),
    (r"^(middle_attention)\.to_out\.", r"\1.out."),
    (r"\.to_out\.0\.", ".out."),
    (r"\.to_out\.1\.", ".out_norm."),
    (r"\.mlp\.1\.", ".time."),
    (r"\.ds_conv\.", ".depthwise."),
    (r"\.net\.0\.", ".first_norm."),
    (r"\.net\.1\.", ".first."),
    (r"\.net\.3\.", ".second_norm."),
    (r"\.net\.4\.", ".second."),
    (r"\.res_conv\.", ".shortcut."),
)


def ported(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published network's weights under the names of train/ddpm/unets/convnext.py."""
    return {ours(name): weight for name, weight in weights.items()}


def ours(name: str) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name
