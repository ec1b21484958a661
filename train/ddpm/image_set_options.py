"""Options of the images that fit.py and compare.py train on. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from data.cli import Options


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


@dataclass(frozen=True)
class HubPreset:
    """A data set on the hub with its image size, mode, mirroring and classes."""

    hub: str
    size: int
    mode: Literal["L", "RGB"]
    flip: bool
    subset: str | None = None
    only: tuple[str, ...] = ()


HUB_PRESETS: dict[str, HubPreset] = {
    "fashion_mnist": HubPreset("fashion_mnist", 28, "L", True),
    "mnist": HubPreset("mnist", 28, "L", False),
    "a-mnist": HubPreset("gorar/A-MNIST", 28, "L", False),
    "cifar10": HubPreset("cifar10", 32, "RGB", True),
    "cars": HubPreset("cifar10", 32, "RGB", True, only=("automobile",)),
    "svhn": HubPreset("svhn", 32, "RGB", False, subset="cropped_digits"),
    "celeba": HubPreset("tpremoli/CelebA-attrs", 64, "RGB", True),
    "plants": HubPreset("sampath017/plants", 64, "RGB", True),
    "indoor-scenes": HubPreset("keremberke/indoor-scene-classification", 64, "RGB", True, subset="mini"),
    "quickdraw-small": HubPreset("Xenova/quickdraw-small", 28, "L", True),
    "quickdraw": HubPreset("quickdraw", 28, "L", True, subset="preprocessed_bitmaps"),
    "milly": HubPreset("spongus/milly-images", 64, "RGB", True),
    "rice": HubPreset("miladfa7/Rice-Image-Dataset", 64, "RGB", True),
    "butterflies": HubPreset("imageomics/Curated_GoldStandard_Hoyal_Cuthill", 64, "RGB", True),
    "cats-and-dogs": HubPreset("Bingsu/Cat_and_Dog", 64, "RGB", True),
}
