"""Put the trained parts together as diffusers lays out Stable Diffusion v1, in fp16 safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data.atomic_io import atomic_folder
from data.errors import InputError
from data.sample_set import POCKET
from tools.pocket.latents import load_autoencoder
from tools.pocket.text import load_text_encoder
from tools.pocket.tokenizer import load_tokenizer, save_tokenizer
from tools.pocket.unet import averaged_so_far, noise_schedule

if TYPE_CHECKING:
    from torch import nn

BASE = POCKET / "base"
LARGEST_FILE, LARGEST_FOLDER = 16 * 2**20, 24 * 2**20
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
    "image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


def save_half(model: nn.Module, file: Path, rename: Callable[[str], str] = str, steps: int = 0) -> None:
    """The weights as contiguous fp16, with the number of steps they took in the file's header."""
    import torch
    from safetensors.torch import save_file

    weights = {rename(name): value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, file, metadata={"format": "pt", "steps": str(steps)})


def save_config(model: nn.Module, folder: Path) -> None:
    """The part's config.json alone, without a path of this machine in it."""
    folder.mkdir(parents=True)
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)  # pyright: ignore
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def export_base(target: Path = BASE) -> None:
    """Write the base model of the last saved states, whole; files beside the parts (the card) are kept."""
    card = (target / "README.md").read_bytes() if (target / "README.md").exists() else None
    with atomic_folder(target) as folder:
        unet, steps = averaged_so_far()
        for name, part in {"vae": load_autoencoder(), "unet": unet}.items():
            save_config(part, folder / name)
            save_half(part, folder / name / "diffusion_pytorch_model.safetensors", steps=steps if part is unet else 0)
        save_config(load_text_encoder(), folder / "text_encoder")
        text_file = folder / "text_encoder" / "model.safetensors"
        save_half(load_text_encoder(), text_file, lambda name: f"text_model.{name}")  # the names of SD v1's own files
        (folder / "tokenizer").mkdir()
        save_tokenizer(load_tokenizer(), folder / "tokenizer")
        noise_schedule().save_pretrained(folder / "scheduler")
        (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")
        if card is not None:
            (folder / "README.md").write_bytes(card)
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        check_sizes(folder)


def check_sizes(folder: Path) -> None:
    """InputError if a file or the whole is too large to be shipped with the code."""
    sizes = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    too_large = [f"{file.name}: {size}" for file, size in sizes.items() if size > LARGEST_FILE]
    if too_large or sum(sizes.values()) > LARGEST_FOLDER:
        total = sum(sizes.values())
        raise InputError(f"too large: {total} bytes; {too_large}", where=folder, fix="Train a smaller network.")
