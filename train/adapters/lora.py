"""LoRA: a low-rank update beside each chosen layer, W + (alpha / rank) B A.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; the layers are peft's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from data import seeds
from data.errors import InputError, suggest
from data.options import Options

if TYPE_CHECKING:  # the flags are read before torch is loaded
    import torch
    from diffusers import UNet2DConditionModel

    from train.base_model import BaseModel

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


class Lora(Options):
    """Train a low-rank adapter; the base stays as it is, and the file is small."""

    kind: Literal["lora"] = "lora"
    """what is trained: a low-rank adapter (lora) or the whole U-Net (full)"""
    rank: int = Field(default=16, ge=1, le=1024)
    """rank of the update: more learns more and forgets more"""
    alpha: float | None = Field(default=None, gt=0)
    """the update is scaled by alpha / rank; default: alpha = rank, a scale of 1 as in diffusers' scripts"""
    targets: list[str] = Field(default=["attention"])
    """layers that get one: attention, feed-forward, convolutions, or the end of a module's name; may be repeated"""

    @field_validator("targets")
    @classmethod
    def not_empty(cls, targets: list[str]) -> list[str]:
        if not targets:
            raise InputError("no layers are chosen", where="--adapter.targets", allowed=", ".join(TARGETS))
        return targets

    @property
    def label(self) -> str:
        return f"lora-r{self.rank}"

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
        from peft import LoraConfig

        from train.adapters.base import trainable

        modules = [module for target in self.targets for module in TARGETS.get(target, [target])]
        self.refuse_unknown(unet, modules)
        config = LoraConfig(r=self.rank, lora_alpha=self.scaled_by, target_modules=modules, bias="none")  # type: ignore[arg-type]
        unet.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            unet.add_adapter(config)
        for name, parameter in trainable(unet).items():
            parameter.data = parameter.data.float()  # whatever precision the base is in
            initialise(name, parameter, seed)

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

    def export(self, unet: UNet2DConditionModel, base: BaseModel, folder: Path) -> list[Path]:
        """`lora.safetensors` in diffusers' layout, with rank and alpha in its header."""
        from train.adapters import files

        target = folder / "lora.safetensors"
        files.export_lora(unet, base, target)
        return [target]


def initialise(name: str, parameter: torch.nn.Parameter, seed: int) -> None:
    """A from a generator of its own, B zero."""
    from torch.nn import init

    if "lora_B" in name:
        init.zeros_(parameter)
    else:
        init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=seeds.generator(seed, "lora", name))
