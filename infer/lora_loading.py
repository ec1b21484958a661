"""What a LoRA does to the networks it is laid over: its share of each block's weights, and of the predicted noise."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data import rng
from data.atomic_io import file_sha256
from data.errors import InputError, printable, raise_all
from infer.config import LoraFile

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from data.shapes import Latents

PROBE_PROMPT = "a picture"  # that the probe is asked for
PROBE_SIDE = 16  # of the probe's latents at most: the effect is looked for, not a picture


def block_of(layer: str) -> str:
    """unet.down_blocks.0.attentions... -> down 0; the text encoder is one block."""
    network, kind, place, *_ = f"{layer}...".split(".")
    if network != "unet":
        return "text"
    return {"down_blocks": f"down {place}", "up_blocks": f"up {place}", "mid_block": "middle"}.get(kind, "other")


def change_by_block(changes: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """(layer, squared norm of its change, of its weights) -> the share that changes, for each block in order."""
    sums: dict[str, tuple[float, float]] = {}
    for layer, change, weights in changes:
        before = sums.get(block_of(layer), (0.0, 0.0))
        sums[block_of(layer)] = (before[0] + change, before[1] + weights)
    return {block: math.sqrt(change / weights) if weights else math.inf for block, (change, weights) in sums.items()}


class UnetProbe:
    """One question to the U-Net, always the same: noise halfway, and a few words."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.pipe = pipe
        unet = pipe.unet
        least = 2 ** (len(unet.config.block_out_channels) - 1)
        side = max(least, min(PROBE_SIDE, unet.config.sample_size) // least * least)
        noise = rng.normal((1, unet.config.in_channels, side, side), "LoRA probe")
        self.latents = noise.to(pipe.device, unet.dtype)
        self.timestep = pipe.scheduler.config.num_train_timesteps // 2

    @torch.no_grad()
    def __call__(self) -> Latents:
        """The prediction with whatever the networks wear now, in float32."""
        states = self.pipe.encode_prompt(PROBE_PROMPT, self.pipe.device, 1, False)[0]
        return self.pipe.unet(self.latents, self.timestep, encoder_hidden_states=states, return_dict=False)[0].float()


def relative_change(changed: Latents, base: Latents) -> float:
    """The norm of the change over the norm of what is changed."""
    return ((changed - base).norm() / base.norm()).item()


NETWORKS = ("unet", "text_encoder")
METADATA_KEY = "lora_adapter_metadata"  # where diffusers' save_lora_weights puts rank, alpha and target modules
MAX_NAMED_KEYS = 5  # unused keys that are named in full


@dataclass(frozen=True)
class LoraEffect:
    """What a LoRA did. change: Frobenius norm of the weight change; share: of the norm of the weights it changes.

    blocks: that share for each block of the U-Net, and of the text encoder. prediction: the share of a predicted noise
    that it changes, see infer/lora_loading.py.
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
        counted = f"{self.matched} of {self.matched + len(self.unused)} tensors matched"
        effect = f"changes {self.layers} layers by {self.share:.2%} (norm {self.change:.4g})"
        blocks = ", ".join(f"{block} {share:.2%}" for block, share in self.blocks.items())
        shown = f"{effect}: {blocks}; predicted noise by {self.prediction:.2%}"
        return f"LoRA {printable(lora_display_name(self.file.path))} at {self.file.weight:g}: {counted}, {shown}"


@dataclass(frozen=True)
class LoraContents:
    """A LoRA file in diffusers' names. state: {`unet.<layer>.lora_A.weight`: tensor}; alphas: kohya's, by layer."""

    state: dict[str, Tensor]
    alphas: dict[str, float] | None
    metadata: dict[str, Any] | None

    def about(self, network: str) -> dict[str, Any] | None:
        """peft's settings of one network if the file has them: diffusers takes an empty dict for a rank of 8."""
        found = {key: value for key, value in (self.metadata or {}).items() if key.startswith(f"{network}.")}
        return found or None


def load_loras(pipe: StableDiffusionPipeline, files: Sequence[LoraFile], *, strict: bool = False) -> list[LoraEffect]:
    """Load every LoRA onto the pipeline at its weight and prove that each has an effect.

    Raises InputError: a file is missing, damaged or no LoRA, fits another architecture, or changes nothing; with
    `strict` also when some of its tensors find no layer.
    """
    if not files:
        return []
    names = adapter_names(files)
    probe = UnetProbe(pipe)
    base = probe()
    matches = [load_one_lora(pipe, file, name, strict) for file, name in names.items()]
    proofs: list[LoraEffect] = []
    for (file, name), (matched, unused) in zip(names.items(), matches, strict=True):
        activate_loras(pipe, files, [file])
        proofs.append(measure_effect(pipe, name, file, matched, unused, relative_change(probe(), base)))
    activate_loras(pipe, files, files)
    return proofs


def adapter_names(files: Sequence[LoraFile]) -> dict[LoraFile, str]:
    """What peft calls each of them; the same file at the same weight is one."""
    return {file: f"lora{number}" for number, file in enumerate(dict.fromkeys(files))}


def activate_loras(pipe: StableDiffusionPipeline, files: Sequence[LoraFile], worn: Sequence[LoraFile]) -> None:
    """Of the attached LoRAs lay these over the networks, and no other; without any it is the base, bit for bit."""
    if not files:
        return
    if not worn:
        pipe.disable_lora()
        return
    names = adapter_names(files)
    pipe.enable_lora()
    pipe.set_adapters([names[file] for file in worn], [file.weight for file in worn])


def load_one_lora(
    pipe: StableDiffusionPipeline, file: LoraFile, name: str, strict: bool
) -> tuple[int, tuple[str, ...]]:
    """Load one file as adapter `name`; returns how many tensors matched, and the keys that did not."""
    contents = read_lora(pipe, file)
    sizes = layer_sizes(pipe)
    fitting = {key: tensor for key, tensor in contents.state.items() if layer_of(key) in sizes}
    unused = tuple(key for key in contents.state if key not in fitting)
    where = f"--lora {file.path}"
    if not fitting:
        fix = "It was made for another architecture, or is no LoRA."
        raise InputError(
            f"none of its {len(unused)} tensors fits this model, such as {unused[0]}", where=where, fix=fix
        )
    raise_all(check_shapes(fitting, sizes, where)[:1])
    if unused and strict:
        raise InputError(f"{len(unused)} tensors find no layer: {join_keys(unused)}", where=where)
    load_into_networks(pipe, contents, fitting, name, where)
    return len(fitting), unused


def join_keys(keys: Sequence[str]) -> str:
    """The first few keys, and how many more there are."""
    more = f" and {len(keys) - MAX_NAMED_KEYS} more" if len(keys) > MAX_NAMED_KEYS else ""
    return ", ".join(keys[:MAX_NAMED_KEYS]) + more


# ---- reading


def read_lora(pipe: StableDiffusionPipeline, file: LoraFile) -> LoraContents:
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
        fix = "Only whole .safetensors files are read."
        raise InputError(f"could not be read ({error})", where=where, fix=fix) from None
    if not any("lora" in key for key in state):
        fix = "Give a whole model with --model." if len(state) > 1 else None
        raise InputError("holds no LoRA tensors", where=where, fix=fix)
    return to_diffusers_names(pipe, state, header, where)


def to_diffusers_names(
    pipe: StableDiffusionPipeline, state: dict[str, Tensor], header: Mapping[str, str], where: str
) -> LoraContents:
    """Bring each format to one spelling: `unet.<layer>.lora_A.weight` and `text_encoder.<layer>.lora_A.weight`."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    try:
        if any("dora_scale" in key for key in state):  # diffusers' pipelines would leave the magnitudes out
            from train.exporters import lora_files  # loads peft

            converted, alphas = lora_files.kohya_to_diffusers(state)
        else:
            converted, alphas = pipe.lora_state_dict(dict(state))  # pyright: ignore[reportAssignmentType]
        metadata = json.loads(header[METADATA_KEY]) if METADATA_KEY in header and not alphas else None
        unet = convert_unet_state_dict_to_peft(network_tensors(converted, "unet"))
        text = network_tensors(converted, "text_encoder")
        text = convert_state_dict_to_peft(convert_state_dict_to_diffusers(text)) if text else {}
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"its tensor names are not understood ({reason})", where=where) from None
    spelled = {f"unet.{key}": tensor for key, tensor in unet.items()}
    spelled |= {f"text_encoder.{key.removeprefix('text_model.')}": tensor for key, tensor in text.items()}
    others = {key: tensor for key, tensor in converted.items() if not key.startswith(NETWORKS)}
    return LoraContents(spelled | others, alphas or None, metadata)


def lora_display_name(file: Path) -> str:
    """A LoRA's name in recipes: its file's, or the run's for the lora.safetensors that every run exports."""
    run = run_name_of(file)
    return f"{run}{file.suffix}" if run else file.name


def run_name_of(exported: Path) -> str:
    """The name of the run that something was exported by, or nothing."""
    folder = exported.resolve().parent
    return folder.parent.name if folder.name == "export" else ""


def network_tensors(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one network, without its name."""
    return {key.removeprefix(f"{prefix}."): tensor for key, tensor in state.items() if key.startswith(f"{prefix}.")}


# ---- matching


def layer_of(key: str) -> str:
    """unet.mid_block...to_q.lora_A.weight -> unet.mid_block...to_q."""
    return key.partition(".lora_")[0]


def layer_sizes(pipe: StableDiffusionPipeline) -> dict[str, tuple[int, ...]]:
    """The weight shape (out, in, ...) of every layer that a LoRA can change, by its name."""
    sizes: dict[str, tuple[int, ...]] = {}
    for network in NETWORKS:
        for name, weight in getattr(pipe, network).named_parameters():
            if ".lora_" not in name and name.endswith(".weight") and weight.ndim >= 2:
                layer = name.removesuffix(".weight").removesuffix(".base_layer").removeprefix("text_model.")
                sizes[f"{network}.{layer}"] = tuple(weight.shape)
    return sizes


def check_shapes(state: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, ...]], where: str) -> list[InputError]:
    """An InputError for each tensor of another width than its layer: lora_A reads the layer's input, lora_B writes."""
    errors: list[InputError] = []
    for key, tensor in state.items():
        out_width, in_width = sizes[layer_of(key)][:2]
        wanted, axis = (in_width, 1) if ".lora_A" in key else (out_width, 0)
        if ".lora_magnitude_vector" in key:
            axis = tensor.ndim // 4  # (out,) for a linear layer, (1, out, 1, 1) for a convolution
        if tensor.ndim > axis and tensor.shape[axis] != wanted:
            text = f"made for another architecture: {layer_of(key)} is {wanted} wide, the LoRA {tensor.shape[axis]}"
            errors.append(InputError(text, where=where))
    return errors


def load_into_networks(
    pipe: StableDiffusionPipeline, contents: LoraContents, state: dict[str, Tensor], name: str, where: str
) -> None:
    """Hand the matching tensors to diffusers, network by network (an absent network would make it warn)."""
    dtype = pipe.unet.dtype
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    shared: dict[str, Any] = {"network_alphas": contents.alphas, "adapter_name": name, "_pipeline": pipe}
    loaders = {"unet": pipe.load_lora_into_unet, "text_encoder": pipe.load_lora_into_text_encoder}
    try:
        for network in (network for network in NETWORKS if network_tensors(state, network)):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs are what was asked
                own = {network: getattr(pipe, network), "metadata": contents.about(network)}
                loaders[network](state, **own, **shared)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"could not be applied ({reason})", where=where) from error


# ---- proof


@torch.no_grad()
def measure_effect(
    pipe: StableDiffusionPipeline,
    name: str,
    file: LoraFile,
    matched: int,
    unused: tuple[str, ...],
    prediction: float,
) -> LoraEffect:
    """Measure the weight change of a loaded adapter at its weight. Raises InputError if it is zero or not finite.

    prediction: the share of a predicted noise that it changes.
    """
    from train.exporters import full_model  # loads peft

    changes: list[tuple[str, float, float]] = []
    for where, layer in adapted_layers(pipe, name):
        weight = layer.get_base_layer().weight
        squared = full_model.weight_change(layer, weight, name).square().sum().item()
        changes.append((where, squared, weight.float().square().sum().item()))
    change = math.sqrt(sum(squared for _, squared, _ in changes))
    weights = math.sqrt(sum(squared for _, _, squared in changes))
    where = f"--lora {file.path}"
    if not math.isfinite(change):
        raise InputError("holds numbers that are not finite (NaN or inf)", where=where)
    if change == 0:
        why = (
            "its weight is 0" if file.weight == 0 else "all of its products are zero, as before the first training step"
        )
        raise InputError(f"changes nothing: {why}", where=where)
    if prediction == 0:
        what = "changes weights, but nothing that the model predicts: too small for this precision, or beside the way"
        raise InputError(what, where=where, fix="Try --dtype fp32, or another file.")
    share = change / weights if weights else math.inf
    blocks = change_by_block(changes)
    return LoraEffect(file, file_sha256(file.path), matched, len(changes), unused, change, share, blocks, prediction)


def adapted_layers(pipe: StableDiffusionPipeline, name: str) -> Iterator[tuple[str, Any]]:
    """Every layer that carries the adapter `name`, by its own name."""
    from peft.tuners.lora import LoraLayer

    for network in NETWORKS:
        for where, layer in getattr(pipe, network).named_modules():
            if isinstance(layer, LoraLayer) and name in layer.lora_A:
                yield f"{network}.{where}", layer
