"""Images -> feature matrices: extractors, and a cache keyed by image bytes, extractor name and version.

To add an extractor: a class with `name`, `version` and `encode`, and its name in `make_extractor`. Raise the version
with any change of its output.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.atomic_io import atomic_file, cache_root, file_sha256
from data.errors import InputError, check_choice
from data.images import decode, read_bytes
from data.progress import ProgressBar
from data.schema import Sample

Features = NDArray[np.float32]  # (n, d), one row an image
ImageSource = Sample | Path | Image.Image
BATCH_SIZE = 32  # images decoded and encoded at a time


class Extractor(Protocol):
    """Turns images into rows. Equal name and version promise equal rows for equal images."""

    @property
    def name(self) -> str: ...  # also a folder of the cache

    @property
    def version(self) -> str: ...  # of the code, and a hash of the weights if there are any

    def encode(self, images: Sequence[Image.Image]) -> Features: ...  # RGB images of any size -> (n, d) float32


def extract_features(extractor: Extractor, images: Sequence[ImageSource], *, cache: bool = True) -> Features:
    """(n, d) float32 features of samples, files or images, cached by row. InputError for unusable or changed files."""
    folder = cache_root() / "features" / f"{extractor.name}-{extractor.version}"
    keys = [content_key(image) for image in images]
    paths = {key: folder / key[:2] / f"{key}.npy" for key in keys}
    rows = {key: row for key, path in paths.items() if cache and (row := load_row(path)) is not None}
    missing = list({key: image for key, image in zip(keys, images, strict=True) if key not in rows}.items())
    for start in ProgressBar(range(0, len(missing), BATCH_SIZE), desc=extractor.name, unit="batch"):
        batch = missing[start : start + BATCH_SIZE]
        encoded = extractor.encode([load_image(image, key) for key, image in batch])
        assert encoded.dtype == np.float32 and encoded.ndim == 2 and len(encoded) == len(batch), extractor.name
        for (key, _), row in zip(batch, encoded, strict=True):
            rows[key] = row
            if cache:
                save_row(paths[key], row)
    return np.stack([rows[key] for key in keys]) if keys else np.empty((0, 0), np.float32)


def content_key(image: ImageSource) -> str:
    """The SHA-256 of a file's bytes, or of an image's mode, size and pixels: never a name."""
    if isinstance(image, Sample):
        return image.sha256
    if isinstance(image, Path):
        return hashlib.sha256(read_bytes(image)).hexdigest()
    head = f"pixels {image.mode} {image.width} {image.height} "
    return hashlib.sha256(head.encode() + image.tobytes()).hexdigest()


def load_image(image: ImageSource, key: str) -> Image.Image:
    """The image as RGB, decoded from the bytes that were hashed."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    path = image.path if isinstance(image, Sample) else image
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != key:
        raise InputError("changed while it was being read", where=path, fix="Run the command again.")
    return decode(content, path)[0]


def load_row(path: Path) -> Features | None:
    """A cached row, or None if there is none or it is damaged."""
    try:
        row = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return row if row.ndim == 1 and row.dtype == np.float32 else None


def save_row(path: Path, row: Features) -> None:
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.save(file, row, allow_pickle=False)


@dataclass(frozen=True)
class PixelFeatures:
    """The image itself, shrunk to size x size (squashed, antialiased): (n, 3 size^2) in [0, 1]."""

    size: int = 32
    name: str = "pixels"

    @property
    def version(self) -> str:
        return f"1-{self.size}"

    def encode(self, images: Sequence[Image.Image]) -> Features:
        shrunk = [image.convert("RGB").resize((self.size, self.size), Image.Resampling.BOX) for image in images]
        return np.stack([np.asarray(image, np.float32).ravel() / np.float32(255) for image in shrunk])


# ---- style in numbers, without a network


Plane = NDArray[np.float32]  # (h, w) in [0, 1]
Rows = NDArray[np.float64]  # (images, descriptors)
AREA = 128 * 128  # pixels that images are scaled to, so that line width and grain are comparable
WHITE = 0.85  # all three colours at or above: paper, cream included
DARK = 0.22  # luminance below: ink
FRAME = 1 / 16  # width of the border, as a share of the shorter side
SATURATIONS, HUES, LIGHTS, TURNS = 8, 12, 8, 4
LEVELS = 8  # a colour of the palette: one of 8 x 8 x 8 cells

DESCRIPTOR_NAMES = (
    "border white", "border unevenness", "white", "ink", "palette entropy", "colours of half", "colours of 90%",
    "colourfulness", "edges", "strong edges", "flat", "mirror symmetry",
    *(f"saturation {index + 1}/{SATURATIONS}" for index in range(SATURATIONS)),
    *(f"hue {360 * index // HUES} degrees" for index in range(HUES)),
    *(f"lightness {index + 1}/{LIGHTS}" for index in range(LIGHTS)),
    *(f"edge direction {180 * index // TURNS} degrees" for index in range(TURNS)),
)  # fmt: skip


