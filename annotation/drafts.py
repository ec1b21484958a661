"""Draft captions, offered to annotators to correct: house style, captions/NAME/drafts.jsonl, and their sources.

drafts.jsonl, written by `draft` and read by `push`: a line an image with sha256, file_name, text, source and score.
Captions written elsewhere: captioned folders and caption files (taggui, kohya, OneTrainer), kohya's JSON, a release's
tables, a Hugging Face dataset on disk, a Label Studio export.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from annotation.agreement import token_f1, whole_word
from annotation.config import DraftOptions
from annotation.history import read_lines
from annotation.images import ImageFile, standardize
from data.atomic_io import file_sha256, write_atomic
from data.captioned_folder import read_folder
from data.errors import InputError, Problem
from data.features import Extractor, Features, extract_features
from data.folder_scan import NOT_CAPTIONS, caption_stem, scan_folder
from data.images import open_image, read_bytes
from data.importers import is_hf_dataset, read_hf_dataset, read_label_studio
from data.metadata_table import Row, Table, read_caption_file, read_csv, read_jsonl
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
Suggestion = tuple[str, float] | None  # text and score; None: no idea
Captions = Iterator[tuple[str, Sequence[str]]]  # key of the image (SHA-256 or file name), its captions


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


def draft_all(
    images: Sequence[ImageFile], sources: Sequence[Source], options: DraftOptions, folder: Path
) -> tuple[dict[str, Draft], dict[str, list[str]]]:
    """SHA-256 -> draft of the first source that has one, and SHA-256 -> forbidden words; written batch by batch."""
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


def apply_style(text: str, options: DraftOptions) -> tuple[str, list[str]]:
    """A draft with the prefix and, unless they are only reported, without forbidden words; and the words it had."""
    found = [word for word in options.forbidden if whole_word(word).search(text)]
    for word in [] if options.report else found:
        text = tidy_punctuation(whole_word(word).sub("", text))
    has_prefix = not text or text.lower().startswith(options.prefix.strip().lower())
    return text if has_prefix else options.prefix + text, found


def tidy_punctuation(text: str) -> str:
    """Repair what a removed word leaves: double spaces, a space before a comma, a comma at the start."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    return re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text).strip(" ,;:")


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
    return Source("names-1", lambda images: [scored(clean_file_name(i.file_name), FILE_NAME_SCORE) for i in images])


def scored(text: str, score: float) -> Suggestion:
    return (text, score) if text else None


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
    of features that were standardized over all images, in [-1, 1]; below `threshold` an image is no neighbour. The
    score is the similarity of the image whose caption is taken.
    """
    captions = [caption for _, caption in captioned]

    def suggest(images: Sequence[ImageFile]) -> list[Suggestion]:
        if not captioned or not images:
            return [None] * len(images)
        every = [image for image, _ in captioned] + list(images)
        rows = standardize(extract_features(extractor, [image.path for image in every]))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        cosines = rows[len(captioned) :] @ rows[: len(captioned)].T
        keys = np.array([image.sha256 for image in every])
        cosines[keys[len(captioned) :, None] == keys[None, : len(captioned)]] = -1  # no neighbour of itself
        return [consensus(row) for row in cosines]

    def consensus(row: Features) -> Suggestion:
        nearest = np.argsort(-row, kind="stable")[:count]
        near = [int(place) for place in nearest if row[place] >= threshold]
        if not near:
            return None
        votes = [sum(float(row[o]) * token_f1(captions[place], captions[o]) for o in near) for place in near]
        best = near[int(np.argmax(votes))]  # of equals the nearest
        return captions[best], min(1.0, float(row[best]))

    return Source(f"neighbours-1-{extractor.name}-{extractor.version}", suggest)


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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "Give a folder with config.json, model.safetensors, a tokenizer and preprocessor_config.json."
        what = f"cannot be loaded as an image-to-text model ({reason})"
        if not (local or download):
            fix = "Give a local folder, or add --download to fetch it from the hub."
            what = "is not a folder, and not in this machine's hub cache"
        raise InputError(what, where=f"--model {model}", fix=fix) from error

    def suggest(images: Sequence[ImageFile]) -> list[Suggestion]:
        prompt = {"text": [start] * len(images)} if start else {}
        inputs = processor(images=[open_image(image.path) for image in images], return_tensors="pt", **prompt)
        settings = {"do_sample": False, "num_beams": MODEL_BEAMS, "max_new_tokens": MODEL_TOKENS}
        settings |= {"return_dict_in_generate": True, "output_scores": True}
        with torch.inference_mode():
            generated = network.generate(**inputs.to(network.device), **settings)
        captions = processor.batch_decode(generated.sequences, skip_special_tokens=True)
        # mean log-probability of a beam's tokens -> their geometric mean probability
        scores = generated.sequences_scores.float().exp().clamp(0, 1).tolist()
        return [scored(" ".join(caption.split()), score) for caption, score in zip(captions, scores, strict=True)]

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


# ---- from captions written elsewhere


def from_files(path: Path, problems: list[Problem]) -> Source:
    """Drafts from captions in `path`, by the image's content, else by its file name. InputError if there are none."""
    if not path.exists():
        raise InputError("no such file or folder", where=path, fix="Check the path.")
    form, found = read_captions(path, problems)
    captions = dict(add_short_names(first_of_each(found, path, problems), problems))
    if not captions:
        first = f"; first: {problems[0]}" if problems else ""
        raise InputError(f"contains no usable caption{first}", where=path)
    content = json.dumps(sorted(captions.items()), ensure_ascii=False)
    label = f"{form}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Source(label, lambda images: [scored(find_caption(captions, image), HUMAN) for image in images])


