"""Open any picture safely, whole or not at all: bounded before it is decoded, oriented, flattened on white, 8-bit RGB.

Then cut it to a size, and pass it to and from the tensors that the networks see.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageOps

from data.errors import InputError

if TYPE_CHECKING:
    import torch


def to_srgb(picture: Image.Image, rgb: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert to sRGB by the profile embedded in `picture`, and say so; `rgb` is the picture without that knowledge.

    Grey profiles differ from sRGB in little but gamma and are left alone. One that cannot be read changes nothing.
    """
    content = picture.info.get("icc_profile")
    if not content:
        return rgb, []
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        name = " ".join(ImageCms.getProfileDescription(profile).split())
        assert isinstance(profile.profile, ImageCms.core.CmsProfile)
        space = profile.profile.xcolor_space.strip()
        source = picture if space == picture.mode == "CMYK" else rgb if space == "RGB" else None
        if source is None or "srgb" in name.lower():
            return rgb, []
        converted = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return rgb, ["its colour profile cannot be read"]
    assert converted is not None, "profileToProfile returns None only when asked to work in place"
    return converted, [f"colours are converted from {name} to sRGB"]


# Only these decoders run, whatever a file claims to be: Pillow would also start Ghostscript for a PostScript file.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # several JPEGs in one file, as telephones write them
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
DECODERS = [name for name in FORMATS if name != "MPO"]  # the JPEG decoder finds out that a file is an MPO
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
SUFFIXES_NOT_READ = frozenset(
    (".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".eps", ".ico", ".tga", ".exr", ".dng", ".cr2", ".nef")
)

MAX_PIXELS = 80_000_000  # about 9000 x 9000, 240 MB once decoded; under Pillow's own limit of 89 million
MAX_BYTES = 512 << 20  # of a file; an uncompressed picture of MAX_PIXELS fits
MIN_SIDE = 16  # pixels; less holds nothing to learn from
MAX_ASPECT = 16.0  # ratio of the sides beyond which no crop shows what is in the picture
WARN_ASPECT = 4.0  # ratio beyond which the widest bucket (2 : 1) crops more than half of it away

EXIF_TRANSPOSE = {  # EXIF orientation -> what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
KNOWN_NON_IMAGES = (  # how a file begins that is often found under a picture's name -> what it is, what to do
    (b"version https://git-lfs", "is a Git LFS pointer, not the picture", "Run `git lfs pull`."),
    (b"<!DOCTYPE", "is a web page, not a picture", "Download the picture itself."),
    (b"<html", "is a web page, not a picture", "Download the picture itself."),
    (b"<svg", "is an SVG drawing, which is not read", "Export it as PNG."),
    (b"%PDF", "is a PDF, not a picture", "Export it as PNG."),
    (b"%!PS", "is PostScript, not a picture", "Export it as PNG."),
)
SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
WARNINGS_LOCK = threading.Lock()  # the list of warning filters is shared by all threads


@dataclass(frozen=True)
class ImageInfo:
    """What was found in a picture file that can be used.

    width, height: pixels, after EXIF orientation. mode: Pillow's, as stored. frames: 1 unless animated or paged.
    notes: what opening it does, e.g. "transparency is shown on white". warnings: what its owner may want to mend.
    """

    width: int
    height: int
    format: str
    mode: str
    frames: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def inspect_image(path: Path) -> ImageInfo:
    """Decode a picture whole and say what it is; raise InputError with the verdict if it cannot be used."""
    return decode(read_bytes(path), path)[1]


def open_image(path: Path) -> Image.Image:
    """The picture as 8-bit RGB: upright, first frame, on white where it is transparent. Or InputError."""
    return decode(read_bytes(path), path)[0]


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_BYTES; raise InputError otherwise."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would block for ever
    except OSError as error:
        raise read_error(error, path) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise InputError("is not a file", where=path, fix="Remove it, or rename it.")
    with os.fdopen(handle, "rb") as file:
        if status.st_size > MAX_BYTES:
            raise InputError(
                f"is larger than {MAX_BYTES >> 20} MiB ({status.st_size >> 20} MiB)", where=path, fix="Save it smaller."
            )
        try:
            return file.read()
        except OSError as error:
            raise read_error(error, path) from error


def read_error(error: OSError, path: Path) -> InputError:
    """The system's refusal as one line."""
    fix = "Give yourself the right to read it (chmod u+r)." if isinstance(error, PermissionError) else None
    return InputError(f"cannot be read ({error.strerror or error})", where=path, fix=fix)


def decode(content: bytes, where: Path) -> tuple[Image.Image, ImageInfo]:
    """Decode a file's bytes: the picture as open_picture gives it, and what was found. `where` names it in errors."""
    picture = open_header(content, where)
    stored_format, mode = picture.format or "", picture.mode
    with decoding_errors(where):
        picture.load()
    rgb, notes = to_rgb(picture, where)
    rgb, recoloured = to_srgb(picture, rgb)
    rgb, turned = upright(rgb, picture)
    frames = count_frames(picture)
    check_shape(rgb.size, where)
    found = [*warn_of_suffix(stored_format, where), *warn_of_frames(stored_format, frames), *warn_of_shape(rgb.size)]
    return rgb, ImageInfo(*rgb.size, stored_format, mode, frames, (*notes, *recoloured, *turned), tuple(found))


def open_header(content: bytes, where: Path) -> Image.Image:
    """Read the header alone; refuse what is no picture, and what declares more pixels than MAX_PIXELS."""
    if not content:
        raise InputError("is empty (0 bytes)", where=where, fix="Copy or download it again.")
    for start, what, fix in KNOWN_NON_IMAGES:
        if content[:64].lstrip().lower().startswith(start.lower()):
            raise InputError(what, where=where, fix=fix)
    with decoding_errors(where, content[:12]), no_pillow_warnings():
        picture = Image.open(io.BytesIO(content), formats=DECODERS)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise too_large_error(f"{width} x {height}", where)
    return picture


@contextmanager
def no_pillow_warnings() -> Iterator[None]:
    """Keep Pillow's warnings about odd headers off the screen; what matters to a person becomes a verdict."""
    with WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def decoding_errors(where: Path, start: bytes = b"") -> Iterator[None]:
    """Turn whatever a decoder trips over into one line; Pillow's decoders raise a dozen types on broken files.

    start: the first bytes, by which a picture with a bad header is told from no picture at all.
    """
    try:
        yield
    except Image.DecompressionBombError as error:
        raise too_large_error("over 170 million pixels", where) from error
    except Image.UnidentifiedImageError as error:
        if start.startswith(SIGNATURES):
            what = "has a header that cannot be read: cut short, damaged, or of an unusual kind"
            raise InputError(what, where=where, fix="Copy it again, or save it as PNG.") from error
        allowed = ", ".join(DECODERS)
        fix = "Save it as PNG or JPEG."
        raise InputError("is not a picture that can be read", where=where, allowed=allowed, fix=fix) from error
    except Exception as error:
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        reason = "is cut short (truncated)" if cut else f"is damaged ({error or type(error).__name__})"
        raise InputError(reason, where=where, fix="Copy or download it again.") from error


def too_large_error(size: str, where: Path) -> InputError:
    """The verdict on a decompression bomb, or on an honest picture that is too large to decode."""
    limit = f"up to {MAX_PIXELS // 1_000_000} million pixels"
    return InputError(f"is too large to decode ({size})", where=where, allowed=limit, fix="Save it smaller.")


def to_rgb(picture: Image.Image, where: Path) -> tuple[Image.Image, list[str]]:
    """A detached 8-bit RGB copy of a loaded picture, and notes on what that took."""
    if picture.mode.startswith("I;16"):
        return from_16_bit(picture), ["16-bit grey is scaled to 8 bits"]
    if picture.mode in {"I", "F", "LAB"}:
        what = f"has pixels of mode {picture.mode}, whose range is not known"
        raise InputError(what, where=where, fix="Save it with 8 bits a channel.")
    if picture.has_transparency_data:
        return on_white(picture.convert("RGBA"))
    notes = ["CMYK is converted to RGB"] if picture.mode == "CMYK" else []
    return picture.convert("RGB"), notes


def from_16_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey to RGB: value / 257, rounded, so that 65535 is white (Pillow's own conversion clips at 255)."""
    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def on_white(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """An RGBA picture laid on white paper."""
    alpha = picture.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return picture.convert("RGB"), []
    paper = Image.new("RGB", picture.size, "white")
    paper.paste(picture.convert("RGB"), mask=alpha)
    return paper, ["transparency is shown on white"]


def upright(rgb: Image.Image, picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """Turn the picture as its EXIF data says. An EXIF block that cannot be read turns nothing, as in every viewer."""
    with no_pillow_warnings():
        try:
            orientation = picture.getexif().get(0x0112, 1)
        except Exception:  # the EXIF reader raises as many types as the decoders do
            return rgb, ["its EXIF data cannot be read"]
    if orientation not in EXIF_TRANSPOSE:
        return rgb, []
    return rgb.transpose(EXIF_TRANSPOSE[orientation]), ["is turned as its EXIF data says"]


def count_frames(picture: Image.Image) -> int:
    """Frames of an animation or pages of a TIFF. Only the first is used: damage in a later one does no harm."""
    with no_pillow_warnings():
        try:
            return int(getattr(picture, "n_frames", 1))
        except Exception:  # as above: only the count is lost
            return 1


def check_shape(size: tuple[int, int], where: Path) -> None:
    """Refuse a picture that is too small or too long to hold anything."""
    width, height = size
    if min(size) < MIN_SIDE:
        allowed = f"{MIN_SIDE} pixels a side or more"
        raise InputError(f"is too small ({width} x {height})", where=where, allowed=allowed, fix="Leave it out.")
    if max(size) > MAX_ASPECT * min(size):
        allowed = f"sides up to {MAX_ASPECT:g} : 1"
        raise InputError(f"is too long and thin ({width} x {height})", where=where, allowed=allowed, fix="Crop it.")


def warn_of_shape(size: tuple[int, int]) -> list[str]:
    """A long picture loses most of itself to the crop."""
    if max(size) <= WARN_ASPECT * min(size):
        return []
    return [
        f"is long and thin ({size[0]} x {size[1]}): over half of it will be cropped away. Crop it around what matters."
    ]


def warn_of_suffix(stored_format: str, where: Path) -> list[str]:
    """A JPEG named .png is used, but other programs may refuse it."""
    if where.suffix.lower() in FORMATS.get(stored_format, ()):
        return []
    right = FORMATS.get(stored_format, ("",))[0]
    return [f"is a {stored_format} file by its content, and used as such. Rename it to end in {right}."]


def warn_of_frames(stored_format: str, frames: int) -> list[str]:
    """Later frames are left out. The second picture in a telephone's MPO is a preview: nobody misses it."""
    several = frames > 1 and stored_format != "MPO"
    return [f"has {frames} frames: only the first is used. Save the one you mean as PNG."] if several else []


def resize_and_crop(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an RGB picture to cover width x height pixels (antialiased Lanczos) and crop the centre to exactly that."""
    return ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)


def image_to_tensor(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 (3, H, W) in [-1, 1]: value / 127.5 - 1."""
    import torch

    assert picture.mode == "RGB", picture.mode
    values = torch.from_numpy(np.array(picture, dtype=np.uint8))  # (H, W, 3)
    return values.permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1.0)


def tensor_to_image(pixels: torch.Tensor) -> Image.Image:
    """A tensor (3, H, W) in [-1, 1] as an RGB picture: rounded to the nearest of 256 values, clipped beyond."""
    assert pixels.ndim == 3, tuple(pixels.shape)
    values = pixels.detach().cpu().float()
    if not bool(values.isfinite().all()):
        raise InputError("the decoded picture holds NaN or infinity", fix="Decode in fp32.")
    values = values.add(1.0).mul(127.5).round().clamp(0, 255)
    return Image.fromarray(values.byte().permute(1, 2, 0).contiguous().numpy())
