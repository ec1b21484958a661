"""LoRA files as kohya's sd-scripts write them and AUTOMATIC1111 and ComfyUI read them.

`lora_unet_<layer with underscores>.lora_down.weight`, `.lora_up.weight` and `.alpha`: W' = W + alpha / rank up down,
where rank is lora_down's first size. DoRA adds `.dora_scale`, the magnitude of each row of W', as LyCORIS has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from train.adapters import dora, files
from train.exports.request import Request

Spread = tuple[dict[str, Tensor], dict[str, float]]


def write(unet: Any, file: Path, request: Request) -> None:
    """The trained adapter with its metadata, hashes included."""
    tensors = files.in_precision(layers(unet), request.dtype, file)
    tensors |= {name: tensor.float() for name, tensor in tensors.items() if name.endswith(".alpha")}
    metadata = dict(request.facts) | network_facts(unet)
    metadata |= hashes(tensors, metadata)
    file.write_bytes(save(tensors, {**metadata, "format": "pt"}))


@torch.no_grad()
def layers(unet: Any) -> dict[str, Tensor]:
    """kohya's tensors of the trained adapter.

    With ranks that differ, all layers get one alpha and lora_up takes up the difference: diffusers 0.42 looks for the
    alphas of attention layers under names that they do not have, so only an alpha that all share is sure to be read.
    """
    found: dict[str, Tensor] = {}
    alpha = shared_alpha(unet)
    for name, layer in dora.layers(unet):
        key = f"lora_unet_{name.replace('.', '_')}"
        fold = layer.scaling["default"] * layer.r["default"] / alpha
        up = layer.lora_B["default"].weight.float()
        found[f"{key}.lora_down.weight"] = layer.lora_A["default"].weight
        found[f"{key}.lora_up.weight"] = up if fold == 1 else up * fold
        found[f"{key}.alpha"] = torch.tensor(alpha)
        magnitude = dora.magnitudes(layer)
        if magnitude is not None:
            weight = layer.get_base_layer().weight
            found[f"{key}.dora_scale"] = magnitude.view(-1, *[1] * (weight.ndim - 1))
    return found


def shared_alpha(unet: Any) -> float:
    """The alpha that alpha / rank needs to be the scale in use (alpha / sqrt(rank) for rsLoRA); the largest of all."""
    return max(layer.scaling["default"] * layer.r["default"] for _, layer in dora.layers(unet))


# ---- reading


def load(unet: Any, file: Path, adapter: str = "loaded") -> None:
    """By diffusers' own converter and loader."""
    with safe_open(file, framework="pt") as opened:
        state, alphas = in_diffusers_names({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, adapter_name=adapter)


def in_diffusers_names(state: Mapping[str, Tensor]) -> Spread:
    """diffusers' names, `unet.<layer>.lora_A.weight`, and the alphas. Raises ValueError for keys that are not kohya's.

    Its pipelines leave dora_scale out before they convert; its converter does not, but keeps LyCORIS' shapes.
    """
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
    from diffusers.utils import convert_unet_state_dict_to_peft

    converted, alphas = _convert_non_diffusers_lora_to_diffusers(dict(state))
    renamed = convert_unet_state_dict_to_peft(converted)
    return {magnitude_name(key): magnitude(key, tensor) for key, tensor in renamed.items()}, alphas


def magnitude_name(key: str) -> str:
    """peft saves a layer's magnitudes without the `.weight` at their end."""
    return key.removesuffix(".weight") if key.endswith(".lora_magnitude_vector.weight") else key


def magnitude(key: str, tensor: Tensor) -> Tensor:
    """(out, 1) -> (out,), (out, 1, 1, 1) -> (1, out, 1, 1), as peft has them; other tensors as they are."""
    if ".lora_magnitude_vector" not in key:
        return tensor
    return tensor.flatten() if tensor.ndim == 2 else tensor.transpose(0, 1)


# ---- the header


def network_facts(unet: Any) -> dict[str, str]:
    """What kind of network it is: rank (Dynamic if they differ), alpha as it is in the file, and its module."""
    carrying = [layer for _, layer in dora.layers(unet)]
    ranks = {layer.r["default"] for layer in carrying}
    alpha = shared_alpha(unet)
    convolved = any(layer.get_base_layer().weight.ndim > 2 for layer in carrying)
    with_magnitude = dora.magnitudes(carrying[0]) is not None
    arguments = {"conv_dim": max(ranks), "conv_alpha": alpha} if convolved else {}
    arguments |= {"algo": "lora", "dora_wd": True, "wd_on_output": True} if with_magnitude else {}
    return {
        "ss_network_module": "lycoris.kohya" if with_magnitude else "networks.lora",
        "ss_network_dim": str(max(ranks)) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(arguments),
    }


def hashes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """sshs_*: by which A1111 knows a LoRA however its header is edited; modelspec's hash is of the same bytes.

    The legacy one is of 64 KiB of the file as it would be with the ss_* keys alone.
    """
    content = save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(content[:8], "little")
    whole = hashlib.sha256(content[start:]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return {"sshs_model_hash": whole, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{whole}"}
