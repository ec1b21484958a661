"""From options to a network. BUILDERS has a function for each kind of config.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import InputError
from data.shapes import Timesteps
from train.ddpm.unets.basic import BasicUNet
from train.ddpm.unets.config import (
    AnyKind,
    BasicUNetOptions,
    ConvNextOptions,
    PaperOptions,
    PlainUNetOptions,
    UNet2DOptions,
)
from train.ddpm.unets.convnext import AnnotatedUNet, ConvNextBlock, ResnetBlock
from train.ddpm.unets.paper import PaperUNet


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
    return AnnotatedUNet(
        shape.channels,
        width=options.width,
        multiples=options.multiples,
        init_width=options.init_width,
        out_channels=shape.channels * shape.answers,
        block=blocks[options.block],
        classes=shape.classes,
        full_skip=options.full_skip,
        time=options.time,
    )


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
