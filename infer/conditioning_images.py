"""Images that go in: an initial image, an inpainting mask, a scribble for a ControlNet; and the size that comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError

from data import images
from data.atomic_io import file_sha256
from data.errors import InputError
from data.shapes import Images
from infer.config import GenerateOptions, parse_aspect
from infer.metadata import InputUsed
from train.model import BaseModel

MID_GREY = 127  # of 0 to 255: up to here a pixel is dark
CONTROL_WEIGHTS = "diffusion_pytorch_model.safetensors"
DARK, LIGHT = "dark-on-light", "light-on-dark"


@dataclass(frozen=True, eq=False)
class ConditioningImages:
    """Input images before they are resized, RGB. mask: white where new content is generated.

    control: white lines on black. controlnet: the network that follows them, on the device.
    """

    init: Image.Image | None = None
    mask: Image.Image | None = None
    control: Image.Image | None = None
    controlnet: Any = None
    control_scale: float = 1.0
    used: tuple[InputUsed, ...] = ()
    polarity: str = ""
    control_hash: str = ""  # SHA-256 of the ControlNet's weights

    @property
    def size(self) -> tuple[int, int] | None:
        """Of the image that decides the output size when no option does."""
        image = self.init or self.control
        return None if image is None else image.size

    def at(self, width: int, height: int) -> ResizedImages:
        """Each image scaled to cover width x height pixels and cropped to exactly that."""
        return resize_images(self, width, height)


@dataclass(frozen=True)
class ResizedImages:
    """At output size. pixels (1, 3, H, W) in [-1, 1]; mask (1, 1, H, W) and lines (1, 3, H, W) of 0 and 1."""

    image: Image.Image | None = None
    pixels: Images | None = None
    mask: torch.Tensor | None = None
    lines: torch.Tensor | None = None

    def restore_outside_mask(self, generated: Image.Image) -> Image.Image:
        """The generated image inside the mask, the original, pixel for pixel, outside of it."""
        if self.mask is None or self.image is None:
            return generated
        inside = Image.fromarray((self.mask[0, 0] * 255).byte().numpy())
        return Image.composite(generated, self.image, inside)


NO_IMAGES = ConditioningImages()


@lru_cache(maxsize=8)
def resize_images(given: ConditioningImages, width: int, height: int) -> ResizedImages:
    init, mask, lines = (
        None if image is None else images.resize_and_crop(image, width, height)
        for image in (given.init, given.mask, given.control)
    )
    pixels = None if init is None else images.image_to_tensor(init)[None]
    return ResizedImages(init, pixels, binarize(mask, 1), binarize(lines, 3))


def binarize(image: Image.Image | None, channels: int) -> torch.Tensor | None:
    """(1, channels, H, W) of 0 and 1: whether a pixel is light."""
    if image is None:
        return None
    return (images.image_to_tensor(image.convert("L").convert("RGB"))[None, :channels] >= 0).float()


# ---- reading


def read_conditioning(options: GenerateOptions, device: torch.device, dtype: torch.dtype) -> ConditioningImages:
    """The input images that the options name. Raises InputError for an unreadable image, mask or ControlNet."""
    paths = {"init": options.init_image, "mask": options.mask, "scribble": options.scribble}
    used = tuple(InputUsed(role=r, name=p.name, sha256=file_sha256(p)) for r, p in paths.items() if p is not None)
    if not used:
        return NO_IMAGES
    init = None if options.init_image is None else images.open_image(options.init_image)
    mask = None if options.mask is None else read_mask(options.mask, init)
    if options.scribble is None:
        return ConditioningImages(init, mask, used=used)
    scribble = images.open_image(options.scribble)
    polarity: str = options.polarity
    if polarity == "auto":  # most of a scribble is its background
        polarity = DARK if light_pixels(scribble) >= scribble.width * scribble.height / 2 else LIGHT
    if options.controlnet is None:
        init = scribble if polarity == DARK else ImageOps.invert(scribble)
        return ConditioningImages(init, used=used, polarity=polarity)
    lines = ImageOps.invert(scribble) if polarity == DARK else scribble
    network = load_controlnet(options.controlnet, device, dtype)
    weights = file_sha256(options.controlnet / CONTROL_WEIGHTS)
    return ConditioningImages(init, mask, lines, network, options.control_scale, used, polarity, weights)


def light_pixels(image: Image.Image) -> int:
    return sum(image.convert("L").histogram()[MID_GREY + 1 :])


def read_mask(path: Path, init: Image.Image | None) -> Image.Image:
    """A black and white mask. Raises InputError if its size differs from the image's or it is black everywhere."""
    mask = images.open_image(path)
    if init is not None and mask.size != init.size:
        what = f"is {mask.width} x {mask.height} pixels, --init-image is {init.width} x {init.height}"
        raise InputError(what, where=f"--mask {path}", fix="Save it at the same size.")
    if light_pixels(mask) == 0:
        fix = "White marks what is generated."
        raise InputError("is black everywhere: nothing would be generated", where=f"--mask {path}", fix=fix)
    return mask


