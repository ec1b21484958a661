"""Blocks of the U-Net by name: `up_blocks.3`, `mid_block`, `conv_out`, and presets of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraConv2dLayer
from pydantic import Field, field_validator
from torch import Tensor, nn

from data import rng
from data.cli import Options
from data.errors import InputError, suggest

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    from train.exporters.verify import ExportRequest
    from train.model import BaseModel

BLOCK_PRESETS = ("all", "last-layers")
ALLOWED_BLOCKS = (
    "all, last-layers (the last up block and the output layers), or names such as up_blocks.3, mid_block, conv_out"
)
OUTPUT_LAYERS = ("conv_norm_out", "conv_out")


def resolve_blocks(unet: Any, names: Sequence[str], where: str) -> list[str]:
    """Module names for names and presets. Raises InputError for a name that no part of this U-Net has."""
    known = [name for name, module in unet.named_modules() if name and next(module.parameters(), None) is not None]
    found: list[str] = []
    for name in names:
        if name not in BLOCK_PRESETS and name not in known:
            near = suggest(name, [*BLOCK_PRESETS, *sorted(known, key=len)])
            raise InputError(f"this U-Net has no block {name!r}{near}", where=where, allowed=ALLOWED_BLOCKS)
        found += expand_preset(unet, name) if name in BLOCK_PRESETS else [name]
    return list(dict.fromkeys(found))


def expand_preset(unet: Any, name: str) -> list[str]:
    """all: every part. last-layers: the last up block, the output norm and the output convolution."""
    if name == "all":
        own = [weight for weight, _ in unet.named_parameters(recurse=False)]
        return [*(child for child, _ in unet.named_children()), *own]
    return [f"up_blocks.{len(unet.up_blocks) - 1}", *OUTPUT_LAYERS]


def fix_group_norm_backward(unet: Any) -> None:
    """Let the input of each trained group norm need a gradient too.

    torch 2.13 on a CPU, 2026-11-21: the backward pass of a channels-last group norm whose weights are trained and whose
    input needs no gradient, as at the edge of a frozen block, writes to a null pointer and ends the process.
    """
    from torch.nn import GroupNorm

    for module in unet.modules():
        if isinstance(module, GroupNorm) and module.weight.requires_grad:
            module.register_forward_pre_hook(require_input_gradient)


def require_input_gradient(norm: Any, inputs: tuple[Any]) -> tuple[Any]:
    (x,) = inputs
    crashes = norm.training and x.device.type == "cpu" and not x.requires_grad
    return (x.detach().requires_grad_(),) if crashes else inputs


def is_inside(name: str, blocks: Sequence[str]) -> bool:
    """Whether a module or parameter lies in one of the blocks."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def innermost_block(name: str, blocks: Sequence[str]) -> str | None:
    """The smallest of the blocks that a module lies in."""
    return max((block for block in blocks if is_inside(name, [block])), key=len, default=None)


class ConvMagnitude(DoraConv2dLayer):
    """peft's for a convolution. Its own cannot read channels-last weights, and takes norms in half precision."""

    def get_lora_weight(self, lora_A: nn.Module, lora_B: nn.Module, adapter_name: str | None = None) -> Tensor:
        """(out, in * k * k): B A, whatever the order in memory."""
        down, up = lora_A.weight, lora_B.weight
        assert isinstance(down, Tensor) and isinstance(up, Tensor)
        return up.flatten(1) @ down.flatten(1)

    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        """(1, out, 1, 1) float32: the norm of each output's weights."""
        changed = weight.float() + scaling * lora_weight.float()
        return changed.flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.ndim - 2))


def adapted_layers(unet: nn.Module, adapter: str = "default") -> Iterator[tuple[str, Any]]:
    """The layers that carry an adapter, by name."""
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield name, module


@torch.no_grad()
def init_dora(unet: nn.Module, adapter: str = "default") -> None:
    """Magnitudes in float32, equal to the norms that the forward pass takes: then B = 0 is the base, bit for bit."""
    for _, layer in adapted_layers(unet, adapter):
        weight = layer.get_base_layer().weight
        if weight.ndim > 2:
            layer.lora_magnitude_vector[adapter] = ConvMagnitude(fan_in_fan_out=False)
        magnitude = layer.lora_magnitude_vector[adapter]
        norm = magnitude.get_weight_norm(weight.float(), torch.zeros_like(weight, dtype=torch.float32), 1.0)
        magnitude.weight = nn.Parameter(norm)


