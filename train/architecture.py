"""What a model file or folder is, from its configs and tensor names alone: recognised before any weight is loaded.

Only Stable Diffusion 1.x and 2.x text-to-image models pass; everything else is refused as what it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from data.errors import InputError

Family = Literal["sd1", "sd2"]
Shapes = Mapping[str, tuple[int, ...]]  # tensor name -> shape

PARTS = ("unet", "vae", "text_encoder")
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
EMA = "model_ema."
CROSS_ATTENTION = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # (channels, width of the text)
V_BIAS = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_SPREAD = 0.09  # SD 2's v-models have a wider spread here than its epsilon models; ComfyUI tells them apart by it
SD2_WIDTH = 1024  # of the text embeddings
WHOLE = "Use the folder or file of the whole model."
CONVERT = "Pickled weights can run code and are not read; convert the model with diffusers' save_pretrained."


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint in the original layout. prediction_type: None if the file does not tell."""

    family: Family
    parts: frozenset[str]
    prediction_type: str | None
    zero_terminal_snr: bool
    has_ema: bool


def read_header(file: Path) -> tuple[Shapes, Mapping[str, str]]:
    """Names and shapes of a .safetensors file's tensors, and its metadata. Raises InputError for a damaged file."""
    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            return shapes, opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        what = f"not a readable .safetensors file ({error})"
        raise InputError(what, where=file, fix="Download or copy it again.") from error


def any_name(*starts: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.startswith(starts) for name in shapes)


def is_lora(shapes: Shapes) -> bool:
    ends = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".hada_w1_a", ".lokr_w1", ".dora_scale")
    return any(name.endswith(ends) for name in shapes)


def is_embedding(shapes: Shapes) -> bool:
    return 0 < len(shapes) <= 3 and all(len(shape) <= 2 for shape in shapes.values())


def is_vae(shapes: Shapes) -> bool:
    return any_name("encoder.conv_in.", "decoder.conv_in.", VAE)(shapes) and not any_name(UNET)(shapes)


# What a file may be instead of a Stable Diffusion model: the first that fits is named
OTHER_FILES: tuple[tuple[str, Callable[[Shapes], bool], str], ...] = (
    ("a LoRA", is_lora, "Give the model that it was trained on as --model, and generate with --lora FILE."),
    ("a ControlNet", any_name("control_model.", "controlnet_", "input_hint_block."), "Give a base model as --model."),
    ("a Stable Diffusion XL model", any_name("conditioner.embedders.", f"{UNET}label_emb."), ""),
    ("a Stable Diffusion 3 model", any_name(f"{UNET}joint_blocks.", "joint_blocks."), ""),
    ("a Flux model", any_name(f"{UNET}double_blocks.", "double_blocks."), ""),
    ("a U-Net alone", any_name("down_blocks.0.attentions", "input_blocks.0.0."), WHOLE),
    ("a VAE alone", is_vae, "Use it with --vae and a --model."),
    ("a text encoder alone", any_name("text_model.", "transformer.text_model."), WHOLE),
    ("a textual inversion embedding", is_embedding, "Give the model that it was trained on as --model."),
)  # fmt: skip
SUPPORTED = "Stable Diffusion 1.x and 2.x text-to-image models"


