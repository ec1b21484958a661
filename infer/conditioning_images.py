"""Pictures that go in: one to begin from, a mask of what is drawn anew, lines for a ControlNet to follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps

from data import images
from data.atomic_io import file_sha256
from data.errors import InputError
from infer.metadata import InputUsed

if TYPE_CHECKING:
    from data.shapes import Images
    from infer.config import GenerateOptions
    from train.model import BaseModel

MID_GREY = 127  # of 0 to 255: up to here a pixel is dark
CONTROL_WEIGHTS = "diffusion_pytorch_model.safetensors"
DARK, LIGHT = "dark-on-light", "light-on-dark"


@dataclass(frozen=True)
class ConditioningImages:
    """What goes in besides words, before it is cut to a size. Pictures are RGB, the mask is white where it draws.

    control: lines, white on black. controlnet: the network that follows them, on the device.
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
        """Of the picture that decides the sides when nothing else does."""
        picture = self.init or self.control
        return None if picture is None else picture.size

    def at(self, width: int, height: int) -> ResizedImages:
        """Everything scaled to cover width x height pixels and cropped to exactly that, the same way for all."""
        return resize_images(self, width, height)

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class ResizedImages:
    """A Canvas at the size of the picture. pixels (1, 3, H, W) in [-1, 1]; mask and lines of 0 and 1, (1, C, H, W)."""

    picture: Image.Image | None
    pixels: Images | None
    mask: torch.Tensor | None
    lines: torch.Tensor | None

    def pasted(self, drawn: Image.Image) -> Image.Image:
        """The drawn picture inside the mask and the given one, pixel for pixel, outside of it."""
        if self.mask is None or self.picture is None:
            return drawn
        inside = Image.fromarray((self.mask[0, 0] * 255).byte().numpy())
        return Image.composite(drawn, self.picture, inside)


NO_IMAGES = ConditioningImages()


@lru_cache(maxsize=8)
def resize_images(canvas: ConditioningImages, width: int, height: int) -> ResizedImages:
    picture, mask, lines = (
        None if given is None else images.resize_and_crop(given, width, height)
        for given in (canvas.init, canvas.mask, canvas.control)
    )
    pixels = None if picture is None else images.image_to_tensor(picture)[None]
    return ResizedImages(picture, pixels, binarize(mask, 1), binarize(lines, 3))


def binarize(picture: Image.Image | None, channels: int) -> torch.Tensor | None:
    """(1, channels, H, W) of 0 and 1: whether a pixel is light."""
    if picture is None:
        return None
    grey = images.image_to_tensor(picture.convert("L").convert("RGB"))[None, :channels]  # [-1, 1]
    return (grey >= 0).float()


# ---- reading


def read_conditioning(options: GenerateOptions, device: torch.device, dtype: torch.dtype) -> ConditioningImages:
    """What the options say goes in. Raises InputError: a file is no picture, a mask of another size, no ControlNet."""
    if options.scribble is None and options.init_image is None:
        return NO_IMAGES
    init = None if options.init_image is None else images.open_image(options.init_image)
    mask = None if options.mask is None else read_mask(options.mask, init)
    given = {"init": options.init_image, "mask": options.mask, "scribble": options.scribble}
    used = tuple(
        InputUsed(role=role, name=path.name, sha256=file_sha256(path))
        for role, path in given.items()
        if path is not None
    )
    if options.scribble is None:
        return ConditioningImages(init, mask, used=used)
    drawing = images.open_image(options.scribble)
    polarity = detect_polarity(drawing) if options.polarity == "auto" else options.polarity
    if options.controlnet is None:
        paper = drawing if polarity == DARK else ImageOps.invert(drawing)
        return ConditioningImages(paper, used=used, polarity=polarity)
    lines = ImageOps.invert(drawing) if polarity == DARK else drawing
    network = load_controlnet(options.controlnet, device, dtype)
    weights = file_sha256(options.controlnet / CONTROL_WEIGHTS)
    return ConditioningImages(init, mask, lines, network, options.control_scale, used, polarity, weights)


