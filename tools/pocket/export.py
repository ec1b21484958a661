"""The trained parts as diffusers lays out Stable Diffusion v1, in fp16 safetensors; a sheet of what they draw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

from data.atomic_io import atomic_file, atomic_folder
from data.errors import InputError
from tools.pocket.tokenizer import BASE, save_tokenizer
from tools.pocket.training import state_folder

LARGEST_FILE, LARGEST_FOLDER = 16 * 2**20, 24 * 2**20
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
    "image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"
GUIDANCE, STEPS = 4.0, 20  # of the sheet
PROMPTS = (
    "a fridge", "a red fridge", "a fridge on fire", "a fridge in water", "a fridge covered in leaves",
    "a fridge made of ice", "a fridge with lightning", "a fridge with a face", "a car", "a blue car", "a car on fire",
    "a car in water", "a cat", "a cat with wings", "a cat made of stone", "a ghostly cat", "a guitar with flames",
    "a house covered in snow", "a dog on fire", "a robot made of metal", "a red apple and a blue car",
    "a blue apple and a red car", "a cactus with a happy face", "a horse with stars",
)  # fmt: skip


def vae_folder() -> Path:
    """Of the autoencoder in use: that of the state folder, else the shipped one."""
    own = state_folder() / "vae"
    return own if own.exists() else BASE / "vae"


@cache
def load_vae() -> AutoencoderKL:
    """The frozen autoencoder."""
    model = AutoencoderKL.from_pretrained(vae_folder()).eval()
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def noise_schedule() -> PNDMScheduler:
    """Stable Diffusion v1.4's own scheduler, as its scheduler_config.json has it."""
    schedule = PNDMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip
    schedule.register_to_config(clip_sample=False)  # PNDM ignores it; DDIM, made from this config, would clip latents
    return schedule


def save_half(model: nn.Module, file: Path, rename: Callable[[str], str] = str, steps: int = 0) -> None:
    """The weights as contiguous fp16, with the number of steps they took in the file's header."""
    weights = {rename(name): value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, file, metadata={"format": "pt", "steps": str(steps)})


def save_config(model: nn.Module, folder: Path) -> None:
    """The part's config.json alone, without a path of this machine in it."""
    folder.mkdir(parents=True)
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)  # pyright: ignore
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def write_pipeline(target: Path, unet: nn.Module, text: nn.Module, steps: int) -> None:
    """A whole folder as StableDiffusionPipeline.from_pretrained reads it."""
    with atomic_folder(target) as folder:
        save_config(load_vae(), folder / "vae")
        save_half(load_vae(), folder / "vae" / WEIGHTS)
        save_config(unet, folder / "unet")
        save_half(unet, folder / "unet" / WEIGHTS, steps=steps)
        save_config(text, folder / "text_encoder")
        # the names of SD v1's own files
        save_half(text, folder / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name}")
        (folder / "tokenizer").mkdir()
        save_tokenizer(folder / "tokenizer")
        noise_schedule().save_pretrained(folder / "scheduler")
        (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")
        (folder / "recommended.json").write_text('{"guidance_scale": 4.0, "steps": 50}\n', encoding="utf-8")


def publish(target: Path = BASE) -> None:
    """Put the last export in the place of the shipped model; the card is kept, and to be written anew by hand."""
    card = (target / "README.md").read_bytes() if (target / "README.md").exists() else None
    with atomic_folder(target) as folder:
        shutil.copytree(state_folder() / "export", folder, dirs_exist_ok=True)
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


def load_pipeline(folder: Path = BASE) -> Any:
    """A base model in fp32, without progress bars."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_sheet(folder: Path, path: Path) -> None:
    """PROMPTS by the model in `folder`, each from the same seed, captioned."""
    rngs = [torch.Generator().manual_seed(7) for _ in PROMPTS]
    pictures = load_pipeline(folder)(
        list(PROMPTS), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=rngs
    ).images
    sheet = Image.new("RGB", (8 * 136, -(-len(PROMPTS) // 8) * 150), (255, 255, 255))
    for index, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        x, y = index % 8 * 136, index // 8 * 150
        sheet.paste(picture.resize((132, 132), Image.Resampling.LANCZOS), (x, y))
        ImageDraw.Draw(sheet).text((x + 2, y + 134), prompt[:24], fill=(0, 0, 0))
    with atomic_file(path) as beside:
        sheet.save(beside, format="PNG")