def find_caption(captions: Mapping[str, str], image: ImageFile) -> str:
    """captions: SHA-256, or file name with or without folder and suffix -> caption. Empty if there is none."""
    path = PurePosixPath(image.file_name)
    keys = (image.sha256, image.file_name, str(path.with_suffix("")), path.name, path.stem)
    return next((text for key in keys if (text := captions.get(key, ""))), "")


def first_of_each(found: Captions, path: Path, problems: list[Problem]) -> dict[str, str]:
    """The first caption of each image, as a draft is one text; the number of others is a problem."""
    captions: dict[str, str] = {}
    others: dict[str, set[str]] = {}
    for key, texts in found:
        if texts:  # else a row that only says why its image is skipped
            first = captions.setdefault(key, texts[0])
            others.setdefault(key, set()).update(set(texts) - {first})
    if count := sum(map(len, others.values())):
        images = sum(map(bool, others.values()))
        what = f"{count} further caption{'s' * (count > 1)} of {images} image{'s' * (images > 1)} left out"
        problems.append(Problem(str(path), f"{what}: a draft is one text", refused=False))
    return captions


def add_short_names(captions: Mapping[str, str], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Every key, and the file name without folder and suffix where only one image has it."""
    uses = Counter(PurePosixPath(key).stem for key in captions)
    for key, text in captions.items():
        name = PurePosixPath(key).stem
        if uses[name] == 1:
            yield name, text
        else:
            what = f"{uses[name]} captions in different folders have this file name: each is used in its folder only"
            problems.append(Problem(key, what, refused=False))
        yield key, text


def read_captions(path: Path, problems: list[Problem]) -> tuple[str, Captions]:
    """The form of `path` as a word, and its captions."""
    suffix = path.suffix.lower()
    if path.is_dir():
        if is_hf_dataset(path):
            return "dataset", by_content(read_hf_dataset(path, problems))
        return read_caption_folder(path, problems)
    if suffix in (".jsonl", ".csv"):
        return "table", read_rows(read_jsonl(path) if suffix == ".jsonl" else read_csv(path), problems)
    if suffix == ".parquet":
        return "table", read_parquet(path)
    if suffix != ".json":
        allowed = "a folder, .json, .jsonl, .csv, .parquet"
        raise InputError(f"unknown file type ({suffix or 'no suffix'})", where=path, allowed=allowed)
    try:
        loaded = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", where=path) from error
    if isinstance(loaded, list):
        return "label-studio", by_content(read_label_studio(path, None, problems))
    return "kohya", read_kohya(loaded, path)


def read_caption_folder(path: Path, problems: list[Problem]) -> tuple[str, Captions]:
    """A captioned folder by the content of its images, or caption files alone by their names."""
    found = scan_folder(path)
    if not found.images and (path / "metadata.jsonl").exists():
        return read_captions(path / "metadata.jsonl", problems)
    if not found.images and not found.captions:
        raise InputError("contains neither images nor captions", where=path, fix="Give a folder that does.")
    known = set(map(caption_stem, found.images))
    names = (n for n in found.captions if n not in known and PurePosixPath(n).name.lower() not in NOT_CAPTIONS)
    alone = chain(*(read_rows(read_caption_file(found.captions[name][0], name), problems) for name in names))
    if not found.images:
        return "sidecars", alone
    listing = read_folder(path)
    problems += [problem for problem in listing.problems if problem.refused]
    return "folder", chain(((sample.sha256, sample.captions) for sample in listing.samples), alone)


def read_rows(table: Table, problems: list[Problem]) -> Captions:
    """A table's rows, by `sha256` if it has that column."""

    def key(row: Row) -> str:
        digest = (row.annotation.model_extra or {}).get("sha256")
        return digest if isinstance(digest, str) and digest else row.annotation.file_name

    problems += [problem for problem in table.problems if problem.refused]
    return ((key(row), row.annotation.captions) for row in table.rows)


def read_parquet(path: Path) -> Captions:
    """The rows of a release's captions.parquet, or of any with file_name and text."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"is not Parquet ({str(error).splitlines()[0]})", where=path) from error
    if missing := {"file_name", "text"} - set(table.column_names):
        what = f"has no column {', '.join(sorted(missing))}"
        raise InputError(what, where=path, allowed=f"it has {', '.join(table.column_names)}")
    for row in table.to_pylist():
        yield str(row.get("sha256") or row["file_name"]), not_blank([row["text"], *(row.get("texts") or [])])


def not_blank(values: Iterable[Any]) -> list[str]:
    return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def read_kohya(loaded: Any, path: Path) -> Captions:
    """kohya's meta_cap.json and meta_clean.json: path, with or without suffix -> {"caption": ..., "tags": ...}."""
    if not isinstance(loaded, dict) or not all(isinstance(entry, dict) for entry in loaded.values()):
        fix = "Give kohya's JSON of captions, or a Label Studio export in the format JSON."
        raise InputError("is JSON of another kind", where=path, fix=fix)
    for name, entry in loaded.items():
        texts = not_blank([entry.get("caption"), entry.get("tags")])
        yield name.replace("\\", "/"), [" ".join(text.split()) for text in texts]


def by_content(pairs: Iterator[tuple[Any, Any]]) -> Captions:
    for image, annotation in pairs:
        content = image if isinstance(image, bytes) else read_bytes(image)
        yield hashlib.sha256(content).hexdigest(), annotation.captions
