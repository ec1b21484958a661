"""Draft captions, offered to annotators to correct: sources, house style, and captions/NAME/drafts.jsonl.

drafts.jsonl is written by `draft` and read by `push`; one line of JSON per image with the keys sha256, file_name, text,
source and score, in the order of file names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotation.agreement import token_f1, whole_word
from annotation.config import DraftOptions
from annotation.history import read_lines
from annotation.images import ImageFile
from data.atomic_io import file_sha256, write_atomic
from data.errors import InputError
from data.features import Extractor, extract_features
from data.images import decode, read_bytes
from data.progress import ProgressBar

DRAFTS = "drafts.jsonl"
HUMAN = 1.0  # the score of drafts that people wrote elsewhere
FILE_NAME_SCORE = 0.3  # a file name is rarely a caption
FILE_NAME_NOISE = {
    "img", "image", "dsc", "dscn", "dscf", "pxl", "mvimg", "photo", "pic", "picture", "scan", "screenshot", "untitled",
    "copy", "kopie", "final", "edit", "edited", "new", "export", "render", "output", "download", "thumb", "thumbnail",
    "resized", "cropped", "compressed", "wa", "whats", "app", "file", "frame", "jpg", "jpeg", "png", "webp", "x", "px",
}  # fmt: skip
HEX = re.compile(r"^(?=.*\d)[0-9a-f]{6,}$")
MODEL_TOKENS = 40  # of a draft
MODEL_BEAMS = 3
MODEL_BATCH = 8  # images drafted, and written to disk, at a time
Rows = NDArray[np.float32]
Suggestion = tuple[str, float] | None  # text and score; None: no idea


@dataclass(frozen=True)
class Draft:
    """A caption offered to the annotator. score: the source's confidence, in [0, 1]."""

    text: str
    source: str  # label of the source, e.g. "neighbours-1": kept with the answer that is made from it
    score: float


@dataclass(frozen=True)
class Source:
    """Where drafts come from.

    label: name and version (of the code, with a hash of the weights or of the file it reads).
    suggest: images -> a suggestion for each, in order. batch: images per call; 0: all at once.
    """

    label: str
    suggest: Callable[[Sequence[ImageFile]], Sequence[Suggestion]]
    batch: int = 0


def tidy_punctuation(text: str) -> str:
    """Repair what a removed word leaves: double spaces, a space before a comma, a comma at the start."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    return re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text).strip(" ,;:")


def apply_style(text: str, options: DraftOptions) -> tuple[str, list[str]]:
    """A draft with the prefix and, unless they are only reported, without forbidden words; and the words it had."""
    found = [word for word in options.forbidden if whole_word(word).search(text)]
    for word in [] if options.report else found:
        text = tidy_punctuation(whole_word(word).sub("", text))
    has_prefix = not text or text.lower().startswith(options.prefix.strip().lower())
    return text if has_prefix else options.prefix + text, found


def draft_all(
    images: Sequence[ImageFile], sources: Sequence[Source], options: DraftOptions, folder: Path
) -> tuple[dict[str, Draft], dict[str, list[str]]]:
    """Ask each source about the images that earlier ones had no draft for; drafts are written batch by batch.

    Returns SHA-256 -> draft, and SHA-256 -> forbidden words that its draft had.
    """
    drafts: dict[str, Draft] = {}
    forbidden: dict[str, list[str]] = {}
    for source in sources:
        left = [image for image in images if image.sha256 not in drafts]
        size = source.batch or max(1, len(left))
        for start in ProgressBar(range(0, len(left), size), source.label, unit="batch", delay=2.0):
            batch = left[start : start + size]
            suggestions = zip(batch, source.suggest(batch), strict=True)
            for image, (text, score) in [(image, each) for image, each in suggestions if each is not None]:
                styled, words = apply_style(text, options)
                forbidden |= {image.sha256: words} if words else {}
                drafts |= {image.sha256: Draft(styled, source.label, score)} if styled else {}
            add_drafts(folder, [image for image in batch if image.sha256 in drafts], drafts)
    return drafts, forbidden


# ---- file


def read_drafts(folder: Path) -> dict[str, Draft]:
    """SHA-256 -> draft; empty if there are none. Raises InputError."""
    return {sha256: draft for sha256, _, draft in read_draft_lines(folder)}


def read_draft_lines(folder: Path) -> list[tuple[str, str, Draft]]:
    """SHA-256, file name and draft of each line."""

    def parse(sha256: str, file_name: str, text: str, source: str, score: float) -> tuple[str, str, Draft]:
        return sha256, file_name, Draft(str(text), str(source), float(score))

    return read_lines(folder / DRAFTS, parse, "a draft", "Remove the line, or draft again.")


def add_drafts(folder: Path, images: Sequence[ImageFile], drafts: Mapping[str, Draft]) -> None:
    """Add the images' drafts to the file, in place of older ones; atomic."""
    new = {image.sha256: (image.file_name, drafts[image.sha256]) for image in images}
    known = {sha256: (file_name, draft) for sha256, file_name, draft in read_draft_lines(folder)} | new
    lines: list[str] = []
    for key, (file_name, draft) in sorted(known.items(), key=lambda item: (item[1][0], item[0])):
        values = {"sha256": key, "file_name": file_name} | asdict(draft) | {"score": round(draft.score, 4)}
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    if new:
        write_atomic(folder / DRAFTS, "".join(lines))


# ---- from file names


