"""Whole models: LoRA or DoRA merged into the U-Net's weights, as a diffusers folder or a single file."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.atomic_io import atomic_folder
from data.errors import InputError
from train import adapters
from train.architecture import CLIP, OPEN_CLIP
from train.exporters import verify
from train.exporters.verify import ExportRequest
from train.model import BaseModel, weight_files
from train.run_folder import to_json


@torch.no_grad()
def merged_weights(unet: Any, base: BaseModel) -> dict[str, Tensor]:
    """Every weight by diffusers' name. Merged ones are new and float32; the others are the network's own, not copies.

    A base that was cast to half precision for training is read again, so that its rounding does not stay behind.
    """
    layers = dict(adapters.adapted_layers(unet))
    weights = base_weights(unet)
    if layers and any(tensor.dtype != torch.float32 for tensor in weights.values()):
        weights = base_weights(replace(base, dtype=torch.float32).unet)
    for name, layer in layers.items():
        weights[f"{name}.weight"] = merged_weight(layer, weights[f"{name}.weight"])
    return weights


def base_weights(unet: Any) -> dict[str, Tensor]:
    """The base's own tensors under the names that they have without an adapter."""
    state = unet.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


@torch.no_grad()
def merged_weight(layer: Any, weight: Tensor, adapter: str = "default") -> Tensor:
    """One layer's weight with its update, float32, where `weight` lies. DoRA: see train/adapters.py."""
    changed = weight.float() + lora_update(layer, weight, adapter)
    magnitude = adapters.dora_magnitudes(layer, adapter)
    if magnitude is None:
        return changed
    scale = magnitude.to(weight.device) / changed.flatten(1).norm(dim=1)
    return changed * scale.view(-1, *[1] * (weight.ndim - 1))


def lora_update(layer: Any, weight: Tensor, adapter: str) -> Tensor:
    """s B A as float32 in the weight's shape."""
    return layer.get_delta_weight(adapter).float().to(weight.device).view(weight.shape)


@torch.no_grad()
def weight_change(layer: Any, weight: Tensor, adapter: str) -> Tensor:
    """What an adapter adds to a layer's weight, float32; without DoRA to the last digit."""
    if adapters.dora_magnitudes(layer, adapter) is None:
        return lora_update(layer, weight, adapter)
    return merged_weight(layer, weight, adapter) - weight.float()


# ---- names in the original layout

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESIDUAL_NAMES = {
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
    for mine, theirs in UNET_ENDS.items():
        if name.startswith(f"{mine}."):
            return theirs + name.removeprefix(mine)
    found = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    assert found, f"{name} is no part of a Stable Diffusion v1 U-Net"
    side, level, kind, number = found[1], int(found[2] or 0), found[3], int(found[4])
    part, _, end = found[5].partition(".")
    rest = f"{RESIDUAL_NAMES[part]}.{end}" if kind == "resnets" else found[5]
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
    rest = rest.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if middle := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", rest):
        return f"{half}.mid.block_{int(middle[1]) + 1}.{middle[2]}"
    if attention := re.fullmatch(r"mid_block\.attentions\.\d\.(.+)\.(\w+)", rest):
        return f"{half}.mid.attn_1.{VAE_ATTENTION[attention[1]]}.{attention[2]}"
    if level := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest):
        number = int(level[2]) if level[1] == "down" else levels - 1 - int(level[2])
        place = f"block.{level[4]}" if level[3] == "resnets" else f"{level[1]}sample"
        return f"{half}.{level[1]}.{number}.{place}.{level[5]}"
    return f"{half}.{rest}"  # conv_in, norm_out, conv_out


