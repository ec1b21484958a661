"""Tensor shapes and parameter counts of a Stable Diffusion v1 model, read from its configs, for docs/."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from train.model import POCKET_FOLDER, SD_V1_CONFIGS

MODELS = {"the embedded base": POCKET_FOLDER, "SD v1.4": SD_V1_CONFIGS}
BEGIN, END = "<!-- {name} -->", "<!-- /{name} -->"  # around the part of a page that a command writes


@dataclass(frozen=True)
class Level:
    """One resolution level of the U-Net: feature map size, and whether it has cross-attention."""

    channels: int
    side: int
    attends: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class Anatomy:
    """A model's tensor shapes, without the batch dimension. folder: its configs in diffusers layout."""

    folder: Path

    def config(self, part: str) -> dict[str, Any]:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return json.loads((self.folder / part / name).read_text(encoding="utf-8"))

    @property
    def factor(self) -> int:
        """Pixels per latent position."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    @property
    def latents(self) -> tuple[int, int, int]:
        side = self.config("unet")["sample_size"]
        return self.config("vae")["latent_channels"], side, side

    @property
    def image(self) -> tuple[int, int, int]:
        side = self.latents[1] * self.factor
        return 3, side, side

    @property
    def ratio(self) -> float:
        """Number of image values for each latent value."""
        return math.prod(self.image) / math.prod(self.latents)

    @property
    def text_states(self) -> tuple[int, int]:
        config = self.config("text_encoder")
        return config["max_position_embeddings"], config["hidden_size"]

    @property
    def levels(self) -> list[Level]:
        """From the highest resolution to the lowest; each level halves the side of the previous one."""
        config = self.config("unet")
        named = zip(config["block_out_channels"], config["down_block_types"], strict=True)
        side = config["sample_size"]
        return [Level(channels, side >> depth, "CrossAttn" in kind) for depth, (channels, kind) in enumerate(named)]

    @property
    def calls(self) -> int:
        """U-Net calls for 50 steps of the model's own scheduler, without guidance. PNDM makes one extra call."""
        return 51 if self.config("scheduler")["_class_name"] == "PNDMScheduler" else 50

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameter count of each part; the networks are built on the meta device."""
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.device("meta"):
            parts: dict[str, Any] = {
                "vae": AutoencoderKL.from_config(self.config("vae")),
                "text_encoder": CLIPTextModel(CLIPTextConfig(**self.config("text_encoder"))),
                "unet": UNet2DConditionModel.from_config(self.config("unet")),
            }
        return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def shapes_table() -> str:
    """Markdown table that compares the models."""
    found = [Anatomy(folder) for folder in MODELS.values()]
    rows = [
        ("image", *(shape(each.image) for each in found)),
        ("latents", *(shape(each.latents) for each in found)),
        ("image values per latent value", *(f"{each.ratio:g}" for each in found)),
        ("pixels per latent position", *(f"{each.factor} x {each.factor}" for each in found)),
        ("tokens per prompt, including start and end", *(str(each.text_states[0]) for each in found)),
        ("text embeddings", *(shape(each.text_states) for each in found)),
        ("vocabulary size", *(f"{each.config('text_encoder')['vocab_size']:,}" for each in found)),
        ("text encoder layers", *(str(each.config("text_encoder")["num_hidden_layers"]) for each in found)),
        ("U-Net levels", *("<br>".join(level(one) for one in each.levels) for each in found)),
        ("timestep embedding", *(str(4 * each.levels[0].channels) for each in found)),
        ("parameters, VAE", *(f"{each.parameters['vae']:,}" for each in found)),
        ("parameters, text encoder", *(f"{each.parameters['text_encoder']:,}" for each in found)),
        ("parameters, U-Net", *(f"{each.parameters['unet']:,}" for each in found)),
        ("U-Net calls for 50 steps with guidance", *(f"2 x {each.calls}" for each in found)),
    ]
    return table(["", *MODELS], rows)


def shape(sizes: Sequence[int]) -> str:
    return f"({', '.join(map(str, sizes))})"


def level(found: Level) -> str:
    return shape(found.shape) + (" + text" if found.attends else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def between(text: str, name: str) -> str:
    """The content between the markers of a section."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    return text.partition(begin)[2].partition(end)[0].strip()


def put(text: str, name: str, content: str) -> str:
    """The page with the content between the markers replaced."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    head, found, rest = text.partition(begin)
    assert found, f"the page has no {begin}"
    return f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
