"""Data sets of the Hugging Face hub by a short name: the tutorial's fourteen, and the course's cars.

Columns are found by their types, so a preset says only what a type cannot: the size, the colours, whether left and
right may be exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """A data set on the hub and how it is used: side in pixels, colours, mirroring, and the classes that are kept."""

    hub: str
    size: int
    mode: Literal["L", "RGB"]
    flip: bool
    subset: str | None = None
    only: tuple[str, ...] = ()


PRESETS: dict[str, Preset] = {
    "fashion_mnist": Preset("fashion_mnist", 28, "L", True),
    "mnist": Preset("mnist", 28, "L", False),
    "a-mnist": Preset("gorar/A-MNIST", 28, "L", False),
    "cifar10": Preset("cifar10", 32, "RGB", True),
    "cars": Preset("cifar10", 32, "RGB", True, only=("automobile",)),
    "svhn": Preset("svhn", 32, "RGB", False, subset="cropped_digits"),
    "celeba": Preset("tpremoli/CelebA-attrs", 64, "RGB", True),
    "plants": Preset("sampath017/plants", 64, "RGB", True),
    "indoor-scenes": Preset("keremberke/indoor-scene-classification", 64, "RGB", True, subset="mini"),
    "quickdraw-small": Preset("Xenova/quickdraw-small", 28, "L", True),
    "quickdraw": Preset("quickdraw", 28, "L", True, subset="preprocessed_bitmaps"),
    "milly": Preset("spongus/milly-images", 64, "RGB", True),
    "rice": Preset("miladfa7/Rice-Image-Dataset", 64, "RGB", True),
    "butterflies": Preset("imageomics/Curated_GoldStandard_Hoyal_Cuthill", 64, "RGB", True),
    "cats-and-dogs": Preset("Bingsu/Cat_and_Dog", 64, "RGB", True),
}
