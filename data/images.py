"""Open any image safely: bounded before it is decoded, whole or not at all, upright, on white, 8-bit sRGB."""

from __future__ import annotations

import importlib
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

# Only these decoders run, whatever a file claims to be: Pillow would also start Ghostscript for a PostScript file.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # several JPEGs in one file, as phones write them
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
PLUGINS = {  # Pillow's plugins, by module: the format that each reads, if it is installed
    "pillow_heif": ("HEIF", (".heic", ".heif")),
    "pillow_jxl": ("JXL", (".jxl",)),
}


def plugin_formats() -> dict[str, tuple[str, ...]]:
    """The formats of the plugins that are installed; each is registered with Pillow."""
    found: dict[str, tuple[str, ...]] = {}
    for name, (kind, suffixes) in PLUGINS.items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "register_heif_opener"):
            module.register_heif_opener()
        found[kind] = suffixes
    return found


FORMATS |= plugin_formats()
DECODERS = [name for name in FORMATS if name != "MPO"]  # the JPEG decoder recognises an MPO
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
SUFFIXES_NOT_READ = (
    frozenset((".jp2", ".svg", ".psd", ".xcf", ".eps", ".ico", ".tga", ".exr", ".dng", ".cr2", ".nef"))
    | {suffix for _, suffixes in PLUGINS.values() for suffix in suffixes}
) - SUFFIXES

MAX_PIXELS = 80_000_000  # about 9000 x 9000, 240 MB once decoded; under Pillow's own limit of 89 million
MAX_BYTES = 512 << 20  # of a file; an uncompressed image of MAX_PIXELS fits
MIN_SIDE = 16  # pixels
MAX_ASPECT = 16.0  # ratio of the sides beyond which no crop shows what is in the image
WARN_ASPECT = 4.0  # ratio beyond which the widest bucket (2 : 1) crops more than half of it away

TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
EXIF_TRANSPOSE = {orientation: Image.Transpose[name] for orientation, name in enumerate(TURNS, start=2)}
KNOWN_NON_IMAGES = (  # how a file begins that is often named like an image, what it is, how to fix it
    (b"version https://git-lfs", "is a Git LFS pointer, not the image", "Run `git lfs pull`."),
    (b"<!DOCTYPE", "is a web page, not an image", "Download the image itself."),
    (b"<html", "is a web page, not an image", "Download the image itself."),
    (b"<svg", "is an SVG drawing, which is not supported", "Export it as PNG."),
    (b"%PDF", "is a PDF, not an image", "Export it as PNG."),
    (b"%!PS", "is PostScript, not an image", "Export it as PNG."),
)
SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
WARNINGS_LOCK = threading.Lock()  # the list of warning filters is shared by all threads


@dataclass(frozen=True)
class ImageInfo:
    """Properties of a usable image file.

    width, height: pixels, after EXIF orientation. mode: as stored. frames: 1 unless animated or paged. notes: what
    opening it does, e.g. "transparency is shown on white". warnings: what its owner may want to fix.
    """

    width: int
    height: int
    format: str
    mode: str
    frames: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def open_image(path: Path) -> Image.Image:
    """The image as 8-bit RGB: upright, first frame, on white where it is transparent. Raises InputError."""
    return decode(read_bytes(path), path)[0]


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_BYTES. Raises InputError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would block for ever
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise InputError("is not a file", where=path, fix="Remove it, or rename it.")
        with os.fdopen(handle, "rb") as file:
            if status.st_size > MAX_BYTES:
                what = f"is larger than {MAX_BYTES >> 20} MiB ({status.st_size >> 20} MiB)"
                raise InputError(what, where=path, fix="Save it smaller.")
            return file.read()
    except OSError as error:
        fix = "Give yourself the right to read it (chmod u+r)." if isinstance(error, PermissionError) else None
        raise InputError(f"cannot be read ({error.strerror or error})", where=path, fix=fix) from error


def decode(content: bytes, where: Path) -> tuple[Image.Image, ImageInfo]:
    """Decode a file's bytes: the image as open_image gives it, and its properties. `where` names it in errors."""
    image = open_header(content, where)
    stored_format, mode = image.format or "", image.mode
    with decoding_errors(where):
        image.load()
    notes: list[str] = []
    rgb = upright(to_srgb(image, to_rgb(image, where, notes), notes), image, notes)
    with no_pillow_warnings():
        try:
            frames = int(getattr(image, "n_frames", 1))
        except Exception:  # only the first is used: damage in a later one costs nothing but the count
            frames = 1
    check_shape(rgb.size, where)
    warned = tuple(warn_of_format(stored_format, frames, rgb.size, where))
    return rgb, ImageInfo(*rgb.size, stored_format, mode, frames, tuple(notes), warned)


def open_header(content: bytes, where: Path) -> Image.Image:
    """Read the header alone; refuse what is not an image, and what declares more pixels than MAX_PIXELS."""
    if not content:
        raise InputError("is empty (0 bytes)", where=where, fix="Copy or download it again.")
    for start, what, fix in KNOWN_NON_IMAGES:
        if content[:64].lstrip().lower().startswith(start.lower()):
            raise InputError(what, where=where, fix=fix)
    with decoding_errors(where, content[:12]), no_pillow_warnings():
        image = Image.open(io.BytesIO(content), formats=DECODERS)
    if image.width * image.height > MAX_PIXELS:
        raise too_large_error(f"{image.width} x {image.height}", where)
    return image