@contextmanager
def load_errors(where: str) -> Iterator[None]:
    """What goes wrong when a library loads weights, as an InputError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"could not be loaded ({reason})", where=where) from error


def load_controlnet(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A ControlNet in diffusers' layout. Raises InputError."""
    from diffusers import ControlNetModel

    where = f"--controlnet {folder}"
    if not (folder / "config.json").is_file() or not (folder / CONTROL_WEIGHTS).is_file():
        fix = f"Use a folder with config.json and {CONTROL_WEIGHTS}."
        raise InputError("has no ControlNet in diffusers' layout", where=where, fix=fix)
    with load_errors(where):
        network: Any = ControlNetModel.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True,
                                                       local_files_only=True)  # fmt: skip
    return network.requires_grad_(False).eval().to(device)


def check_unet(conditioning: ConditioningImages, unet: Any) -> None:
    """Raises InputError when the U-Net or the ControlNet does not support the input images."""
    channels, width = unet.config.in_channels, unet.config.cross_attention_dim
    if channels == 9 and conditioning.mask is None:
        fix = "Give --init-image and --mask."
        raise InputError("this model only does inpainting (9 input channels)", where="--model", fix=fix)
    if channels not in (4, 9):
        raise InputError(f"a U-Net with {channels} input channels is not supported", where="--model", allowed="4 or 9")
    if conditioning.controlnet is not None and conditioning.controlnet.config.cross_attention_dim != width:
        own = conditioning.controlnet.config.cross_attention_dim
        raise InputError(f"needs text embeddings of width {own}, the model has {width}", where="--controlnet")


# ---- size


def choose_size(options: GenerateOptions, side: int, step: int, given: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) in pixels, multiples of `step`. side: the model's own. given: the size of an input image."""
    if options.width or options.height or (not options.aspect and given is None):
        return options.width or side, options.height or side
    aspect = parse_aspect(options.aspect) or (given[0] / given[1] if given else 1.0)
    return size_for_aspect(aspect, side**2, step)


def size_for_aspect(aspect: float, area: int, step: int) -> tuple[int, int]:
    """The multiples of `step` nearest to this aspect ratio and area (pixels); the ratio counts twice as much."""

    def error(size: tuple[int, int]) -> float:
        width, height = size
        return 2 * abs(math.log(width / height / aspect)) + abs(math.log(width * height / area))

    def multiples(side: float) -> tuple[int, int]:
        below = max(step, int(side // step) * step)
        return below, below + step

    width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return min(((w, h) for w in multiples(width) for h in multiples(height)), key=error)


def check_side(flag: str, side: int, model: BaseModel) -> list[InputError]:
    """An InputError for a side that the model's networks cannot halve as often as they need to."""
    if side % model.step == 0:
        return []
    below = side // model.step * model.step
    near = f"{below} or {below + model.step}" if below else f"{model.step}"
    return [InputError(f"{side} is not a multiple of {model.step} pixels", where=flag, fix=f"Use {near}.")]