def from_file_names() -> Source:
    """`IMG_2041-redFox_in snow (2).JPG` -> `red fox in snow`; a name without a word gives no draft."""

    def suggest(images: Sequence[ImageFile]) -> list[Suggestion]:
        texts = [clean_file_name(image.file_name) for image in images]
        return [(text, FILE_NAME_SCORE) if text else None for text in texts]

    return Source("names-1", suggest)


def clean_file_name(file_name: str) -> str:
    """The words of a file name in lower case: no camera prefix, number, size, date or hash."""
    stem = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", PurePosixPath(file_name).stem)
    words = [word.strip("0123456789") for word in re.split(r"[\W_]+", stem.lower()) if not HEX.match(word)]
    return " ".join(word for word in words if word in ("a", "i") or (len(word) > 1 and word not in FILE_NAME_NOISE))


# ---- from similar images


def from_neighbours(
    captioned: Sequence[tuple[ImageFile, str]], extractor: Extractor, *, threshold: float = 0.5, count: int = 5
) -> Source:
    """The consensus caption of the most similar captioned images; better the more captions there are.

    Of the `count` nearest, the caption that shares most words (token F1) with the others, each weighted by its image's
    similarity (Devlin et al. 2015, arXiv:1505.04467, section 3.2, with F1 in place of BLEU). Similarity is the cosine
    of features that were standardised over all images, in [-1, 1]; below `threshold` an image is no neighbour. The
    score is the similarity of the image whose caption is taken.
    """
    captions = [caption for _, caption in captioned]

    def suggest(images: Sequence[ImageFile]) -> list[Suggestion]:
        if not captioned or not images:
            return [None] * len(images)
        return [consensus(row) for row in similarity(images)]

    def similarity(images: Sequence[ImageFile]) -> Rows:
        """(images, captioned) cosines; an image is no neighbour of itself."""
        paths = [image.path for image, _ in captioned] + [image.path for image in images]
        rows = standardise(extract_features(extractor, paths))
        cosines = rows[len(captioned) :] @ rows[: len(captioned)].T
        keys = np.array([image.sha256 for image, _ in captioned])
        cosines[np.array([image.sha256 for image in images])[:, None] == keys[None, :]] = -1
        return cosines

    def consensus(row: Rows) -> Suggestion:
        nearest = np.argsort(-row, kind="stable")[:count]
        near = [int(place) for place in nearest if row[place] >= threshold]
        if not near:
            return None
        votes = [
            sum(float(row[other]) * token_f1(captions[place], captions[other]) for other in near) for place in near
        ]
        best = near[int(np.argmax(votes))]  # of equals the nearest
        return captions[best], min(1.0, float(row[best]))

    return Source(f"neighbours-1-{extractor.name}-{extractor.version}", suggest)


def standardise(rows: Rows) -> Rows:
    """Columns of mean 0 and deviation 1 (constant ones are 0), then rows of length 1."""
    spread = rows.std(axis=0)
    standard = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)
    lengths = np.linalg.norm(standard, axis=1, keepdims=True)
    return (standard / np.where(lengths > 0, lengths, 1)).astype(np.float32)


# ---- from an image-to-text model


def from_model(model: str, *, download: bool = False, start: str = "") -> Source:
    """A model such as BLIP, from a local folder or, with `download`, from the hub; safetensors only, no remote code.

    start: words that every caption begins with. Beam search, nothing random: equal images and weights give equal drafts
    on one machine. Raises InputError if it is not an image-to-text model.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    local = Path(model).expanduser().is_dir()
    name = str(Path(model).expanduser()) if local else model
    settings: dict[str, Any] = {"local_files_only": local or not download, "trust_remote_code": False}
    logging.disable_progress_bar()
    try:
        processor = AutoProcessor.from_pretrained(name, **settings)
        network = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, **settings).eval()
    except (OSError, ValueError, ImportError, KeyError) as error:
        if not (local or download):
            fix = "Give a local folder, or add --download to fetch it from the hub."
            what = "is not a folder, and not in this machine's hub cache"
            raise InputError(what, where=f"--model {model}", fix=fix) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "Give a folder with config.json, model.safetensors, a tokenizer and preprocessor_config.json."
        what = f"cannot be loaded as an image-to-text model ({reason})"
        raise InputError(what, where=f"--model {model}", fix=fix) from error

    def suggest(images: Sequence[ImageFile]) -> list[Suggestion]:
        decoded = [decode(read_bytes(image.path), image.path)[0] for image in images]
        prompt = {"text": [start] * len(decoded)} if start else {}
        with torch.inference_mode():
            generated = network.generate(
                **processor(images=decoded, return_tensors="pt", **prompt).to(network.device),
                do_sample=False,
                num_beams=MODEL_BEAMS,
                max_new_tokens=MODEL_TOKENS,
                return_dict_in_generate=True,
                output_scores=True,
            )
        captions = [
            " ".join(each.split()) for each in processor.batch_decode(generated.sequences, skip_special_tokens=True)
        ]
        # mean log-probability of a beam's tokens -> their geometric mean probability
        scores = generated.sequences_scores.float().exp().clamp(0, 1).tolist()
        return [(caption, score) if caption else None for caption, score in zip(captions, scores, strict=True)]

    weights = weights_hash(network, Path(name) if local else None)
    return Source(f"{network.config.model_type}-{weights}", suggest, MODEL_BATCH)


def weights_hash(model: Any, folder: Path | None) -> str:
    """Eight hex digits of the weight files, or of the weights themselves if there is no folder."""
    files = sorted(folder.glob("*.safetensors")) if folder else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file_sha256(file).encode())
    if not files:
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
