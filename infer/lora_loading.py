"""LoRA files onto a pipeline, with proof: which tensors match a layer, and how much weights and predictions change.

A LoRA that matches nothing, was made for another architecture, or changes nothing is an error: the image would look
like the base model's and nobody would know why.
"""

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import rng
from data.atomic_io import file_sha256
from data.errors import InputError, printable, raise_all
from data.shapes import Latents
from infer.config import LoraFile
from train.exporters import full_model, lora_files

NETWORKS = ("unet", "text_encoder")
METADATA_KEY = "lora_adapter_metadata"  # where diffusers' save_lora_weights puts rank, alpha and target modules
MAX_NAMED_KEYS = 5  # unused keys that are named in full
PROBE_PROMPT = "a picture"
PROBE_SIDE = 16  # of the probe's latents at most


@dataclass(frozen=True)
class LoraEffect:
    """What a LoRA does. change: Frobenius norm of the weight change; share: relative to the weights that it changes.

    blocks: that share for each block of the U-Net, and of the text encoder. prediction: relative change of the U-Net's
    prediction for a fixed input.
    """

    file: LoraFile
    sha256: str
    matched: int
    layers: int
    unused: tuple[str, ...]
    change: float
    share: float
    blocks: Mapping[str, float]
    prediction: float

    def __str__(self) -> str:
        matched = f"{self.matched} of {self.matched + len(self.unused)} tensors matched"
        blocks = ", ".join(f"{block} {share:.2%}" for block, share in self.blocks.items())
        change = f"changes {self.layers} layers by {self.share:.2%} (norm {self.change:.4g})"
        name = f"LoRA {printable(lora_display_name(self.file.path))} at {self.file.weight:g}"
        return f"{name}: {matched}, {change}: {blocks}; predicted noise by {self.prediction:.2%}"


@dataclass(frozen=True)
class LoraContents:
    """A LoRA file in diffusers' names. state: {`unet.<layer>.lora_A.weight`: tensor}; alphas: kohya's, by layer."""

    state: dict[str, Tensor]
    alphas: dict[str, float] | None
    metadata: dict[str, Any]


def load_loras(pipe: Any, files: Sequence[LoraFile], *, strict: bool = False) -> list[LoraEffect]:
    """Load every LoRA onto the pipeline at its weight and prove that each has an effect.

    Raises InputError: a file is missing, damaged or no LoRA, fits another architecture, or changes nothing; with
    `strict` also when some of its tensors match no layer.
    """
    if not files:
        return []
    names = adapter_names(files)
    base = probe_prediction(pipe)
    matches = [load_one_lora(pipe, file, name, strict) for file, name in names.items()]
    effects: list[LoraEffect] = []
    for (file, name), (matched, unused) in zip(names.items(), matches, strict=True):
        activate_loras(pipe, files, [file])
        effects.append(measure_effect(pipe, name, file, matched, unused, base))
    activate_loras(pipe, files, files)
    return effects


def adapter_names(files: Sequence[LoraFile]) -> dict[LoraFile, str]:
    """peft's name of each; the same file at the same weight is one adapter."""
    return {file: f"lora{number}" for number, file in enumerate(dict.fromkeys(files))}


def activate_loras(pipe: Any, loaded: Sequence[LoraFile], active: Sequence[LoraFile]) -> None:
    """Activate these of the loaded LoRAs and no other; without any the networks are the base's, bit for bit."""
    if loaded and not active:
        pipe.disable_lora()
    elif loaded:
        names = adapter_names(loaded)
        pipe.enable_lora()
        pipe.set_adapters([names[file] for file in active], [file.weight for file in active])


def load_one_lora(pipe: Any, file: LoraFile, name: str, strict: bool) -> tuple[int, tuple[str, ...]]:
    """Load one file as adapter `name`; returns how many tensors matched, and the keys that did not."""
    contents, sizes, where = read_lora(pipe, file), layer_sizes(pipe), f"--lora {file.path}"
    matched = {key: tensor for key, tensor in contents.state.items() if layer_of(key) in sizes}
    unused = tuple(key for key in contents.state if key not in matched)
    if not matched:
        what = f"none of its {len(unused)} tensors matches this model, for example {unused[0]}"
        raise InputError(what, where=where, fix="It was made for another architecture, or is not a LoRA.")
    raise_all(check_shapes(matched, sizes, where)[:1])
    if unused and strict:
        raise InputError(f"{len(unused)} tensors match no layer: {join_keys(unused)}", where=where)
    load_into_networks(pipe, contents, matched, name, where)
    return len(matched), unused