@contextmanager
def no_pillow_warnings() -> Iterator[None]:
    """Pillow warns about odd headers on the screen; what matters becomes an InputError or a note."""
    with WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def decoding_errors(where: Path, start: bytes = b"") -> Iterator[None]:
    """Turn any failure of a decoder into an InputError. start: first bytes, which tell a bad header from no image."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise too_large_error("over 170 million pixels", where) from error
    except Image.UnidentifiedImageError as error:
        if start.startswith(SIGNATURES):
            what = "has an unreadable header: truncated, damaged, or of an unusual kind"
            raise InputError(what, where=where, fix="Copy it again, or save it as PNG.") from error
        fix = "Save it as PNG or JPEG."
        raise InputError("is not a readable image", where=where, allowed=", ".join(DECODERS), fix=fix) from error
    except Exception as error:
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        reason = "is truncated" if truncated else f"is damaged ({error or type(error).__name__})"
        raise InputError(reason, where=where, fix="Copy or download it again.") from error


def too_large_error(size: str, where: Path) -> InputError:
    """For a decompression bomb, or an honest image that is too large to decode."""
    limit = f"up to {MAX_PIXELS // 1_000_000} million pixels"
    return InputError(f"is too large to decode ({size})", where=where, allowed=limit, fix="Save it smaller.")


def to_rgb(image: Image.Image, where: Path, notes: list[str]) -> Image.Image:
    """A detached 8-bit RGB copy of a loaded image."""
    if image.mode.startswith("I;16"):  # value / 257, rounded, so that 65535 is white: Pillow would clip at 255
        values = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        notes.append("16-bit grey is scaled to 8 bits")
        return Image.fromarray(values).convert("RGB")
    if image.mode in {"I", "F", "LAB"}:
        what = f"has pixels of mode {image.mode}, whose range is not known"
        raise InputError(what, where=where, fix="Save it with 8 bits a channel.")
    if image.has_transparency_data and (rgba := image.convert("RGBA")).getchannel("A").getextrema() != (255, 255):
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
        notes.append("transparency is shown on white")
        return white
    notes += ["CMYK is converted to RGB"] if image.mode == "CMYK" else []
    return image.convert("RGB")


def to_srgb(image: Image.Image, rgb: Image.Image, notes: list[str]) -> Image.Image:
    """Apply the RGB or CMYK profile embedded in `image`, with a note; rgb: without it. Grey profiles are ignored."""
    content = image.info.get("icc_profile")
    if not content:
        return rgb
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        name = " ".join(ImageCms.getProfileDescription(profile).split())
        assert isinstance(profile.profile, ImageCms.core.CmsProfile)
        space = profile.profile.xcolor_space.strip()
        source = image if space == image.mode == "CMYK" else rgb if space == "RGB" else None
        if source is None or "srgb" in name.lower():
            return rgb
        converted = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        notes.append("its colour profile cannot be read")
        return rgb
    assert converted is not None, "profileToProfile returns None only when it works in place"
    notes.append(f"colours are converted from {name} to sRGB")
    return converted


def upright(rgb: Image.Image, image: Image.Image, notes: list[str]) -> Image.Image:
    """Turn the image by its EXIF orientation. An unreadable EXIF block is ignored, as in every viewer."""
    with no_pillow_warnings():
        try:
            orientation = image.getexif().get(0x0112, 1)
        except Exception:  # the EXIF reader raises as many types as the decoders do
            notes.append("its EXIF data cannot be read")
            return rgb
    if orientation not in EXIF_TRANSPOSE:
        return rgb
    notes.append("is turned by its EXIF orientation")
    return rgb.transpose(EXIF_TRANSPOSE[orientation])


def check_shape(size: tuple[int, int], where: Path) -> None:
    """Refuse an image that is too small or too narrow to be of use."""
    width, height = size
    if min(size) < MIN_SIDE:
        allowed = f"{MIN_SIDE} pixels a side or more"
        raise InputError(f"is too small ({width} x {height})", where=where, allowed=allowed, fix="Leave it out.")
    if max(size) > MAX_ASPECT * min(size):
        allowed = f"aspect ratios up to {MAX_ASPECT:g} : 1"
        raise InputError(f"is too narrow ({width} x {height})", where=where, allowed=allowed, fix="Crop it.")


def warn_of_format(stored_format: str, frames: int, size: tuple[int, int], where: Path) -> Iterator[str]:
    """A wrong suffix, further frames (not an MPO's second image, a preview), and a long crop."""
    suffixes = FORMATS.get(stored_format, ())
    if where.suffix.lower() not in suffixes:
        right = suffixes[0] if suffixes else ""
        yield f"is a {stored_format} file by its content, and used as such. Rename it to end in {right}."
    if frames > 1 and stored_format != "MPO":
        yield f"has {frames} frames: only the first is used. Save the one you mean as PNG."
    if max(size) > WARN_ASPECT * min(size):
        what = f"is long and narrow ({size[0]} x {size[1]}): over half of it will be cropped away"
        yield f"{what}. Crop it around what matters."


def resize_and_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an RGB image to cover width x height pixels (antialiased Lanczos) and crop the centre to exactly that."""
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as float32 (3, H, W) in [-1, 1]: value / 127.5 - 1."""
    import torch

    assert image.mode == "RGB", image.mode
    values = torch.from_numpy(np.array(image, dtype=np.uint8))  # (H, W, 3)
    return values.permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1.0)


def tensor_to_image(pixels: torch.Tensor) -> Image.Image:
    """A tensor (3, H, W) in [-1, 1] as an RGB image: rounded to the nearest of 256 values, clipped beyond."""
    assert pixels.ndim == 3, tuple(pixels.shape)
    values = pixels.detach().cpu().float()
    if not bool(values.isfinite().all()):
        raise InputError("the decoded image holds NaN or infinity", fix="Decode in fp32.")
    values = values.add(1.0).mul(127.5).round().clamp(0, 255)
    return Image.fromarray(values.byte().permute(1, 2, 0).contiguous().numpy())