@dataclass(frozen=True)
class StyleDescriptors:
    """Paper, border, palette, saturation, hue, lightness, lines: (n, len(DESCRIPTOR_NAMES)) numbers in [-1, 1]."""

    name: str = "descriptors"
    version: str = "1"

    def encode(self, images: Sequence[Image.Image]) -> Features:
        return np.stack([np.asarray(describe_style(image), np.float32) for image in images])


def describe_style(image: Image.Image) -> list[float]:
    """The numbers of one image, in the order of DESCRIPTOR_NAMES."""
    colours = resize_to_area(image)
    luminance = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    white = colours.min(axis=2) >= WHITE
    entropy, half, most = palette_features(colours)
    edges, strong, flat, directions = edge_features(luminance)
    saturations, hues = saturation_and_hue(colours)
    return [
        *border_features(colours, white), float(white.mean()), float((luminance < DARK).mean()), entropy, half, most,
        colourfulness(colours), edges, strong, flat, mirror_symmetry(luminance),
        *saturations, *hues, *histogram(luminance, LIGHTS), *directions,
    ]  # fmt: skip


def resize_to_area(image: Image.Image) -> NDArray[np.float32]:
    """(h, w, 3) in [0, 1] with h * w of about AREA; at least 3 pixels a side."""
    scale = math.sqrt(AREA / (image.width * image.height))
    size = (max(3, round(image.width * scale)), max(3, round(image.height * scale)))
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32) / np.float32(255)


def border_features(colours: NDArray[np.float32], white: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of white in the frame, and the standard deviation of the frame's colours about their mean."""
    frame = np.ones(white.shape, bool)
    width = max(1, round(min(white.shape) * FRAME))
    frame[width:-width, width:-width] = False
    return float(white[frame].mean()), float(colours[frame].std(axis=0).mean())


def palette_features(colours: NDArray[np.float32]) -> tuple[float, float, float]:
    """Entropy of the palette, and the log of how many colours cover 50 % and 90 %; relative to their maxima."""
    cells = np.minimum((colours * LEVELS).astype(int), LEVELS - 1) @ np.array([LEVELS**2, LEVELS, 1])
    count = np.sort(np.bincount(cells.ravel()))[::-1]
    share = count[count > 0] / cells.size
    entropy = -(share * np.log(share)).sum()
    covered = np.cumsum(share)
    half, most = (1 + int(np.searchsorted(covered, goal - 1e-9)) for goal in (0.5, 0.9))
    top = math.log(LEVELS**3)
    return float(entropy / top), math.log(half) / top, math.log(most) / top


def colourfulness(colours: NDArray[np.float32]) -> float:
    """M3 of Hasler and Suesstrunk (2003), "Measuring colourfulness in natural images", of colours in [0, 1]."""
    red, green, blue = np.moveaxis(colours, 2, 0)
    against = red - green, (red + green) / 2 - blue
    deviation = math.hypot(*(float(axis.std()) for axis in against))
    return deviation + 0.3 * math.hypot(*(float(axis.mean()) for axis in against))


def edge_features(luminance: Plane) -> tuple[float, float, float, list[float]]:
    """Shares of pixels on an edge, on a strong edge, in a flat area; and the strength by direction of the line."""
    down, right = np.gradient(luminance)
    strength = np.hypot(down, right)
    lines = np.mod(np.arctan2(right, -down), np.pi) / np.pi * TURNS
    turn = np.mod(np.rint(lines).astype(int), TURNS)
    weight = np.bincount(turn.ravel(), strength.ravel(), TURNS)
    spread = (weight / max(float(weight.sum()), 1e-9)).tolist()
    return float((strength > 0.04).mean()), float((strength > 0.15).mean()), float((strength < 0.008).mean()), spread


def mirror_symmetry(luminance: Plane) -> float:
    """Correlation of the image with its mirror image; 1 for an image of one grey."""
    centred = luminance - luminance.mean()
    power = float((centred**2).mean())
    return float((centred * centred[:, ::-1]).mean()) / power if power > 1e-8 else 1.0


def saturation_and_hue(colours: NDArray[np.float32]) -> tuple[list[float], list[float]]:
    """Histograms of saturation (HSV), and of hue weighted by chroma; without any colour all hues are 0."""
    high, low = colours.max(axis=2), colours.min(axis=2)
    chroma = high - low
    red, green, blue = np.moveaxis(colours, 2, 0)
    hue = np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)
    place = np.mod(np.rint(hue * HUES).astype(int), HUES)
    weight = np.bincount(place.ravel(), chroma.ravel(), HUES)
    total = float(weight.sum())
    saturation = chroma / np.maximum(high, 1e-6)
    return histogram(saturation, SATURATIONS), (weight / total if total > 1e-3 * chroma.size else 0 * weight).tolist()


