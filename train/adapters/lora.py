"""LoRA: a low-rank update beside each chosen layer, W + s B A with s = alpha / rank.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; the layers are peft's. DoRA: Liu et al. 2024, arXiv 2402.09353,
eq. 5; rsLoRA, s = alpha / sqrt(rank): Kalajdzievski 2023, arXiv 2312.03732, section 3.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from data import seeds
from data.errors import InputError, suggest
from data.options import Options
from train.adapters import blocks

if TYPE_CHECKING:  # the flags are read before torch is loaded
    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    from train.base_model import BaseModel
    from train.exports.request import Request

TARGETS = {  # names people know -> the ends of module names in diffusers' U-Net
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "feed-forward": ["ff.net.0.proj", "ff.net.2"],
    "convolutions": [
        "conv1",
        "conv2",
        "conv_shortcut",
        "proj_in",
        "proj_out",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
    ],
}
RANKS = "NAME=RANK with a rank from 1 to 1024, e.g. up_blocks.3=32"
HIGHEST_RANK = 1024


class Lora(Options):
    """Train a low-rank adapter; the base stays as it is, and the file is small."""

    kind: Literal["lora"] = "lora"
    """what is trained: a low-rank adapter (lora) or the U-Net itself (full)"""
    rank: int = Field(default=16, ge=1, le=HIGHEST_RANK)
    """rank of the update: more learns more and forgets more"""
    alpha: float | None = Field(default=None, gt=0)
    """the update is scaled by alpha / rank; default: alpha = rank, a scale of 1 as in diffusers' scripts"""
    ranks: list[str] = Field(default=[])
    """ranks of single blocks as NAME=RANK, e.g. up_blocks.3=32, the smallest block that fits counts; alpha / rank is
    the same in all of them; may be repeated"""
    targets: list[str] = Field(default=["attention"])
    """layers that get one: attention, feed-forward, convolutions, or the end of a module's name; may be repeated"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of each layer's inputs that the update does not see while it trains"""
    use_dora: bool = False
    """DoRA: learn the length of each row of the weights apart from its direction; slower, often better at low ranks"""
    use_rslora: bool = False
    """rsLoRA: scale by alpha / sqrt(rank), so that large ranks learn as fast; with alpha = rank that is sqrt(rank)"""

    @field_validator("targets")
    @classmethod
    def not_empty(cls, targets: list[str]) -> list[str]:
        if not targets:
            raise InputError("no layers are chosen", where="--adapter.targets", allowed=", ".join(TARGETS))
        return targets

    @field_validator("ranks", mode="before")
    @classmethod
    def as_list(cls, ranks: Any) -> Any:
        """A preset may write them as a mapping."""
        return [f"{name}={rank}" for name, rank in ranks.items()] if isinstance(ranks, dict) else ranks

    @field_validator("ranks")
    @classmethod
    def readable(cls, ranks: list[str]) -> list[str]:
        for text in ranks:
            name, _, rank = text.partition("=")
            if not (name and rank.isdecimal() and 1 <= int(rank) <= HIGHEST_RANK):
                raise InputError(f"{text!r} is not a block's rank", where="--adapter.ranks", allowed=RANKS)
        return ranks

    @property
    def label(self) -> str:
        return f"{'dora' if self.use_dora else 'lora'}-r{self.rank}"

    @property
    def trains_base(self) -> bool:
        return False

    @property
    def scaled_by(self) -> float:
        """alpha: the update is B A times alpha / rank."""
        return float(self.rank if self.alpha is None else self.alpha)

    def attach(self, unet: UNet2DConditionModel, seed: int) -> None:
        """Add the layers. A is uniform as in the paper's code, B is zero, so that training starts from the base."""
        import torch

        from train.adapters import dora, dropout
        from train.adapters.base import trainable

        config = self.peft_config(unet)
        unet.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            unet.add_adapter(config)
        for name, parameter in trainable(unet).items():
            parameter.data = parameter.data.float()  # whatever precision the base is in
            initialise(name, parameter, seed)
        if self.use_dora:
            dora.settle(unet)
        if self.dropout:
            dropout.replace(unet, self.dropout)

    def peft_config(self, unet: UNet2DConditionModel) -> LoraConfig:
        """The same as peft says it. Raises InputError for a layer or block that this U-Net does not have."""
        from peft import LoraConfig

        modules = [module for target in self.targets for module in TARGETS.get(target, [target])]
        self.refuse_unknown(unet, modules)
        ranks = self.other_ranks(unet, modules)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.scaled_by,  # type: ignore[arg-type]
            target_modules=modules,
            bias="none",
            lora_dropout=self.dropout,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            # whole names: a pattern's order is lost in the exported header
            rank_pattern={f"^{name}": rank for name, rank in ranks.items()},
            alpha_pattern={f"^{name}": self.scaled_by * rank / self.rank for name, rank in ranks.items()},
        )

    def other_ranks(self, unet: UNet2DConditionModel, modules: list[str]) -> dict[str, int]:
        """The rank of each layer that has one of its own. Raises InputError for a block that changes no layer."""
        asked = {name: int(rank) for name, _, rank in (text.partition("=") for text in self.ranks)}
        blocks.resolve(unet, list(asked), "--adapter.ranks")
        layers = [name for name, _ in unet.named_modules() if f".{name}".endswith(tuple(f".{end}" for end in modules))]
        for block in asked:
            if not any(blocks.inside(layer, [block]) for layer in layers):
                fix = "Add its layers with --adapter.targets."
                raise InputError(f"no adapted layer lies in {block!r}", where="--adapter.ranks", fix=fix)
        nearest = {layer: blocks.nearest(layer, list(asked)) for layer in layers}
        found = {layer: asked[block] for layer, block in nearest.items() if block is not None}
        return {layer: rank for layer, rank in found.items() if rank != self.rank}

    def refuse_unknown(self, unet: UNet2DConditionModel, modules: list[str]) -> None:
        """Each name must be the end of at least one module's name. Raises InputError."""
        from torch.nn import Conv2d, Linear

        layers = [name for name, module in unet.named_modules() if isinstance(module, Linear | Conv2d)]
        ends = {".".join(layer.split(".")[start:]) for layer in layers for start in range(layer.count(".") + 1)}
        for module in modules:
            if module not in ends:
                what = f"no layer is called {module!r}{suggest(module, [*TARGETS, *sorted(ends, key=len)])}"
                allowed = f"{', '.join(TARGETS)}, or the end of a layer's name such as {layers[-1]}"
                raise InputError(what, where="--adapter.targets", allowed=allowed)

    def export(
        self, unet: UNet2DConditionModel, base: BaseModel, folder: Path, request: Request | None = None
    ) -> list[Path]:
        """`lora.safetensors` (diffusers) and `lora-kohya.safetensors`; merged models when asked. See train/exports."""
        from train.exports import loras, models
        from train.exports.request import Request

        request = request or Request()
        written = loras.export(unet, base, folder, request)
        return written + models.export(unet, base, folder, request, folder_too=request.options.merge)


def initialise(name: str, parameter: torch.nn.Parameter, seed: int) -> None:
    """A from a generator of its own, B zero; DoRA's magnitudes are the base's, see train/adapters/dora.py."""
    from torch.nn import init

    if "lora_B" in name:
        init.zeros_(parameter)
    elif "lora_A" in name:
        init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=seeds.generator(seed, "lora", name))