def recognize_file(file: Path, where: str) -> SingleFile:
    """What a single file holds. Raises InputError with what it is instead of a Stable Diffusion 1.x or 2.x model."""
    if file.suffix in PICKLES:
        raise InputError(f"a pickle ({file.suffix})", where=where, allowed="a .safetensors file", fix=CONVERT)
    if file.suffix != ".safetensors":
        what = f"{file.suffix or 'a file without an ending'} is not a format of model weights"
        raise InputError(what, where=where, allowed="a .safetensors file or a folder in diffusers layout")
    shapes, metadata = read_header(file)
    first, cross = shapes.get(f"{UNET}input_blocks.0.0.weight"), shapes.get(CROSS_ATTENTION)
    for name, fits, fix in OTHER_FILES:
        if fits(shapes):
            raise InputError(f"this is {name}", where=where, allowed=SUPPORTED, fix=fix or None)
    if first is None or cross is None:
        what = "this is not a Stable Diffusion checkpoint: it lacks the U-Net's first layers"
        raise InputError(what, where=where, allowed=SUPPORTED)
    check_channels(first[1], 4, where)
    family: Family = "sd2" if any_name(OPEN_CLIP)(shapes) or cross[1] == SD2_WIDTH else "sd1"
    text = CLIP if family == "sd1" else OPEN_CLIP
    prefixes = {"unet": UNET, "vae": VAE, "text_encoder": text}
    parts = frozenset(part for part, prefix in prefixes.items() if any_name(prefix)(shapes))
    if "text_encoder" not in parts:
        raise InputError("the file has no text encoder", where=where, fix=WHOLE)
    return SingleFile(family, parts, file_prediction_type(file, family, shapes, metadata), "ztsnr" in shapes,
                      any_name(EMA)(shapes))  # fmt: skip


def file_prediction_type(file: Path, family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """v_prediction by the marker tensors `v_pred` and `ztsnr`, by the metadata, or in SD 2 by its weights; or None."""
    told = {"v": "v_prediction", "epsilon": "epsilon"}.get(metadata.get("modelspec.prediction_type", ""))
    if "v_pred" in shapes or "ztsnr" in shapes:
        return "v_prediction"
    if told is None and family == "sd2":
        return "v_prediction" if V_BIAS in shapes and spread(file, V_BIAS) > V_SPREAD else "epsilon"
    return told


def spread(file: Path, name: str) -> float:
    """The standard deviation of one tensor."""
    with safe_open(file, framework="pt") as opened:
        return float(np.std(opened.get_tensor(name).float().numpy()))


def check_channels(inputs: int, latents: int, where: str) -> None:
    """A text-to-image U-Net takes the latents and nothing else. Raises InputError."""
    if inputs == latents:
        return
    extra = {2 * latents + 1: "an inpainting model", 2 * latents: "an image editing model (InstructPix2Pix)"}
    name = extra.get(inputs, "not a text-to-image model")
    what = f"this is {name}: its U-Net takes {inputs} channels, its VAE gives {latents}"
    raise InputError(what, where=where, allowed="text-to-image models", fix="Use the model that it was made from.")


# ---- folders in diffusers layout


def recognize_folder(folder: Path, where: str, fix: str | None = None) -> Family:
    """The family of a folder in diffusers layout, whose parts fit each other. Raises InputError with what it is."""
    index = read_config(folder / "model_index.json", where) if (folder / "model_index.json").is_file() else None
    if index is None:
        raise InputError(*describe_other_folder(folder), where=where, fix=fix or other_folder_fix(folder))
    kind = str(index.get("_class_name"))
    if kind.startswith(("StableDiffusionXL", "StableDiffusion3", "Flux")):
        raise InputError(f"this is a model for diffusers' {kind}", where=where, allowed=SUPPORTED)
    missing = [part for part in (*PARTS, "scheduler") if not (folder / part).is_dir()]
    if missing:
        raise InputError(f"not a whole Stable Diffusion model: lacks {', '.join(missing)}", where=where, fix=fix)
    unet, vae, text = (read_config(folder / part / "config.json", where) for part in PARTS)
    read_config(folder / "scheduler" / "scheduler_config.json", where)
    check_parts(unet, vae, text, where)
    return family_of(text)


def family_of(text: Mapping[str, Any]) -> Family:
    """By the width of the text encoder: Stable Diffusion 2 has OpenCLIP's."""
    return "sd2" if text["hidden_size"] == SD2_WIDTH else "sd1"


def read_config(file: Path, where: str) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"lacks {file.parent.name}/{file.name}", where=where) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON ({error})", where=file) from error
    if not isinstance(config, dict):
        raise InputError("is not a JSON object", where=file)
    return config


