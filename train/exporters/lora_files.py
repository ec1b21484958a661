"""LoRA files as kohya's sd-scripts write them and AUTOMATIC1111 and ComfyUI read them.

`lora_unet_<layer with underscores>.lora_down.weight`, `.lora_up.weight` and `.alpha`: W' = W + alpha / rank up down,
where rank is lora_down's first size. DoRA adds `.dora_scale`, the magnitude of each row of W', as LyCORIS has it.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from data.errors import InputError
from train import adapters
from train.exporters import verify
from train.exporters.verify import ExportRequest
from train.model import BaseModel

ADAPTER_UNCHANGED = "the adapter changes nothing: all of its updates are zero"
LOADED_NAME = "loaded"  # the name of the adapter that a file becomes for the comparison


def write_kohya(unet: Any, file: Path, request: ExportRequest) -> None:
    """The trained adapter with its metadata, hashes included."""
    tensors = verify.cast_tensors(kohya_tensors(unet), request.dtype, file)
    tensors |= {name: tensor.float() for name, tensor in tensors.items() if name.endswith(".alpha")}
    metadata = dict(request.facts) | kohya_network_metadata(unet)
    metadata |= kohya_hashes(tensors, metadata)
    file.write_bytes(save(tensors, {**metadata, "format": "pt"}))


@torch.no_grad()
def kohya_tensors(unet: Any) -> dict[str, Tensor]:
    """kohya's tensors of the trained adapter.

    With ranks that differ, all layers get one alpha and lora_up takes up the difference: diffusers 0.42 looks for the
    alphas of attention layers under names that they do not have, so only an alpha that all share is sure to be read.
    """
    found: dict[str, Tensor] = {}
    alpha = shared_alpha(unet)
    for name, layer in adapters.adapted_layers(unet):
        key = f"lora_unet_{name.replace('.', '_')}"
        fold = layer.scaling["default"] * layer.r["default"] / alpha
        up = layer.lora_B["default"].weight.float()
        found[f"{key}.lora_down.weight"] = layer.lora_A["default"].weight
        found[f"{key}.lora_up.weight"] = up if fold == 1 else up * fold
        found[f"{key}.alpha"] = torch.tensor(alpha)
        magnitude = adapters.dora_magnitudes(layer)
        if magnitude is not None:
            weight = layer.get_base_layer().weight
            found[f"{key}.dora_scale"] = magnitude.view(-1, *[1] * (weight.ndim - 1))
    return found


def shared_alpha(unet: Any) -> float:
    """The alpha that alpha / rank needs to be the scale in use (alpha / sqrt(rank) for rsLoRA); the largest of all."""
    return max(layer.scaling["default"] * layer.r["default"] for _, layer in adapters.adapted_layers(unet))


# ---- reading


def load_kohya(unet: Any, file: Path, adapter: str = LOADED_NAME) -> None:
    """By diffusers' own converter and loader."""
    with safe_open(file, framework="pt") as opened:
        state, alphas = kohya_to_diffusers({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, adapter_name=adapter)


def kohya_to_diffusers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """diffusers' names, `unet.<layer>.lora_A.weight`, and the alphas. Raises ValueError for keys that are not kohya's.

    Its pipelines leave dora_scale out before they convert; its converter does not, but keeps LyCORIS' shapes.
    """
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
    from diffusers.utils import convert_unet_state_dict_to_peft

    converted, alphas = _convert_non_diffusers_lora_to_diffusers(dict(state))
    renamed = convert_unet_state_dict_to_peft(converted)
    found: dict[str, Tensor] = {}
    for key, tensor in renamed.items():
        if ".lora_magnitude_vector" in key:  # as peft has them: (out, 1) -> (out,), (out, 1, 1, 1) -> (1, out, 1, 1)
            key = key.removesuffix(".weight")
            tensor = tensor.flatten() if tensor.ndim == 2 else tensor.transpose(0, 1)
        found[key] = tensor
    return found, alphas


# ---- the header


def kohya_network_metadata(unet: Any) -> dict[str, str]:
    """What kind of network it is: rank (Dynamic if they differ), alpha as it is in the file, and its module."""
    carrying = [layer for _, layer in adapters.adapted_layers(unet)]
    ranks = {layer.r["default"] for layer in carrying}
    alpha = shared_alpha(unet)
    convolved = any(layer.get_base_layer().weight.ndim > 2 for layer in carrying)
    with_magnitude = adapters.dora_magnitudes(carrying[0]) is not None
    arguments = {"conv_dim": max(ranks), "conv_alpha": alpha} if convolved else {}
    arguments |= {"algo": "lora", "dora_wd": True, "wd_on_output": True} if with_magnitude else {}
    return {
        "ss_network_module": "lycoris.kohya" if with_magnitude else "networks.lora",
        "ss_network_dim": str(max(ranks)) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(arguments),
    }


def kohya_hashes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """sshs_*: by which A1111 knows a LoRA however its header is edited; modelspec's hash is of the same bytes.

    The legacy one is of 64 KiB of the file as it would be with the ss_* keys alone.
    """
    content = save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(content[:8], "little")
    whole = hashlib.sha256(content[start:]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return {"sshs_model_hash": whole, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{whole}"}


def export_lora(unet: Any, base: BaseModel, folder: Path, request: ExportRequest) -> list[Path]:
    """`lora.safetensors` and `lora-kohya.safetensors`. Raises InputError; only a file that passed gets its name."""
    trained = verify.probe_output(unet, base)
    check_adapter_changes(unet, base, trained, folder / "lora.safetensors")
    dtype = verify.coarsest(next(unet.parameters()).dtype, request.dtype)
    formats = {
        "lora.safetensors": (write_diffusers, load_diffusers),
        "lora-kohya.safetensors": (write_kohya, load_kohya),
    }
    for name, (write, load) in formats.items():
        with verify.verified_file(folder / name) as file:
            write(unet, file, request)
            with loaded_adapter(unet, file, load):
                found = verify.probe_output(unet, base)
            verify.check_same_output(found, trained, dtype, folder / name)
    return [folder / name for name in formats]


def check_adapter_changes(unet: Any, base: BaseModel, trained: Tensor, where: Path) -> None:
    """Raises InputError if the network with the adapter answers as the base does."""
    unet.disable_adapters()
    untrained = verify.probe_output(unet, base)
    unet.enable_adapters()
    if bool((trained == untrained).all()):
        raise InputError(ADAPTER_UNCHANGED, where=where, fix="Train for more steps or with a higher --learning-rate.")


@contextmanager
def loaded_adapter(unet: Any, file: Path, load: Callable[[Any, Path], None]) -> Iterator[None]:
    """The network with a file's adapter instead of the trained one, which is put back."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        load(unet, file)
    unet.set_adapter(LOADED_NAME)
    try:
        yield
    finally:
        unet.set_adapter("default")
        unet.delete_adapters(LOADED_NAME)


def write_diffusers(unet: Any, file: Path, request: ExportRequest) -> None:
    """diffusers' own layout and header (peft's config with ranks and alphas)."""
    metadata = {key: json_value(value) for key, value in unet.peft_config["default"].to_dict().items()}
    state = peft.get_peft_model_state_dict(unet, adapter_name="default")
    layers: dict[str, Any] = verify.cast_tensors(state, request.dtype, file)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        file.parent, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata, weight_name=file.name
    )


def load_diffusers(unet: Any, file: Path) -> None:
    """By diffusers' loader, which reads the header, where alpha is, only if told that the file is safetensors."""
    unet.load_lora_adapter(file, prefix="unet", adapter_name=LOADED_NAME, use_safetensors=True)


def json_value(value: Any) -> Any:
    """A peft config entry as JSON has it."""
    if isinstance(value, set | tuple):
        return sorted(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
