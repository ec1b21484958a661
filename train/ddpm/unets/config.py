"""The networks by name, with their settings. To add one: a frozen model below with `build`, and its name in the union.

The settings are read before torch is loaded, so networks are imported where they are built.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

from data.cli import Options
from data.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NetworkShape:
    """What a network is built for: pictures of size x size pixels, classes (0: none), answers for each channel.

    answers: 1, or 2 if it is to predict a variance as well.
    """

    channels: int
    size: int
    classes: int = 0
    answers: int = 1


class NetworkOptions(Options):
    """Parent of the settings of every network; each has a `kind`, its name."""

    @property
    def name(self) -> str:
        return str(type(self).model_fields["kind"].default)

    @abstractmethod
    def build(self, frame: NetworkShape) -> nn.Module:
        """A network of random weights (torch's global generator: seed it first). Raises InputError if it cannot fit."""

    def refuse_size(self, frame: NetworkShape, halvings: int) -> None:
        """Each halving of the size must come out even, or what comes back up fits no skip."""
        factor = 2**halvings
        if frame.size % factor:
            nearest = max(factor, round(frame.size / factor) * factor)
            what = f"network {self.name!r} halves the size {halvings} times, which {frame.size} pixels do not allow"
            raise InputError(what, where="--data.size", allowed=f"multiples of {factor}, e.g. {nearest}")

    def refuse_classes(self, frame: NetworkShape) -> None:
        if frame.classes:
            what = f"network {self.name!r} is told neither time nor class"
            raise InputError(what, where="--conditional", allowed="no", fix="Add --no-conditional.")

    def refuse_variance(self, frame: NetworkShape) -> None:
        if frame.answers != 1:
            what = f"network {self.name!r} has no second answer for a variance"
            raise InputError(what, where="--variance", allowed="a fixed one")


class BasicOptions(NetworkOptions):
    """Parent of the course's two networks, 309,057 parameters each for one channel: the skips are sums."""

    final_activation: bool = False
    """SiLU at the end, as the course has it: nothing below -0.28 can then be painted"""

    def build(self, frame: NetworkShape) -> nn.Module:
        from train.ddpm.unets.basic import BasicUNet

        self.refuse_size(frame, 2)
        self.refuse_classes(frame)
        self.refuse_variance(frame)
        return BasicUNet(frame.channels, skips=self.name == "basic", final_activation=self.final_activation)


class BasicUNetOptions(BasicOptions):
    """The course's BasicUNet."""

    kind: Literal["basic"] = "basic"
    """basic and plain (without skips): three convolutions down, three up; convnext: annotated-diffusion's U-Net;
    paper: that of Ho et al. 2020; unet2d: diffusers' UNet2DModel"""


class PlainUNetOptions(BasicOptions):
    """BasicUNet without skip connections."""

    kind: Literal["plain"] = "plain"
    """basic and plain (without skips): three convolutions down, three up; convnext: annotated-diffusion's U-Net;
    paper: that of Ho et al. 2020; unet2d: diffusers' UNet2DModel"""


class ConvNextOptions(NetworkOptions):
    """Annotated diffusion's U-Net, 3,013,479 parameters for one channel (2,996,315 without the skip it forgot)."""

    kind: Literal["convnext"] = "convnext"
    """basic and plain (without skips): three convolutions down, three up; convnext: annotated-diffusion's U-Net;
    paper: that of Ho et al. 2020; unet2d: diffusers' UNet2DModel"""
    width: int = Field(default=28, ge=4, multiple_of=2)
    """channels of the first level"""
    multiples: tuple[int, ...] = Field(default=(1, 2, 4), min_length=1)
    """channels of each level as multiples of width; each level but the first has half the size"""
    init_width: int | None = Field(default=None, gt=0)
    """channels that the first convolution makes; default: two thirds of width"""
    block: Literal["convnext", "resnet"] = "convnext"
    """what the levels are made of"""
    multiple: int = Field(default=2, gt=0)
    """how much wider a ConvNeXt block is inside"""
    scale_shift: bool = False
    """in a ResNet block, time scales and shifts what is normed instead of being added"""
    full_skip: bool = True
    """hand the full-size skip to the last block; without it the network is the original, which forgets it"""
    time: bool = True
    """tell the network the time"""

    def build(self, frame: NetworkShape) -> nn.Module:
        from train.ddpm.unets.convnext import AnnotatedUNet, block_builder

        self.refuse_size(frame, len(self.multiples) - 1)
        if not self.time:
            self.refuse_classes(frame)
        return AnnotatedUNet(
            frame.channels,
            width=self.width,
            multiples=self.multiples,
            init_width=self.init_width,
            out_channels=frame.channels * frame.answers,
            block=block_builder(self.block, multiple=self.multiple, scale_shift=self.scale_shift),
            classes=frame.classes,
            full_skip=self.full_skip,
            told_time=self.time,
        )


class PaperOptions(NetworkOptions):
    """The paper's U-Net, 35,746,307 parameters for three channels."""

    kind: Literal["paper"] = "paper"
    """basic and plain (without skips): three convolutions down, three up; convnext: annotated-diffusion's U-Net;
    paper: that of Ho et al. 2020; unet2d: diffusers' UNet2DModel"""
    widths: tuple[int, ...] = Field(default=(128, 256, 256, 256), min_length=1)
    """channels of each level; each level but the first has half the size"""
    blocks: int = Field(default=2, gt=0)
    """residual blocks of a level on the way down; one more on the way up"""
    attention: tuple[int, ...] = (1,)
    """levels with self-attention, 0 being the full size"""
    groups: int = Field(default=32, gt=0)
    """of every norm; each width is a multiple of it"""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """share of activations that are left out in training"""

    def build(self, frame: NetworkShape) -> nn.Module:
        from train.ddpm.unets.paper import PaperUNet

        self.refuse_size(frame, len(self.widths) - 1)
        check_groups(self.groups, self.widths)
        return PaperUNet(
            frame.channels,
            widths=self.widths,
            blocks=self.blocks,
            attention=self.attention,
            groups=self.groups,
            dropout=self.dropout,
            out_channels=frame.channels * frame.answers,
            classes=frame.classes,
        )


class UNet2DOptions(NetworkOptions):
    """diffusers' UNet2DModel with the course's settings, 1,707,009 parameters for one channel."""

    kind: Literal["unet2d"] = "unet2d"
    """basic and plain (without skips): three convolutions down, three up; convnext: annotated-diffusion's U-Net;
    paper: that of Ho et al. 2020; unet2d: diffusers' UNet2DModel"""
    widths: tuple[int, ...] = Field(default=(32, 64, 64), min_length=1)
    """channels of each level; each level but the first has half the size and self-attention"""
    blocks: int = Field(default=2, gt=0)
    """residual blocks of a level on the way down; one more on the way up"""
    groups: int = Field(default=32, gt=0)
    """of every norm; each width is a multiple of it"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of activations that are left out in training"""

    def build(self, frame: NetworkShape) -> nn.Module:
        from train.ddpm.unets.build import DiffusersUNet

        self.refuse_size(frame, len(self.widths) - 1)
        check_groups(self.groups, self.widths)
        lower = len(self.widths) - 1
        return DiffusersUNet(
            frame.classes,
            sample_size=frame.size,
            in_channels=frame.channels,
            out_channels=frame.channels * frame.answers,
            layers_per_block=self.blocks,
            block_out_channels=self.widths,
            down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * lower),
            up_block_types=(*["AttnUpBlock2D"] * lower, "UpBlock2D"),
            norm_num_groups=self.groups,
            dropout=self.dropout,
        )


def check_groups(groups: int, widths: tuple[int, ...]) -> None:
    """A norm's groups are of one size. Raises InputError."""
    odd = [width for width in widths if width % groups]
    if odd:
        what = f"{groups} groups do not divide {odd[0]} channels"
        raise InputError(what, where="--network.groups", allowed=f"a divisor of {', '.join(map(str, widths))}")


AnyKind = BasicUNetOptions | PlainUNetOptions | ConvNextOptions | PaperOptions | UNet2DOptions
AnyNetwork = Annotated[AnyKind, Field(discriminator="kind")]
NETWORKS: dict[str, type[NetworkOptions]] = {kind.model_fields["kind"].default: kind for kind in get_args(AnyKind)}
