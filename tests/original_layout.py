"""A model's tensors as a single-file checkpoint has them: the layout of the CompVis latent-diffusion repository.

The names run the other way than in diffusers' own converter, which reads them, so that each checks the other.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def weights_of(folder: Path, part: str) -> Path:
    (file,) = (folder / part).glob("*.safetensors")
    return file


def original_unet(name: str, layers: int) -> str:
    """diffusers' name of a U-Net tensor -> its name in a single-file checkpoint, for any number of levels."""
    ends = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for mine, theirs in ends.items():
        if name.startswith(f"{mine}."):
            return theirs + name.removeprefix(mine)
    side, level, kind, number, rest = split(name)
    if side == "mid_block":
        block = 1 if kind == "attentions" else 2 * number
        return f"middle_block.{block}.{inner(rest)}"
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (level + 1)}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * level + layers}.UP.{rest}"
    column = 1 if kind == "attentions" else 0
    if side == "down_blocks":
        return f"input_blocks.{(layers + 1) * level + number + 1}.{column}.{inner(rest)}"
    return f"output_blocks.{(layers + 1) * level + number}.{column}.{inner(rest)}"


def split(name: str) -> tuple[str, int, str, int, str]:
    """down_blocks.1.resnets.0.conv1.weight -> (down_blocks, 1, resnets, 0, conv1.weight); the middle is level 0."""
    found = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    assert found, name
    side, level, kind, number, rest = found.groups()
    return side, int(level or 0), kind, int(number), rest


RESIDUAL = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}


def inner(rest: str) -> str:
    """Inside a residual block; inside an attention block both layouts have the same names."""
    return next((theirs + rest.removeprefix(mine) for mine, theirs in RESIDUAL.items() if rest.startswith(mine)), rest)


def original_vae(name: str, levels: int) -> str:
    """diffusers' name of an autoencoder tensor -> its name in a single-file checkpoint."""
    half, _, rest = name.partition(".")
    if half not in {"encoder", "decoder"}:
        return name  # quant_conv, post_quant_conv
    rest = rest.replace("conv_norm_out.", "norm_out.").replace("conv_shortcut.", "nin_shortcut.")
    rest = rest.replace("mid_block.resnets.0.", "mid.block_1.").replace("mid_block.resnets.1.", "mid.block_2.")
    rest = rest.replace("mid_block.attentions.0.", "mid.attn_1.")
    for mine, theirs in {
        "group_norm.": "norm.",
        "to_q.": "q.",
        "to_k.": "k.",
        "to_v.": "v.",
        "to_out.0.": "proj_out.",
    }.items():
        rest = rest.replace(mine, theirs)
    rest = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", rest)
    rest = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", rest)
    rest = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{levels - 1 - int(found[1])}.block.", rest)
    rest = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{levels - 1 - int(found[1])}.upsample.", rest
    )
    return f"{half}.{rest}"


def original_unet_names(folder: Path) -> dict[str, str]:
    """diffusers' name of each of a folder's U-Net tensors -> its name in a single-file checkpoint."""
    names = {name: original_unet(name, 1) for name in load_file(weights_of(folder, "unet"))}
    beside = {re.match(r"output_blocks\.\d+", name)[0] for name in names.values() if is_attention_going_up(name)}  # type: ignore[index]
    found: dict[str, str] = {}
    for mine, theirs in names.items():
        column = "2" if theirs.partition(".UP.")[0] in beside else "1"  # upsampling comes after the attention, if any
        found[mine] = f"model.diffusion_model.{theirs.replace('.UP.', f'.{column}.')}"
    return found


def is_attention_going_up(name: str) -> bool:
    return name.startswith("output_blocks.") and ".1.transformer_blocks" in name


def original_layout(folder: Path) -> dict[str, Tensor]:
    """A diffusers folder's tensors under the names (and, for the VAE's attention, the shapes) of a single file."""
    names = original_unet_names(folder)
    found = {names[name]: tensor for name, tensor in load_file(weights_of(folder, "unet")).items()}
    for name, tensor in load_file(weights_of(folder, "vae")).items():
        as_convolution = ".attentions.0." in name and "group_norm" not in name and name.endswith("weight")
        found[f"first_stage_model.{original_vae(name, 3)}"] = tensor[..., None, None] if as_convolution else tensor
    for name, tensor in load_file(weights_of(folder, "text_encoder")).items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    found["model_ema.decay"] = torch.tensor(0.9999)  # as in SD v1.4's own file: neither is any part's
    found["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return found


def merge_kohya(folder: Path, lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """A folder's model in the original layout with a kohya LoRA in its weights: W + alpha / rank up down, and DoRA."""
    weights = original_layout(folder)
    flat = {
        mine.removesuffix(".weight").replace(".", "_"): theirs for mine, theirs in original_unet_names(folder).items()
    }
    layers = {key.partition(".")[0] for key in lora}
    for layer in layers:
        down, up = lora[f"{layer}.lora_down.weight"], lora[f"{layer}.lora_up.weight"]
        name = flat[layer.removeprefix("lora_unet_")]
        scale = float(lora[f"{layer}.alpha"]) / down.shape[0]
        changed = weights[name] + scale * (up.flatten(1) @ down.flatten(1)).view_as(weights[name])
        if f"{layer}.dora_scale" in lora:
            rows = changed.flatten(1).norm(dim=1).view(-1, *[1] * (changed.ndim - 1))
            changed = changed * (lora[f"{layer}.dora_scale"] / rows)
        weights[name] = changed
    return weights