def text_tensors(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The text tower's tensors, and the positions' numbers, which the original has as a tensor too."""
    named = {TEXT + name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    positions = torch.arange(config["max_position_embeddings"])[None]
    return named | {f"{TEXT}embeddings.position_ids": positions}


# ---- writing

WEIGHT_FILES = {"vae": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}
ReferenceOutput = tuple[Tensor, torch.dtype]  # of the trained network, and the coarsest precision on the way to it


def export_model(unet: Any, base: BaseModel, folder: Path, request: ExportRequest, *, folder_too: bool) -> list[Path]:
    """`model/` if folder_too, `model.safetensors` if requested. Raises InputError; only what passed gets its name."""
    trained = verify.probe_output(unet, base), verify.coarsest(next(unet.parameters()).dtype, request.dtype)
    weights = verify.cast_tensors(merged_weights(unet, base), request.dtype, folder)
    files: list[Path] = []
    if folder_too:
        files.append(folder / "model")
        write_model_folder(files[-1], weights, base, request, trained)
    if request.options.single_file:
        files.append(folder / verify.SINGLE_FILE)
        write_single_file(files[-1], weights, base, request, trained)
    return files


def write_model_folder(
    target: Path, weights: dict[str, Tensor], base: BaseModel, request: ExportRequest, trained: ReferenceOutput
) -> None:
    """diffusers' layout."""
    with verify.disk_errors(target), atomic_folder(target) as beside:
        copy_frozen_parts(base, beside, request)
        (beside / "unet").mkdir()
        shutil.copy(base.layout / "unet" / "config.json", beside / "unet")
        save_file(weights, beside / "unet" / WEIGHT_FILES["vae"], {"format": "pt"})
        loaded = diffusers.UNet2DConditionModel.from_pretrained(
            beside, subfolder="unet", use_safetensors=True, torch_dtype=request.dtype, local_files_only=True
        )
        check_same_unet(loaded, weights, base, trained, target)


def write_single_file(
    target: Path, weights: dict[str, Tensor], base: BaseModel, request: ExportRequest, trained: ReferenceOutput
) -> None:
    """The original layout, as A1111 and ComfyUI read it."""
    facts = {key: value.removesuffix("/lora") for key, value in request.facts.items() if key.startswith("modelspec.")}
    tensors = unet_tensors(weights, base.config("unet")) | frozen_tensors(base, request, target)
    with verify.verified_file(target) as beside:
        save_file(tensors, beside, facts | {"format": "pt"})
        check_single_file(beside, weights, base, request, trained, target)


def copy_frozen_parts(base: BaseModel, folder: Path, request: ExportRequest) -> None:
    """Everything but the U-Net. In fp32 the files themselves where there are files; else their numbers, rounded.

    A model that was trained at zero terminal SNR names the scheduler and settings that it must be sampled with.
    """
    shutil.copytree(base.tokenizer_source, folder / "tokenizer")
    shutil.copytree(base.layout / "scheduler", folder / "scheduler")
    shutil.copy(base.layout / "model_index.json", folder / "model_index.json")
    for part in WEIGHT_FILES:
        copy_part(base, part, folder / part, request)
    if base.zero_terminal_snr:
        config = base.scheduler_config
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index |= {"scheduler": ["diffusers", config["_class_name"]]}
        (folder / "model_index.json").write_text(to_json(index), encoding="utf-8")
        (folder / "scheduler" / "scheduler_config.json").write_text(to_json(config), encoding="utf-8")


def copy_part(base: BaseModel, part: str, target: Path, request: ExportRequest) -> None:
    if base.weights is not None:
        getattr(replace(base, dtype=request.dtype), part).save_pretrained(target)
        return
    target.mkdir()
    shutil.copy(base.layout / part / "config.json", target)
    _, files = weight_files(base.layout / part)
    if request.dtype == torch.float32 and len(files) == 1:
        shutil.copy(files[0], target / WEIGHT_FILES[part])
        return
    tensors = part_tensors(base, part)
    if request.dtype != torch.float32:
        tensors = verify.cast_tensors(tensors, request.dtype, target)
    save_file(tensors, target / WEIGHT_FILES[part], {"format": "pt"})


def part_tensors(base: BaseModel, part: str) -> dict[str, Tensor]:
    """A frozen part's tensors as they lie in its files."""
    _, files = weight_files(base.layout / part)
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def frozen_tensors(base: BaseModel, request: ExportRequest, where: Path) -> dict[str, Tensor]:
    """The autoencoder and the text tower under their original names; fp32 leaves them in the precision they have."""
    if base.weights is not None:
        prefixes = (VAE, CLIP, OPEN_CLIP)
        tensors = {key: tensor for key, tensor in load_file(base.weights).items() if key.startswith(prefixes)}
    else:
        tensors = vae_tensors(part_tensors(base, "vae"), base.config("vae"))
        tensors |= text_tensors(part_tensors(base, "text_encoder"), base.config("text_encoder"))
    if request.dtype == torch.float32:
        return {name: tensor.contiguous() for name, tensor in tensors.items()}
    return verify.cast_tensors(tensors, request.dtype, where)


# ---- proof


def differing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are missing or not the same bit for bit."""
    return [name for name in wanted if name not in found or not torch.equal(found[name], wanted[name])]


def check_same_unet(
    loaded: Any, weights: Mapping[str, Tensor], base: BaseModel, trained: ReferenceOutput, where: Path
) -> None:
    """Raises InputError unless a loaded U-Net has the weights bit for bit and answers as the trained one does."""
    found = loaded.state_dict()
    wrong = differing(found, weights)
    if wrong or found.keys() - weights.keys():
        raise InputError(f"the exported U-Net differs from the trained one in {len(wrong)} tensors", where=where)
    answer, dtype = trained
    verify.check_same_output(verify.probe_output(loaded.float().to(answer.device), base), answer, dtype, where)


def check_single_file(
    file: Path,
    weights: Mapping[str, Tensor],
    base: BaseModel,
    request: ExportRequest,
    trained: ReferenceOutput,
    where: Path,
) -> None:
    """By diffusers' own reader of single files, one part after another. Raises InputError."""
    single, own = replace(base, weights=file, dtype=request.dtype), replace(base, dtype=request.dtype)
    check_same_unet(single.unet, weights, base, trained, where)
    single.forget("unet")
    for part in WEIGHT_FILES:
        wrong = differing(getattr(single, part).state_dict(), getattr(own, part).state_dict())
        if wrong:
            raise InputError(f"the {part} differs from the base's in {len(wrong)} tensors", where=where)
        single.forget(part)
        own.forget(part)
