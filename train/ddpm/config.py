"""Options of the image set, the network, the noise schedule and the objective. Nothing here imports torch.

To add a network: a class here and in AnyKind, and a builder in unets/build.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, model_validator

from data.cli import Options
from data.errors import InputError

BOUND_ONLY = ("only", "importance")  # values of ObjectiveOptions.bound without L_simple


class ImageSetOptions(Options):
    """Images to train on; defaults depend on the set."""

    set: str = "digits"
    """digits (scikit-learn's 1,797 handwritten ones, offline); creatures (this project's sample images); a folder of
    images; a folder saved by the library datasets; a preset, e.g. fashion_mnist, cifar10 or cars (all of them:
    docs/ddpm-runs.md); or OWNER/NAME of a data set on the Hugging Face hub"""
    size: int | None = Field(default=None, ge=4, le=1024)
    """image size in pixels; images are resized and cropped to a square"""
    mode: Literal["L", "RGB"] | None = None
    """L: gray, one channel; RGB: color, three"""
    flip: bool | None = None
    """mirror half of the images during training (not if left and right matter)"""
    only: list[str] = Field(default=[])
    """class to keep, by name; may be repeated"""
    column: str | None = None
    """image column of a Hugging Face data set; default: the first one of images"""
    label_column: str | None = None
    """class column of a Hugging Face data set; default: the first one of classes"""
    subset: str | None = None
    """configuration of a Hugging Face data set"""
    split: str = "train"
    """split of a Hugging Face data set"""
    most: int | None = Field(default=None, gt=1)
    """maximum number of images, drawn by the seed"""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """share of the images kept out of training; near-duplicates stay on one side"""


HUB_PRESETS = {
    name: ImageSetOptions.model_validate(row)
    for name, row in yaml.safe_load((Path(__file__).parent / "hub_presets.yaml").read_text(encoding="utf-8")).items()
}


# ---- networks, one class a kind

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


# ---- schedule and objective


class ScheduleOptions(Options):
    """The noise schedule."""

    name: str = "linear"
    """linear, scaled_linear (also called quadratic), sigmoid, cosine or cosine_capped"""
    steps: int = Field(default=1000, gt=0)
    """T, the number of steps"""
    zero_terminal_snr: bool = False
    """rescale it so that x_T holds no trace of the image; not for noise prediction"""


class ObjectiveOptions(Options):
    """The training objective."""

    predicts: Literal["eps", "x0", "v", "mean"] = "eps"
    """what the network predicts: the noise, the image, the velocity, or the mean of x_{t-1}"""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """distance between prediction and target"""
    bound: Literal["no", "hybrid", "only", "importance"] = "no"
    """use of the variational bound: no (L_simple), hybrid (0.001 of it is added, for a learned variance), only, or
    importance (only, with timesteps sampled more often where it is large)"""
    variance: Literal["fixed-large", "fixed-small", "learned-range"] = "fixed-large"
    """variance of a reverse step; learned-range doubles the output channels and needs --objective.bound"""
    weighting: Literal["none", "min-snr", "soft-min-snr"] = "none"
    """weight of each timestep: uniform, or capped by gamma at low noise"""
    gamma: float | None = Field(default=None, gt=0)
    """signal-to-noise ratio at which --objective.weighting caps; default: 5 (min-snr), 4 (soft-min-snr)"""
    corruption: Literal["gaussian", "mix"] = "gaussian"
    """gaussian: q(x_t | x_0); mix: (1 - a) x_0 + a eps with a linear amount a, as in the course, for x0 prediction"""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """noise of --objective.corruption mix: gaussian, as in the course's report, or uniform, as in its notebook"""

    @model_validator(mode="after")
    def check_combination(self) -> Self:
        if self.corruption == "mix" and (self.predicts != "x0" or self.bound != "no"):
            what = "the mix is not a Gaussian process: it supports x0 prediction only, without the bound"
            raise InputError(what, where="--objective.corruption", allowed="--objective.predicts x0, no bound")
        if self.noise != "gaussian" and self.corruption != "mix":
            what = "uniform noise is for --objective.corruption mix"
            raise InputError(what, where="--objective.noise", allowed="gaussian")
        if self.weighting != "none" and (self.predicts == "mean" or self.bound in BOUND_ONLY):
            what = "only errors of eps, x0 or v can be weighted"
            raise InputError(what, where="--objective.weighting", allowed="none")
        if self.weighting == "none" and self.gamma is not None:
            raise InputError("has no effect without --objective.weighting", where="--objective.gamma")
        learns = self.variance == "learned-range"
        if learns != (self.bound == "hybrid") and not (learns and self.bound in BOUND_ONLY):
            what = "a learned variance is trained by the bound, and the hybrid loss is for a learned variance"
            fix = "Give both --objective.variance learned-range and --objective.bound hybrid, or neither."
            raise InputError(what, where="--objective.bound", fix=fix)
        return self
