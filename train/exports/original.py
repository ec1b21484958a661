"""Names of the original Stable Diffusion v1 checkpoints (the CompVis repository) for diffusers' tensors.

`model.diffusion_model.*` the U-Net, `first_stage_model.*` the autoencoder, `cond_stage_model.transformer.*` the text
tower. The U-Net's blocks are numbered through: one number for each residual block and each change of size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {  # the names of diffusers today, and those in SD v1.4's own folder
    **{"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},
}


def unet_tensors(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A U-Net's tensors under their original names."""
    per_level = config["layers_per_block"]
    attending = {name.split(".attentions")[0] for name in weights if ".attentions." in name}
    return {UNET + unet_name(name, per_level, attending): tensor for name, tensor in weights.items()}


def unet_name(name: str, per_level: int, attending: set[str]) -> str:
    """One name without prefix. per_level: residual blocks of a level going down. attending: blocks with attention."""
    for mine, theirs in ENDS.items():
        if name.startswith(f"{mine}."):
            return theirs + name.removeprefix(mine)
    found = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    assert found, f"{name} is no part of a Stable Diffusion v1 U-Net"
    side, level, kind, number = found[1], int(found[2] or 0), found[3], int(found[4])
    rest = residual(found[5]) if kind == "resnets" else found[5]
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    first = level * (per_level + 1)  # number of the level's first block
    if kind == "downsamplers":
        return f"input_blocks.{first + per_level + 1}.0.{rest.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        return f"output_blocks.{first + per_level}.{2 if f'{side}.{level}' in attending else 1}.{rest}"
    down = side == "down_blocks"  # input_blocks.0 is conv_in
    column = 1 if kind == "attentions" else 0
    return f"{'input' if down else 'output'}_blocks.{first + number + down}.{column}.{rest}"


def residual(rest: str) -> str:
    """conv1.weight -> in_layers.2.weight."""
    part, _, end = rest.partition(".")
    return f"{RESIDUAL[part]}.{end}"


def vae_tensors(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """An autoencoder's tensors under their original names; its attention is made of 1x1 convolutions there."""
    levels = len(config["block_out_channels"])
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        linear = ".attentions." in name and tensor.ndim == 2
        found[VAE + vae_name(name, levels)] = tensor[:, :, None, None] if linear else tensor
    return found


def vae_name(name: str, levels: int) -> str:
    """One name without prefix. Going up, the original counts the levels from the last one."""
    half, _, rest = name.partition(".")
    if half not in {"encoder", "decoder"}:
        return name  # quant_conv, post_quant_conv
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", rest)
    level = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest)
    if middle and middle[1] == "attentions":
        part, end = middle[3].rsplit(".", 1)
        return f"{half}.mid.attn_1.{VAE_ATTENTION[part]}.{end}"
    if middle:
        return f"{half}.mid.block_{int(middle[2]) + 1}.{shortcut(middle[3])}"
    if level:
        number = int(level[2]) if level[1] == "down" else levels - 1 - int(level[2])
        place = f"block.{level[4]}" if level[3] == "resnets" else f"{level[1]}sample"
        return f"{half}.{level[1]}.{number}.{place}.{shortcut(level[5])}"
    return f"{half}.{rest.replace('conv_norm_out', 'norm_out')}"  # conv_in, conv_norm_out, conv_out


def shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")


def text_tensors(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The text tower's tensors, and the positions' numbers, which the original has as a tensor too."""
    named = {TEXT + name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    positions = torch.arange(config["max_position_embeddings"])[None]
    return named | {f"{TEXT}embeddings.position_ids": positions}