def is_size(value: Any) -> bool:
    """A number above 0, or a list of such numbers."""
    values = value if isinstance(value, list) and value else [value]
    return all(type(each) is int and 0 < each < 2**20 for each in values)


def check_parts(unet: Mapping[str, Any], vae: Mapping[str, Any], text: Mapping[str, Any], where: str) -> None:
    """Channels, text widths and conditioning of the three networks fit each other. Raises InputError."""
    needed = ((unet, "unet", ("in_channels", "cross_attention_dim", "block_out_channels")),
              (vae, "vae", ("latent_channels", "block_out_channels")),
              (text, "text_encoder", ("hidden_size",)))  # fmt: skip
    for config, part, keys in needed:
        wrong = [key for key in keys if not is_size(config.get(key))]
        if wrong:
            raise InputError(f"{part}/config.json has no usable {', '.join(wrong)}", where=where)
    if not is_size(unet.get("sample_size") or 64):
        raise InputError(f"unet/config.json has sample_size {unet['sample_size']!r}", where=where, allowed="a number")
    if unet.get("addition_embed_type") or unet.get("class_embed_type") or unet.get("encoder_hid_dim"):
        xl = unet.get("addition_embed_type") == "text_time"
        what = "a Stable Diffusion XL U-Net" if xl else "a U-Net with conditioning other than text"
        raise InputError(f"this has {what}", where=where, allowed=SUPPORTED)
    check_channels(unet["in_channels"], vae["latent_channels"], where)
    if vae.get("shift_factor") or vae.get("latents_mean"):
        raise InputError("its VAE shifts latents, as those of other model families do", where=where, allowed=SUPPORTED)
    width = unet["cross_attention_dim"]
    widths = set(width) if isinstance(width, list) else {width}
    if widths != {text["hidden_size"]}:
        shown = ", ".join(str(each) for each in sorted(widths))
        what = f"the U-Net expects text embeddings of width {shown}, the text encoder gives {text['hidden_size']}"
        raise InputError(what, where=where, fix="Use the text encoder that the U-Net was trained with.")


def describe_other_folder(folder: Path) -> tuple[str]:
    """What a folder without model_index.json is."""
    names = {entry.name for entry in folder.iterdir()}
    if "config.yaml" in names and ("checkpoints" in names or "export" in names):
        return ("this is a training run, not a base model",)
    if "adapter_config.json" in names or any("lora" in name and name.endswith(".safetensors") for name in names):
        return ("this is the folder of a LoRA, not a model",)
    if "config.json" in names:
        part = json_name(folder / "config.json")
        return (f"this is one part of a model ({part})",)
    if any(name.endswith(".safetensors") for name in names):
        return ("a folder without model_index.json, with .safetensors files in it",)
    if any(name.endswith(PICKLES) for name in names):
        return ("a folder of pickled weights",)
    return ("not a Stable Diffusion model in diffusers layout: lacks model_index.json",)


def other_folder_fix(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "export" / "model" / "model_index.json").is_file():
        return f"Use --model {folder / 'export' / 'model'}."
    if (folder / "config.yaml").is_file():
        return "Give the model that the run was trained on; its LoRA is export/lora.safetensors."
    if (folder.parent / "model_index.json").is_file():
        return f"Use the whole model: --model {folder.parent}."
    if (folder / "config.json").is_file():
        return WHOLE
    if files:
        return f"Name the file itself: --model {files[0]}."
    return CONVERT if any(entry.suffix in PICKLES for entry in folder.iterdir()) else None


def json_name(file: Path) -> str:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return str(config.get("_class_name") or (config.get("architectures") or ["unknown"])[0])
    except (OSError, ValueError, AttributeError, IndexError):
        return "unknown"