def join_keys(keys: Sequence[str]) -> str:
    """The first few keys, and how many more there are."""
    more = f" and {len(keys) - MAX_NAMED_KEYS} more" if len(keys) > MAX_NAMED_KEYS else ""
    return ", ".join(keys[:MAX_NAMED_KEYS]) + more


def lora_display_name(file: Path) -> str:
    """A LoRA's name in metadata: its file's, or the run's for the lora.safetensors that every run exports."""
    run = run_name_of(file)
    return f"{run}{file.suffix}" if run else file.name


def run_name_of(exported: Path) -> str:
    """The name of the run that exported something, or nothing."""
    folder = exported.resolve().parent
    return folder.parent.name if folder.name == "export" else ""


# ---- reading


def read_lora(pipe: Any, file: LoraFile) -> LoraContents:
    """A LoRA file of diffusers, peft or kohya in diffusers' names. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    where = f"--lora {file.path}"
    if not file.path.is_file():
        raise InputError("no such file", where=where, allowed="FILE or FILE:WEIGHT, a .safetensors file")
    try:
        with safe_open(file.path, framework="pt") as opened:
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        fix = "Only complete .safetensors files can be read."
        raise InputError(f"could not be read ({error})", where=where, fix=fix) from None
    if not any("lora" in key for key in state):
        fix = "Use --model for a whole model." if len(state) > 1 else None
        raise InputError("has no LoRA tensors", where=where, fix=fix)
    try:
        return to_diffusers_names(pipe, state, header)
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"its tensor names are not understood ({reason})", where=where) from None


def to_diffusers_names(pipe: Any, state: dict[str, Tensor], header: Mapping[str, str]) -> LoraContents:
    """Bring each format to one spelling: `unet.<layer>.lora_A.weight` and `text_encoder.<layer>.lora_A.weight`."""
    from diffusers import utils

    if any("dora_scale" in key for key in state):  # diffusers' pipelines would drop the magnitudes
        converted, alphas = lora_files.kohya_to_diffusers(state)
    else:
        converted, alphas = pipe.lora_state_dict(dict(state))
    metadata = json.loads(header[METADATA_KEY]) if METADATA_KEY in header and not alphas else {}
    unet = utils.convert_unet_state_dict_to_peft(network_tensors(converted, "unet"))
    text = network_tensors(converted, "text_encoder")
    text = utils.convert_state_dict_to_peft(utils.convert_state_dict_to_diffusers(text)) if text else {}
    renamed = {f"unet.{key}": tensor for key, tensor in unet.items()}
    renamed |= {f"text_encoder.{key.removeprefix('text_model.')}": tensor for key, tensor in text.items()}
    renamed |= {key: tensor for key, tensor in converted.items() if not key.startswith(NETWORKS)}
    return LoraContents(renamed, alphas or None, metadata)


def network_tensors(state: Mapping[str, Any], network: str) -> dict[str, Any]:
    """The tensors of one network, without its name."""
    return {key.removeprefix(f"{network}."): value for key, value in state.items() if key.startswith(f"{network}.")}


# ---- matching


def layer_of(key: str) -> str:
    """unet.mid_block...to_q.lora_A.weight -> unet.mid_block...to_q."""
    return key.partition(".lora_")[0]


def layer_sizes(pipe: Any) -> dict[str, tuple[int, ...]]:
    """The weight shape (out, in, ...) of every layer that a LoRA can change, by its name."""
    sizes: dict[str, tuple[int, ...]] = {}
    for network in NETWORKS:
        for name, weight in getattr(pipe, network).named_parameters():
            if ".lora_" not in name and name.endswith(".weight") and weight.ndim >= 2:
                layer = name.removesuffix(".weight").removesuffix(".base_layer").removeprefix("text_model.")
                sizes[f"{network}.{layer}"] = tuple(weight.shape)
    return sizes


def check_shapes(state: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, ...]], where: str) -> list[InputError]:
    """An InputError for each tensor of another width than its layer: lora_A has the input's, lora_B the output's."""
    errors: list[InputError] = []
    for key, tensor in state.items():
        out_width, in_width = sizes[layer_of(key)][:2]
        width, axis = (in_width, 1) if ".lora_A" in key else (out_width, 0)
        if ".lora_magnitude_vector" in key:
            axis = tensor.ndim // 4  # (out,) for a linear layer, (1, out, 1, 1) for a convolution
        if tensor.ndim > axis and tensor.shape[axis] != width:
            what = f"made for another architecture: {layer_of(key)} is {width} wide, the LoRA {tensor.shape[axis]}"
            errors.append(InputError(what, where=where))
    return errors


def load_into_networks(pipe: Any, contents: LoraContents, state: dict[str, Tensor], name: str, where: str) -> None:
    """Load the matching tensors network by network: diffusers warns about an absent one."""
    state = {key: tensor.to(pipe.unet.dtype) for key, tensor in state.items()}
    shared: dict[str, Any] = {"network_alphas": contents.alphas, "adapter_name": name, "_pipeline": pipe}
    loaders = {"unet": pipe.load_lora_into_unet, "text_encoder": pipe.load_lora_into_text_encoder}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs are intended
            for network in (network for network in NETWORKS if network_tensors(state, network)):
                # peft's settings of this network, or None: diffusers takes an empty dict for a rank of 8
                own = {key: value for key, value in contents.metadata.items() if key.startswith(f"{network}.")} or None
                loaders[network](state, **{network: getattr(pipe, network)}, metadata=own, **shared)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"could not be applied ({reason})", where=where) from error


# ---- proof


@torch.no_grad()
def measure_effect(
    pipe: Any, name: str, file: LoraFile, matched: int, unused: tuple[str, ...], base: Latents
) -> LoraEffect:
    """Measure what the active adapter `name` changes. Raises InputError if it is nothing, or not finite.

    base: the prediction without it.
    """
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # by block: of the changes, of the weights
    layers = adapted_layers(pipe, name)
    for layer_name, layer in layers.items():
        weight, block = layer.get_base_layer().weight, squares[block_of(layer_name)]
        block[0] += full_model.weight_change(layer, weight, name).square().sum().item()
        block[1] += weight.float().square().sum().item()
    change, weights = (math.sqrt(sum(block[n] for block in squares.values())) for n in (0, 1))
    blocks = {block: math.sqrt(c / w) if w else math.inf for block, (c, w) in squares.items()}
    where = f"--lora {file.path}"
    if not math.isfinite(change):
        raise InputError("has numbers that are not finite (NaN or inf)", where=where)
    if change == 0:
        why = "its weight is 0" if file.weight == 0 else "all its products are zero, as before the first training step"
        raise InputError(f"changes nothing: {why}", where=where)
    prediction = relative_change(probe_prediction(pipe), base)
    if prediction == 0:
        what = "changes weights, but not the model's prediction: too small for this precision, or unused by the model"
        raise InputError(what, where=where, fix="Try --dtype fp32, or another file.")
    share = change / weights if weights else math.inf
    return LoraEffect(file, file_sha256(file.path), matched, len(layers), unused, change, share, blocks, prediction)


def adapted_layers(pipe: Any, name: str) -> dict[str, Any]:
    """Every layer that carries the adapter `name`, by its own name."""
    from peft.tuners.lora import LoraLayer

    return {
        f"{network}.{where}": layer
        for network in NETWORKS
        for where, layer in getattr(pipe, network).named_modules()
        if isinstance(layer, LoraLayer) and name in layer.lora_A
    }


def block_of(layer: str) -> str:
    """unet.down_blocks.0.attentions... -> down 0; the text encoder is one block."""
    network, kind, place, *_ = f"{layer}...".split(".")
    if network != "unet":
        return "text"
    return {"down_blocks": f"down {place}", "up_blocks": f"up {place}", "mid_block": "middle"}.get(kind, "other")


@torch.no_grad()
def probe_prediction(pipe: Any) -> Latents:
    """The U-Net's float32 prediction for a fixed input: noise halfway and a few words."""
    unet = pipe.unet
    least = 2 ** (len(unet.config.block_out_channels) - 1)
    side = max(least, min(PROBE_SIDE, unet.config.sample_size) // least * least)
    latents = rng.normal((1, unet.config.in_channels, side, side), "LoRA probe").to(pipe.device, unet.dtype)
    embeds = pipe.encode_prompt(PROBE_PROMPT, pipe.device, 1, False)[0]
    timestep = pipe.scheduler.config.num_train_timesteps // 2
    return unet(latents, timestep, encoder_hidden_states=embeds, return_dict=False)[0].float()


def relative_change(changed: Latents, base: Latents) -> float:
    """The norm of the change over the norm of what is changed."""
    return ((changed - base).norm() / base.norm()).item()
