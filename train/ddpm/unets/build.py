"""From options to a network. BUILDERS has a function for each kind of config.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.errors import InputError
from data.shapes import Timesteps
from train.ddpm.config import AnyKind, BasicUNetOptions, ConvNextOptions, PaperOptions, PlainUNetOptions, UNet2DOptions
from train.ddpm.unets.convnext import AnnotatedUNet, ConvNextBlock, ResnetBlock
from train.ddpm.unets.layers import upsample_nearest
from train.ddpm.unets.paper import PaperUNet


class BasicUNet(nn.Module):
    """The course's network: three 5 x 5 convolutions down, three up; `skips` False for its twin without skips.

    It predicts from x_t alone: good enough for x_0, as the amount of noise is visible in x_t. 309,057 parameters for
    one channel. In the course SiLU follows the last convolution too; it is never below -0.2785 and cannot generate
    black, so here it is left out without `final_activation`. Source: Hugging Face diffusion-models-class, unit 1.
    """

    def __init__(self, channels: int, *, skips: bool = True, final_activation: bool = False) -> None:
        super().__init__()
        self.skips = skips
        widths = (channels, 32, 64, 64)
        self.down = nn.ModuleList([nn.Conv2d(*pair, 5, padding=2) for pair in pairwise(widths)])
        self.up = nn.ModuleList([nn.Conv2d(*pair, 5, padding=2) for pair in pairwise(widths[::-1])])
        self.last = nn.SiLU() if final_activation else nn.Identity()

    def forward(self, xt: Tensor, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        assert labels is None, "this network has no classes"
        full = functional.silu(self.down[0](xt))
        half = functional.silu(self.down[1](functional.max_pool2d(full, 2)))
        quarter = functional.silu(self.down[2](functional.max_pool2d(half, 2)))
        x = functional.silu(self.up[0](quarter))
        x = functional.silu(self.up[1](self.upsample_and_skip(x, half)))
        return self.last(self.up[2](self.upsample_and_skip(x, full)))

    def upsample_and_skip(self, x: Tensor, skip: Tensor) -> Tensor:
        larger = upsample_nearest(x)
        return larger + skip if self.skips else larger


@dataclass(frozen=True)
class NetworkShape:
    """Input and output of a network: images of size x size pixels, classes (0: none).

    answers: output channels for each input channel: 1, or 2 if it predicts a variance as well.
    """

    channels: int
    size: int
    classes: int = 0
    answers: int = 1


def build_network(options: AnyKind, shape: NetworkShape) -> nn.Module:
    """network(xt, t, labels=None) with random weights (torch's global generator: seed it first). Raises InputError."""
    return BUILDERS[options.kind](options, shape)


def build_basic(options: BasicUNetOptions | PlainUNetOptions, shape: NetworkShape) -> nn.Module:
    check_size(options, shape, 2)
    check_unconditional(options, shape)
    if shape.answers != 1:
        what = f"network {options.kind!r} cannot predict a variance"
        raise InputError(what, where="--variance", allowed="a fixed one")
    skips = options.kind == "basic"
    return BasicUNet(shape.channels, skips=skips, final_activation=options.final_activation)


def build_convnext(options: ConvNextOptions, shape: NetworkShape) -> nn.Module:
    check_size(options, shape, len(options.multiples) - 1)
    if not options.time:
        check_unconditional(options, shape)
    blocks = {
        "convnext": partial(ConvNextBlock, multiple=options.multiple),
        "resnet": partial(ResnetBlock, scale_shift=options.scale_shift),
    }
    settings = options.model_dump(include={"width", "multiples", "init_width", "full_skip", "time"})
    out = shape.channels * shape.answers
    block = blocks[options.block]
    return AnnotatedUNet(shape.channels, **settings, out_channels=out, block=block, classes=shape.classes)


def build_paper(options: PaperOptions, shape: NetworkShape) -> nn.Module:
    check_size(options, shape, len(options.widths) - 1)
    check_groups(options)
    settings = options.model_dump(exclude={"kind"})
    return PaperUNet(shape.channels, **settings, out_channels=shape.channels * shape.answers, classes=shape.classes)


def build_unet2d(options: UNet2DOptions, shape: NetworkShape) -> nn.Module:
    lower = len(options.widths) - 1
    check_size(options, shape, lower)
    check_groups(options)
    return DiffusersUNet(
        shape.classes,
        sample_size=shape.size,
        in_channels=shape.channels,
        out_channels=shape.channels * shape.answers,
        layers_per_block=options.blocks,
        block_out_channels=options.widths,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * lower),
        up_block_types=(*["AttnUpBlock2D"] * lower, "UpBlock2D"),
        norm_num_groups=options.groups,
        dropout=options.dropout,
    )


class DiffusersUNet(nn.Module):
    """diffusers' UNet2DModel of the given settings; label `classes` means no class, as does labels=None."""

    def __init__(self, classes: int = 0, **settings: Any) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        self.classes = classes
        self.unet = UNet2DModel(num_class_embeds=classes + 1 if classes else None, **settings)

    def forward(self, xt: Tensor, t: Timesteps, labels: Tensor | None = None) -> Tensor:
        if self.classes and labels is None:
            labels = torch.full_like(t, self.classes)
        return self.unet(xt, t, class_labels=labels, return_dict=False)[0]


BUILDERS: dict[str, Callable[[Any, NetworkShape], nn.Module]] = {
    "basic": build_basic,
    "plain": build_basic,
    "convnext": build_convnext,
    "paper": build_paper,
    "unet2d": build_unet2d,
}


def check_size(options: AnyKind, shape: NetworkShape, halvings: int) -> None:
    """Raise InputError for a size that cannot be halved so often."""
    factor = 2**halvings
    if shape.size % factor:
        nearest = max(factor, round(shape.size / factor) * factor)
        what = f"network {options.kind!r} halves the size {halvings} times, which is impossible for {shape.size} pixels"
        raise InputError(what, where="--data.size", allowed=f"multiples of {factor}, e.g. {nearest}")


def check_unconditional(options: AnyKind, shape: NetworkShape) -> None:
    """Raise InputError for classes, which this network does not take."""
    if shape.classes:
        what = f"network {options.kind!r} is not conditioned on time or class"
        raise InputError(what, where="--conditional", allowed="no", fix="Add --no-conditional.")


def check_groups(options: PaperOptions | UNet2DOptions) -> None:
    """Raise InputError if the groups do not divide every width."""
    odd = [width for width in options.widths if width % options.groups]
    if odd:
        what, allowed = f"{options.groups} groups do not divide {odd[0]} channels", ", ".join(map(str, options.widths))
        raise InputError(what, where="--network.groups", allowed=f"a divisor of {allowed}")
