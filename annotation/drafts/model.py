"""Drafts by an image-to-text model, such as BLIP, through transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotation.drafts.source import Draft, Picture, label
from data.errors import InputError
from data.files import sha256
from data.images import decode, read_bytes

if TYPE_CHECKING:
    import torch
    from PIL import Image

LONGEST = 40  # tokens of a draft
BEAMS = 3
BATCH = 8  # pictures drafted, and written to the disk, at a time


@dataclass(frozen=True)
class ImageToText:
    """A loaded model with its processor. start: words that every caption begins with and the model goes on from."""

    model: Any
    processor: Any
    weights: str  # hash of what the model is made of
    start: str = ""

    @property
    def name(self) -> str:
        return str(self.model.config.model_type)

    @property
    def at_a_time(self) -> int:
        return BATCH

    @property
    def version(self) -> str:
        return self.weights

    def draft(self, pictures: Sequence[Picture]) -> list[Draft | None]:
        """Beam search, nothing random: equal pictures and weights give equal drafts on one machine."""
        import torch

        shown = pictures_of(pictures)
        texts = {"text": [self.start] * len(shown)} if self.start else {}
        with torch.inference_mode():
            inputs = self.processor(images=shown, return_tensors="pt", **texts).to(self.model.device)
            made = self.model.generate(
                **inputs,
                do_sample=False,
                num_beams=BEAMS,
                max_new_tokens=LONGEST,
                return_dict_in_generate=True,
                output_scores=True,
            )
        captions = self.processor.batch_decode(made.sequences, skip_special_tokens=True)
        pairs = zip(captions, likelihoods(made.sequences_scores), strict=True)
        return [Draft(tidy(text), label(self), score) if tidy(text) else None for text, score in pairs]


def likelihoods(scores: torch.Tensor) -> list[float]:
    """Mean log-probability of a beam's tokens -> their geometric mean probability, in [0, 1]."""
    return scores.float().exp().clamp(0, 1).tolist()


def tidy(text: str) -> str:
    return " ".join(text.split())


def load(model: str, *, download: bool = False, start: str = "") -> ImageToText:
    """The model of a local folder or, with `download`, of the hub; from safetensors, without remote code.

    Raises InputError if there is no such folder, or if it holds no image-to-text model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    where = f"--model {model}"
    local = Path(model).expanduser().is_dir()
    settings: dict[str, Any] = {"local_files_only": local or not download, "trust_remote_code": False}
    name = str(Path(model).expanduser()) if local else model
    logging.disable_progress_bar()
    try:
        processor = AutoProcessor.from_pretrained(name, **settings)
        loaded = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, **settings)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise unusable(reason, where, local=local, download=download) from error
    return ImageToText(loaded.eval(), processor, fingerprint(loaded, Path(name) if local else None), start)


def unusable(reason: str, where: str, *, local: bool, download: bool) -> InputError:
    """Why a model cannot be had, and what to do."""
    if local or download:
        fix = "Give a folder with config.json, model.safetensors, a tokenizer and preprocessor_config.json."
        return InputError(f"cannot be loaded as an image-to-text model ({reason})", where=where, fix=fix)
    fix = "Give a local folder, or add --download to fetch it from the hub."
    return InputError("is no folder, and not in the hub's cache on this machine", where=where, fix=fix)


def fingerprint(model: Any, folder: Path | None) -> str:
    """Eight hex digits of the weight files, or of the weights themselves where there is no folder."""
    files = sorted(folder.glob("*.safetensors")) if folder else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(sha256(file).encode())
    if not files:
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def pictures_of(shown: Sequence[Picture]) -> list[Image.Image]:
    """The pictures as RGB, upright."""
    return [decode(read_bytes(picture.path), picture.path)[0] for picture in shown]
