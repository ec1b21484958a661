"""Whole models: a diffusers folder, and a single file in the original layout. Frozen parts are the base's own bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import InputError
from data.files import replaced_folder
from train import rescaled
from train.adapters import files
from train.base_model import BaseModel
from train.exports import original
from train.exports.merge import plain_weights
from train.exports.request import Request
from train.run_folder import to_json

FROZEN = ("vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = {"vae": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}
SINGLE_FILE = "model.safetensors"


def export(unet: Any, base: BaseModel, folder: Path, request: Request, *, folder_too: bool) -> list[Path]:
    """`model/` if folder_too, `model.safetensors` if asked for. Raises InputError; only what passed gets its name."""
    wanted = {"model": (write_folder, folder_too), SINGLE_FILE: (write_single_file, request.options.single_file)}
    wanted = {name: write for name, (write, asked) in wanted.items() if asked}
    if not wanted:
        return []
    trained = files.probe(unet, base)
    dtype = files.coarsest(next(unet.parameters()).dtype, request.dtype)
    weights = files.in_precision(plain_weights(unet, base), request.dtype, folder)
    for name, write in wanted.items():
        write(folder / name, weights, base, request, (trained, dtype))
    return [folder / name for name in wanted]


Answer = tuple[Tensor, torch.dtype]  # of the trained network, and the coarsest precision on the way to it


def write_folder(target: Path, weights: dict[str, Tensor], base: BaseModel, request: Request, trained: Answer) -> None:
    """diffusers' layout."""
    with files.written(target), replaced_folder(target) as beside:
        copy_frozen_parts(base, beside, request)
        (beside / "unet").mkdir()
        shutil.copy(base.layout / "unet" / "config.json", beside / "unet")
        save_file(weights, beside / "unet" / WEIGHTS["vae"], {"format": "pt"})
        loaded = diffusers.UNet2DConditionModel.from_pretrained(
            beside, subfolder="unet", use_safetensors=True, torch_dtype=request.dtype, local_files_only=True
        )
        refuse_other(loaded, weights, base, trained, target)


def write_single_file(
    target: Path, weights: dict[str, Tensor], base: BaseModel, request: Request, trained: Answer
) -> None:
    """The original layout, as A1111 and ComfyUI read it."""
    facts = {key: value.removesuffix("/lora") for key, value in request.facts.items() if key.startswith("modelspec.")}
    tensors = original.unet_tensors(weights, base.config("unet")) | frozen_tensors(base, request, target)
    with files.proven(target) as beside:
        save_file(tensors, beside, facts | {"format": "pt"})
        check_single_file(beside, weights, base, request, trained, target)


# ---- frozen parts


def copy_frozen_parts(base: BaseModel, folder: Path, request: Request) -> None:
    """Everything but the U-Net. In fp32 the files themselves where there are files; else their numbers, rounded."""
    shutil.copytree(base.tokenizer_source, folder / "tokenizer")
    shutil.copytree(base.layout / "scheduler", folder / "scheduler")
    shutil.copy(base.layout / "model_index.json", folder / "model_index.json")
    for part in WEIGHTS:
        copy_part(base, part, folder / part, request)
    if base.zero_terminal_snr:
        write_rescaled(base, folder)


def write_rescaled(base: BaseModel, folder: Path) -> None:
    """Name the scheduler, and the settings, that a model trained at zero terminal SNR must be drawn with."""
    config = base.scheduler_config
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(to_json(rescaled.model_index(index, config)), encoding="utf-8")
    (folder / "scheduler" / "scheduler_config.json").write_text(to_json(config), encoding="utf-8")


def copy_part(base: BaseModel, part: str, target: Path, request: Request) -> None:
    if base.weights is not None:
        getattr(replace(base, dtype=request.dtype), part).save_pretrained(target)
        return
    as_it_is = request.dtype == torch.float32
    skipped = None if as_it_is else shutil.ignore_patterns("*.safetensors", "*.bin", "*.msgpack")
    shutil.copytree(base.layout / part, target, ignore=skipped)
    if not as_it_is:
        cast = files.in_precision(part_tensors(base, part), request.dtype, target)
        save_file(cast, target / WEIGHTS[part], {"format": "pt"})


def part_tensors(base: BaseModel, part: str) -> dict[str, Tensor]:
    """A frozen part's tensors as they lie in its file; in several files, as they are loaded."""
    file = base.layout / part / WEIGHTS[part]
    return load_file(file) if file.is_file() else getattr(base, part).state_dict()


def frozen_tensors(base: BaseModel, request: Request, where: Path) -> dict[str, Tensor]:
    """The autoencoder and the text tower under their original names; fp32 leaves them in the precision they have."""
    if base.weights is not None:
        prefixes = (original.VAE, original.TEXT.removesuffix("text_model."))
        tensors = {key: tensor for key, tensor in load_file(base.weights).items() if key.startswith(prefixes)}
    else:
        tensors = original.vae_tensors(part_tensors(base, "vae"), base.config("vae"))
        tensors |= original.text_tensors(part_tensors(base, "text_encoder"), base.config("text_encoder"))
    if request.dtype == torch.float32:
        return {name: tensor.contiguous() for name, tensor in tensors.items()}
    return files.in_precision(tensors, request.dtype, where)


# ---- proof


def refuse_other(loaded: Any, weights: Mapping[str, Tensor], base: BaseModel, trained: Answer, where: Path) -> None:
    """Raises InputError unless a loaded U-Net has the weights bit for bit and answers as the trained one does."""
    found = loaded.state_dict()
    wrong = [name for name in weights if name not in found or not torch.equal(found[name], weights[name])]
    if wrong or found.keys() - weights.keys():
        raise InputError(f"the exported U-Net differs from the trained one in {len(wrong)} tensors", where=where)
    answer, dtype = trained
    files.refuse_difference(files.probe(loaded.float().to(answer.device), base), answer, dtype, where)


def check_single_file(
    file: Path, weights: Mapping[str, Tensor], base: BaseModel, request: Request, trained: Answer, where: Path
) -> None:
    """By diffusers' own reader of single files, one part after another. Raises InputError."""
    single = replace(base, weights=file, dtype=request.dtype)
    refuse_other(single.unet, weights, base, trained, where)
    single.forget("unet")
    own = replace(base, dtype=request.dtype)
    for part in WEIGHTS:
        found, wanted = getattr(single, part).state_dict(), getattr(own, part).state_dict()
        wrong = [name for name in wanted if name not in found or not torch.equal(found[name], wanted[name])]
        if wrong:
            raise InputError(f"the {part} differs from the base's in {len(wrong)} tensors", where=where)
        single.forget(part)
        own.forget(part)
