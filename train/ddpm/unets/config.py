"""Options of the networks, one class a kind. To add one: a class here and in the union, and a builder in build.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data.cli import Options

KIND_HELP = """basic and plain (without skips): three convolutions down, three up; convnext: the U-Net of the annotated
diffusion model; paper: that of Ho et al. 2020; unet2d: diffusers' UNet2DModel"""


class BasicUNetOptions(Options):
    """BasicUNet of Hugging Face's course, 309,057 parameters for one channel: the skips are sums."""

    kind: Literal["basic"] = Field(default="basic", description=KIND_HELP)
    final_activation: bool = False
    """SiLU at the end, as in the course: the output is then never below -0.28"""


class PlainUNetOptions(Options):
    """BasicUNet without skip connections."""

    kind: Literal["plain"] = Field(default="plain", description=KIND_HELP)
    final_activation: bool = False
    """SiLU at the end, as in the course: the output is then never below -0.28"""


class ConvNextOptions(Options):
    """The annotated diffusion model's U-Net, 3,013,479 parameters for one channel."""

    kind: Literal["convnext"] = Field(default="convnext", description=KIND_HELP)
    width: int = Field(default=28, ge=4, multiple_of=2)
    """channels of the first level"""
    multiples: tuple[int, ...] = Field(default=(1, 2, 4), min_length=1)
    """channels of each level as multiples of width; each level but the first has half the size"""
    init_width: int | None = Field(default=None, gt=0)
    """output channels of the first convolution; default: two thirds of width"""
    block: Literal["convnext", "resnet"] = "convnext"
    """type of block"""
    multiple: int = Field(default=2, gt=0)
    """expansion factor inside a ConvNeXt block"""
    scale_shift: bool = False
    """in a ResNet block, time scales and shifts the normed activations instead of being added"""
    full_skip: bool = True
    """pass the full-size skip to the last block; the original leaves it out"""
    time: bool = True
    """condition the network on the timestep"""


class PaperOptions(Options):
    """The U-Net of the DDPM paper, 35,746,307 parameters for three channels."""

    kind: Literal["paper"] = Field(default="paper", description=KIND_HELP)
    widths: tuple[int, ...] = Field(default=(128, 256, 256, 256), min_length=1)
    """channels of each level; each level but the first has half the size"""
    blocks: int = Field(default=2, gt=0)
    """residual blocks of a level on the way down; one more on the way up"""
    attention: tuple[int, ...] = (1,)
    """levels with self-attention, 0 being the full size"""
    groups: int = Field(default=32, gt=0)
    """groups of every GroupNorm; must divide each width"""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """dropout probability"""


class UNet2DOptions(Options):
    """diffusers' UNet2DModel with the course's settings, 1,707,009 parameters for one channel."""

    kind: Literal["unet2d"] = Field(default="unet2d", description=KIND_HELP)
    widths: tuple[int, ...] = Field(default=(32, 64, 64), min_length=1)
    """channels of each level; each level but the first has half the size and self-attention"""
    blocks: int = Field(default=2, gt=0)
    """residual blocks of a level on the way down; one more on the way up"""
    groups: int = Field(default=32, gt=0)
    """groups of every GroupNorm; must divide each width"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """dropout probability"""


AnyKind = BasicUNetOptions | PlainUNetOptions | ConvNextOptions | PaperOptions | UNet2DOptions
AnyNetwork = Annotated[AnyKind, Field(discriminator="kind")]