def dora_magnitudes(layer: Any, adapter: str = "default") -> Tensor | None:
    """(out,) DoRA's magnitudes of a layer, or None where there are none."""
    vectors = layer.lora_magnitude_vector
    return vectors[adapter].weight.detach().flatten() if vectors is not None and adapter in vectors else None


sample_keys: list[Tensor] = []  # (B,) int64: of the samples in the network; one network trains in a process


def set_sample_keys(uniforms: Tensor) -> None:
    """Say which samples the next forward pass (and its backward pass) is about: (B,) float64, one of each position."""
    sample_keys[:] = [uniforms.double().view(torch.int64)]


class PositionedDropout(nn.Module):
    """Zeroes a share of each sample's inputs and scales the others by 1 / (1 - share); the identity in evaluation.

    (B, ...) -> (B, ...). name: of the layer, so that each has masks of its own. Source: Srivastava et al. 2014,
    JMLR 15, section 4.
    """

    def __init__(self, share: float, name: str) -> None:
        super().__init__()
        self.share = share
        self.salt = rng.seed_for("lora dropout", name)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        (keys,) = sample_keys
        assert len(keys) == len(x), "set_sample_keys() comes before each forward pass"
        dropped = rng.counter_bits(keys.to(x.device), self.salt, x[0].numel()) < round(self.share * 2**rng.COUNTER_BITS)
        return x.masked_fill(dropped.view(x.shape), 0.0) / (1.0 - self.share)


def replace_dropout(unet: nn.Module, share: float, adapter: str = "default") -> None:
    """Put ours where peft put torch's, which draws from the global generator."""
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_dropout:
            module.lora_dropout[adapter] = PositionedDropout(share, name)


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
RANK_FORMAT = "NAME=RANK with a rank from 1 to 1024, e.g. up_blocks.3=32"
HIGHEST_RANK = 1024


class LoraOptions(Options):
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
                raise InputError(f"{text!r} is not a block's rank", where="--adapter.ranks", allowed=RANK_FORMAT)
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

        from train.adapters import trainable_parameters

        config = self.peft_config(unet)
        unet.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            unet.add_adapter(config)
        for name, parameter in trainable_parameters(unet).items():
            parameter.data = parameter.data.float()  # whatever precision the base is in
            init_lora_weight(name, parameter, seed)
        if self.use_dora:
            init_dora(unet)
        if self.dropout:
            replace_dropout(unet, self.dropout)

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
        resolve_blocks(unet, list(asked), "--adapter.ranks")
        layers = [name for name, _ in unet.named_modules() if f".{name}".endswith(tuple(f".{end}" for end in modules))]
        for block in asked:
            if not any(is_inside(layer, [block]) for layer in layers):
                fix = "Add its layers with --adapter.targets."
                raise InputError(f"no adapted layer lies in {block!r}", where="--adapter.ranks", fix=fix)
        nearest = {layer: innermost_block(layer, list(asked)) for layer in layers}
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
        self, unet: UNet2DConditionModel, base: BaseModel, folder: Path, request: ExportRequest | None = None
    ) -> list[Path]:
        """`lora.safetensors` (diffusers) and `lora-kohya.safetensors`; merged models when asked. See train/exports."""
        from train.exporters import full_model, lora_files
        from train.exporters.verify import ExportRequest

        request = request or ExportRequest()
        written = lora_files.export_lora(unet, base, folder, request)
        return written + full_model.export_model(unet, base, folder, request, folder_too=request.options.merge)


def init_lora_weight(name: str, parameter: torch.nn.Parameter, seed: int) -> None:
    """A from a generator of its own, B zero; DoRA's magnitudes are the base's, see train/lora.py."""
    from torch.nn import init

    if "lora_B" in name:
        init.zeros_(parameter)
    elif "lora_A" in name:
        init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=rng.generator(seed, "lora", name))
