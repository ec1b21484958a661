"""CLIP and DINOv2 as feature extractors, through transformers, from a folder on this machine: nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from data.errors import InputError
from data.features import Features
from data.files import sha256

if TYPE_CHECKING:
    import torch

CODE = "1"  # raise it when what is done with a model's output changes
SETTINGS = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Clip:
    """CLIP's image embeddings after projection, at unit length: a dot product of two is their cosine."""

    folder: Path  # a CLIPModel with its preprocessor_config.json, as transformers saves them

    @property
    def name(self) -> str:
        return "clip"

    @property
    def version(self) -> str:
        return self.fingerprint

    @cached_property
    def fingerprint(self) -> str:
        return weights_version(self.folder, "clip")

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        return load_parts(self.folder, "clip")

    def encode(self, pictures: Sequence[Image.Image]) -> Features:
        processor, model = self.parts
        return unit_rows(run(lambda pixels: model.get_image_features(pixel_values=pixels), model, processor, pictures))

    def encode_text(self, texts: Sequence[str]) -> Features:
        """Text embeddings in the same space, (n, d) at unit length; what exceeds the text encoder's length is cut."""
        import torch
        from transformers import AutoTokenizer

        _, model = self.parts
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            return unit_rows(as_rows(model.get_text_features(**tokens).pooler_output))


@dataclass(frozen=True)
class Dinov2:
    """DINOv2's class token after its last norm, as it comes."""

    folder: Path  # a Dinov2Model with its preprocessor_config.json

    @property
    def name(self) -> str:
        return "dinov2"

    @property
    def version(self) -> str:
        return self.fingerprint

    @cached_property
    def fingerprint(self) -> str:
        return weights_version(self.folder, "dinov2")

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        return load_parts(self.folder, "dinov2")

    def encode(self, pictures: Sequence[Image.Image]) -> Features:
        processor, model = self.parts
        return run(lambda pixels: model(pixel_values=pixels), model, processor, pictures)


def run(call: Any, model: Any, processor: Any, pictures: Sequence[Image.Image]) -> Features:
    """Preprocess as the model's own settings say, and take the pooled output."""
    import torch

    pixels = processor([picture.convert("RGB") for picture in pictures], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return as_rows(call(pixels.to(model.device)).pooler_output)


def as_rows(output: torch.Tensor) -> Features:
    return output.float().cpu().numpy()


def unit_rows(rows: Features) -> Features:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def weights_version(folder: Path, kind: str) -> str:
    """The code's version and a hash of the settings and weights: another model is never taken for this one."""
    digest = hashlib.sha256()
    for path in check_folder(folder, kind):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return f"{CODE}-{digest.hexdigest()[:16]}"


def check_folder(folder: Path, kind: str) -> list[Path]:
    """The files that decide the output; raise InputError if one is missing or the model is of another kind."""
    fix = f"Give a folder that transformers' save_pretrained wrote for a {kind} model and its image processor."
    if not folder.is_dir():
        raise InputError("is not a folder on this machine; models are not downloaded here", where=folder, fix=fix)
    settings = [folder / name for name in SETTINGS]
    weights = sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in settings if not path.is_file()] + ([] if weights else ["*.safetensors"])
    if missing:
        raise InputError(f"holds no {' and no '.join(missing)}", where=folder, fix=fix)
    found = model_type(settings[0])
    if found != kind:
        raise InputError(f"holds a model of type {found!r}", where=settings[0], allowed=kind)
    return [*settings, *weights]


def model_type(config: Path) -> object:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"is no model configuration ({error})", where=config) from error


def load_parts(folder: Path, kind: str) -> tuple[Any, Any]:
    """(image processor, model) in float32, on the GPU if there is one. Raises InputError for damaged files."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModel

    check_folder(folder, kind)
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot be loaded ({str(error).splitlines()[0]})", where=folder) from error
    return processor, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