def histogram(values: Plane, bins: int) -> list[float]:
    """The share of values in each of `bins` equal parts of [0, 1]."""
    place = np.minimum((np.clip(values, 0, 1) * bins).astype(int), bins - 1)
    return (np.bincount(place.ravel(), minlength=bins) / values.size).tolist()


def standardized(base: Rows, tuned: Rows, reference: Rows) -> tuple[Rows, Rows, Rows]:
    """All three with every descriptor at mean 0 and deviation 1 over base and reference together."""
    both = np.concatenate([base, reference])
    mean, deviation = both.mean(0), np.maximum(both.std(0), 1e-6)
    return (base - mean) / deviation, (tuned - mean) / deviation, (reference - mean) / deviation


ENCODER_VERSION = "1"  # raise it when what is done with a model's output changes
SETTINGS_FILES = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class PretrainedEncoder:
    """A vision model of transformers as its save_pretrained wrote it, with its image processor; never downloaded."""

    folder: Path
    name: str = ""

    @cached_property
    def version(self) -> str:
        """The code's version and a hash of the settings and weights."""
        digest = hashlib.sha256()
        for path in check_encoder_folder(self.folder, self.name):
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
        return f"{ENCODER_VERSION}-{digest.hexdigest()[:16]}"

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """(image processor, model) in float32, on the GPU if there is one. Raises InputError for damaged files."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel

        check_encoder_folder(self.folder, self.name)
        local: dict[str, Any] = {"local_files_only": True}
        try:
            processor = AutoImageProcessor.from_pretrained(self.folder, backend="pil", **local)
            model = AutoModel.from_pretrained(self.folder, use_safetensors=True, dtype=torch.float32, **local)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"cannot be loaded ({str(error).splitlines()[0]})", where=self.folder) from error
        return processor, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def encode(self, images: Sequence[Image.Image]) -> Features:
        """The pooled output for images preprocessed by the model's own settings."""
        import torch

        processor, model = self.parts
        pixels = processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return self.forward(model, pixels.to(model.device)).pooler_output.float().cpu().numpy()

    def forward(self, model: Any, pixels: Any) -> Any:
        return model(pixel_values=pixels)


@dataclass(frozen=True)
class Clip(PretrainedEncoder):
    """CLIP's image embeddings after projection, at unit length: a dot product of two is their cosine."""

    name: str = "clip"

    def forward(self, model: Any, pixels: Any) -> Any:
        return model.get_image_features(pixel_values=pixels)

    def encode(self, images: Sequence[Image.Image]) -> Features:
        return unit_length(super().encode(images))

    def encode_text(self, texts: Sequence[str]) -> Features:
        """Text embeddings in the same space, (n, d) at unit length, truncated to the text encoder's length."""
        import torch
        from transformers import AutoTokenizer

        _, model = self.parts
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            return unit_length(model.get_text_features(**tokens).pooler_output.float().cpu().numpy())


@dataclass(frozen=True)
class Dinov2(PretrainedEncoder):
    """DINOv2's class token after its last norm."""

    name: str = "dinov2"


def unit_length(rows: Features) -> Features:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def check_encoder_folder(folder: Path, kind: str) -> list[Path]:
    """The files that decide the output. Raises InputError if one is missing or the model is of another kind."""
    fix = f"Give a folder that transformers' save_pretrained wrote for a {kind} model and its image processor."
    if not folder.is_dir():
        raise InputError("is not a folder on this machine; models are not downloaded here", where=folder, fix=fix)
    settings = [folder / name for name in SETTINGS_FILES]
    weights = sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in settings if not path.is_file()] + ([] if weights else ["*.safetensors"])
    if missing:
        raise InputError(f"holds no {' and no '.join(missing)}", where=folder, fix=fix)
    try:
        model_type = json.loads(settings[0].read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"is not a model configuration ({error})", where=settings[0]) from error
    if model_type != kind:
        raise InputError(f"holds a model of type {model_type!r}", where=settings[0], allowed=kind)
    return [*settings, *weights]


EXTRACTORS = ("pixels", "descriptors", "clip", "dinov2")


def make_extractor(name: str, folder: Path | None = None) -> Extractor:
    """The extractor of that name; `clip` and `dinov2` need the folder of a model on this machine."""
    check_choice(name, EXTRACTORS, what="extractor")
    if name in ("clip", "dinov2"):
        if folder is None:
            raise InputError(f"extractor {name!r} needs a model", fix="Give the folder with its weights.")
        return Clip(folder) if name == "clip" else Dinov2(folder)
    return PixelFeatures() if name == "pixels" else StyleDescriptors()