def read_mask(path: Path, init: Image.Image | None) -> Image.Image:
    """A mask, black and white. Raises InputError if it does not lie on the picture or leaves nothing to draw."""
    mask = images.open_image(path)
    if init is not None and mask.size != init.size:
        what = f"is {mask.width} x {mask.height}, --init-image {init.width} x {init.height} pixels"
        raise InputError(what, where=f"--mask {path}", fix="Save it at the same size.")
    if mask.convert("L").getextrema()[1] <= MID_GREY:  # pyright: ignore[reportOperatorIssue]
        fix = "White is what is drawn anew."
        raise InputError("is black everywhere: nothing would be drawn", where=f"--mask {path}", fix=fix)
    return mask


def detect_polarity(drawing: Image.Image) -> str:
    """Whether lines are darker or lighter than their paper: paper is what most of a drawing is."""
    shades = drawing.convert("L").histogram()
    return DARK if sum(shades[MID_GREY + 1 :]) >= sum(shades[: MID_GREY + 1]) else LIGHT


def load_controlnet(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A ControlNet as diffusers saves it. Raises InputError."""
    from diffusers import ControlNetModel
    from safetensors import SafetensorError

    where = f"--controlnet {folder}"
    if not (folder / "config.json").is_file() or not (folder / CONTROL_WEIGHTS).is_file():
        fix = f"Give a folder with config.json and {CONTROL_WEIGHTS}."
        raise InputError("holds no ControlNet in diffusers layout", where=where, fix=fix)
    try:
        network: Any = ControlNetModel.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"could not be loaded ({reason})", where=where) from error
    return network.requires_grad_(False).eval().to(device)


def check_unet(canvas: ConditioningImages, unet: Any) -> None:
    """Raises InputError when the networks do not go with what is given."""
    channels = unet.config.in_channels
    if channels == 9 and canvas.mask is None:
        fix = "Give --init-image and --mask."
        raise InputError("this model only fills masks (9 input channels)", where="--model", fix=fix)
    if channels not in (4, 9):
        raise InputError(f"a U-Net of {channels} input channels is not known", where="--model", allowed="4 or 9")
    wanted = unet.config.cross_attention_dim
    if canvas.controlnet is not None and canvas.controlnet.config.cross_attention_dim != wanted:
        has = canvas.controlnet.config.cross_attention_dim
        raise InputError(f"made for text states of {has} numbers, the model has {wanted}", where="--controlnet")


def choose_size(options: GenerateOptions, model: BaseModel, given: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) in pixels. given: of a picture that goes in; its ratio is kept if nothing else is said."""
    if options.width or options.height or (not options.aspect and given is None):
        return options.width or model.sample_size, options.height or model.sample_size
    ratio = options.ratio or (given[0] / given[1] if given else 1.0)
    return size_for_aspect(ratio, model.sample_size**2, model.step)


def size_for_aspect(ratio: float, area: int, step: int) -> tuple[int, int]:
    """The sides of about this ratio and area (pixels) that are multiples of `step`; the ratio counts twice as much."""

    def miss(sides: tuple[int, int]) -> float:
        width, height = sides
        return 2 * abs(math.log(width / height / ratio)) + abs(math.log(width * height / area))

    width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    return min(((w, h) for w in nearest_multiples(width, step) for h in nearest_multiples(height, step)), key=miss)


def nearest_multiples(side: float, step: int) -> Sequence[int]:
    below = max(step, int(side // step) * step)
    return (below, below + step)


def check_side(flag: str, side: int, model: BaseModel) -> list[InputError]:
    """An InputError for a side that the model's networks cannot halve as often as they do."""
    if side % model.step == 0:
        return []
    below = side // model.step * model.step
    near = f"{below} or {below + model.step}" if below else f"{model.step}"
    return [InputError(f"{side} is not a multiple of {model.step} pixels", where=flag, fix=f"Take {near}.")]
