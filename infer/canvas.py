"""Pictures that go in: one to begin from, a mask of what is drawn anew, lines for a ControlNet to follow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps

from data import images
from data.errors import InputError
from data.files import sha256
from infer.metadata import InputUsed

if TYPE_CHECKING:
    from data.shapes import Images
    from infer.config import GenerateOptions

MIDDLE = 127  # of 0 to 255: up to here a pixel is dark
CONTROL_WEIGHTS = "diffusion_pytorch_model.safetensors"
DARK, LIGHT = "dark-on-light", "light-on-dark"


@dataclass(frozen=True)
class Canvas:
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

    def at(self, width: int, height: int) -> Cut:
        """Everything scaled to cover width x height pixels and cropped to exactly that, the same way for all."""
        return cut(self, width, height)

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Cut:
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


BLANK = Canvas()


@lru_cache(maxsize=8)
def cut(canvas: Canvas, width: int, height: int) -> Cut:
    picture, mask, lines = (
        None if given is None else images.fit(given, width, height)
        for given in (canvas.init, canvas.mask, canvas.control)
    )
    pixels = None if picture is None else images.to_tensor(picture)[None]
    return Cut(picture, pixels, binary(mask, 1), binary(lines, 3))


def binary(picture: Image.Image | None, channels: int) -> torch.Tensor | None:
    """(1, channels, H, W) of 0 and 1: whether a pixel is light."""
    if picture is None:
        return None
    grey = images.to_tensor(picture.convert("L").convert("RGB"))[None, :channels]  # [-1, 1]
    return (grey >= 0).float()


# ---- reading


def of(options: GenerateOptions, device: torch.device, dtype: torch.dtype) -> Canvas:
    """What the options say goes in. Raises InputError: a file is no picture, a mask of another size, no ControlNet."""
    if options.scribble is None and options.init_image is None:
        return BLANK
    init = None if options.init_image is None else images.open_picture(options.init_image)
    mask = None if options.mask is None else open_mask(options.mask, init)
    given = {"init": options.init_image, "mask": options.mask, "scribble": options.scribble}
    used = tuple(
        InputUsed(role=role, name=path.name, sha256=sha256(path)) for role, path in given.items() if path is not None
    )
    if options.scribble is None:
        return Canvas(init, mask, used=used)
    drawing = images.open_picture(options.scribble)
    polarity = polarity_of(drawing) if options.polarity == "auto" else options.polarity
    if options.controlnet is None:
        paper = drawing if polarity == DARK else ImageOps.invert(drawing)
        return Canvas(paper, used=used, polarity=polarity)
    lines = ImageOps.invert(drawing) if polarity == DARK else drawing
    network = load_controlnet(options.controlnet, device, dtype)
    weights = sha256(options.controlnet / CONTROL_WEIGHTS)
    return Canvas(init, mask, lines, network, options.control_scale, used, polarity, weights)


def open_mask(path: Path, init: Image.Image | None) -> Image.Image:
    """A mask, black and white. Raises InputError if it does not lie on the picture or leaves nothing to draw."""
    mask = images.open_picture(path)
    if init is not None and mask.size != init.size:
        what = f"is {mask.width} x {mask.height}, --init-image {init.width} x {init.height} pixels"
        raise InputError(what, where=f"--mask {path}", fix="Save it at the same size.")
    if mask.convert("L").getextrema()[1] <= MIDDLE:  # pyright: ignore[reportOperatorIssue]
        fix = "White is what is drawn anew."
        raise InputError("is black everywhere: nothing would be drawn", where=f"--mask {path}", fix=fix)
    return mask


def polarity_of(drawing: Image.Image) -> str:
    """Whether lines are darker or lighter than their paper: paper is what most of a drawing is."""
    shades = drawing.convert("L").histogram()
    return DARK if sum(shades[MIDDLE + 1 :]) >= sum(shades[: MIDDLE + 1]) else LIGHT


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


def check(canvas: Canvas, unet: Any) -> None:
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
