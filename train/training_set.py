"""The training set: captioned folders, what is left out and why, the held-out split, the buckets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from data import buckets, captioned_folder, captions, duplicates
from data.buckets import Bucket, BucketUse
from data.captioned_folder import CaptionedFolder
from data.errors import InputError, InputErrors, raise_all
from data.sample_set import sample_folder
from data.schema import Sample
from train.config import POCKET, Config, Folder
from train.model import BaseModel
from train.prior_preservation import read_preserved_prompts


@dataclass(frozen=True)
class SourceFolder:
    """A folder and its images. label: a prefix for their names; empty for a single folder."""

    folder: Folder
    label: str
    listing: CaptionedFolder


@dataclass(frozen=True)
class FolderShare:
    """What one of several folders contributes."""

    folder: str
    weight: float
    training: int
    held_out: int


@dataclass(frozen=True)
class TrainingSet:
    """The usable images. A sample's file_name is its id, unique over all folders."""

    found: int  # images seen in the folders
    train: list[Sample]
    held_out: list[Sample]
    buckets: dict[Bucket, list[Sample]]  # of the training images
    square: Bucket
    prompts: dict[str, list[str]]  # sample id -> prompts
    weights: dict[str, float]  # sample id -> how often it is used, relative to others
    shares: list[FolderShare]  # one a folder
    left_out: list[str]
    warnings: list[str]  # about images that are used
    captions_cut: list[str]
    near_duplicates: int
    tokens: str
    fingerprint: str
    preserved: Sequence[str] = ()  # prompts whose meaning is kept, train/prior_preservation.py

    def facts(self) -> dict[str, Any]:
        """data.json: which images were trained on, so that anyone can check."""
        return {
            "fingerprint": self.fingerprint,
            "train": {sample.annotation.file_name: sample.sha256 for sample in self.train},
            "held_out": {sample.annotation.file_name: sample.sha256 for sample in self.held_out},
            "folders": [vars(share) for share in self.shares],
            "left_out": self.left_out,
            "warnings": self.warnings,
            "captions_cut": self.captions_cut,
        }

    def uses(self) -> list[BucketUse]:
        """How the training images fall into the buckets, in the order of the buckets."""
        return [
            buckets.bucket_use(bucket, [(s.width, s.height) for s in held]) for bucket, held in self.buckets.items()
        ]


def load_training_set(config: Config, model: BaseModel) -> TrainingSet:
    """Read the folders, skip what cannot be used (--strict refuses), split off held-out images, sort into buckets.

    Raises InputError if nothing can be used.
    """
    options, size = config.pictures, config.pictures.size or model.sample_size
    sources = read_folders(config.data, size)
    problems = [problem for source in sources for problem in source.listing.problems]
    left_out = [str(problem) for problem in problems if problem.refused]
    # the order must not depend on file names: renaming images does not make another dataset
    found = [(sample, source) for source in sources for sample in source.listing.samples]
    found.sort(key=lambda pair: (pair[0].sha256, pair[0].captions, pair[1].folder.weight))
    raw, origins = [sample for sample, _ in found], [source for _, source in found]
    fields = captions.known_fields(sample.annotation for sample in raw)
    prompts = [captions.render_prompts(each.annotation, options.caption, fields=fields) or [""] for each in raw]
    empty = [sample.where for sample, texts in zip(raw, prompts, strict=True) if texts == [""]]
    preserved = read_preserved_prompts(config.preserve) if config.preserve.share else []
    tokens = captions.count_tokens(raw, model.tokenizer, options.caption)
    cut = [f"{item.file_name} ({item.where}): {item.count} tokens, lost: {item.lost_text}" for item in tokens.cut]
    for item in captions.count_tokens(preserved, model.tokenizer).cut:
        cut.append(f"preserved prompt {item.where}: {item.count} tokens, lost: {item.lost_text}")
    if config.strict:
        check_strict(left_out, cut, empty, config.data)
    samples = [with_label(sample, source.label) for sample, source in found]
    names = [sample.annotation.file_name for sample in samples]
    assert len(set(names)) == len(names), "a sample id stands for two images"
    weights = relative_weights([source.folder.weight for source in origins])
    groups = duplicates.duplicate_groups(samples)
    train, held_out = list(range(len(samples))), list[int]()
    if options.held_out:
        split = duplicates.split_held_out([s.sha256 for s in samples], groups, share=options.held_out, seed=config.seed)
        train, held_out = split.train, split.held_out
    trained = [samples[index] for index in train]
    square, sorted_out = sort_into_buckets(trained, size, model.step, options.buckets)
    return TrainingSet(
        found=sum(source.listing.found for source in sources),
        train=trained,
        held_out=[samples[index] for index in held_out],
        buckets=sorted_out,
        square=square,
        prompts=dict(zip(names, prompts, strict=True)),
        preserved=preserved,
        weights=dict(zip(names, weights, strict=True)),
        shares=folder_shares(sources, origins, set(held_out)),
        left_out=left_out,
        warnings=[
            *(str(problem) for problem in problems if not problem.refused),
            *shared_image_warnings(samples, origins),
            *empty_prompt_warnings(empty, options.caption),
        ],
        captions_cut=cut,
        near_duplicates=sum(groups.count(group) > 1 for group in groups),
        tokens=str(tokens),
        fingerprint=content_fingerprint(samples, prompts, weights, preserved),
    )


def read_folders(folders: Sequence[Folder], size: int) -> list[SourceFolder]:
    """Read every folder. Raises InputError naming all that are missing or hold nothing usable."""
    sources: list[SourceFolder] = []
    errors: list[InputError] = []
    for folder, label in zip(folders, folder_labels(list(folders)), strict=True):
        path = sample_folder(size=size) if folder.path == POCKET else Path(folder.path).expanduser()
        try:
            listing = captioned_folder.read_folder(path)
        except InputError as error:
            errors.append(error)
            continue
        sources.append(SourceFolder(folder, label, listing))
        if not listing.samples:
            refused = [problem for problem in listing.problems if problem.refused]
            why = f": {refused[0].where} {refused[0].what}" + (", and so on" if refused[1:] else "") if refused else ""
            fix = f"See python data/prepare.py {path}"
            errors.append(InputError(f"no usable image{why}", where=f"--data {folder}", fix=fix))
    raise_all(errors)
    return sources


def folder_labels(folders: Sequence[Folder]) -> list[str]:
    """A short, unique name for each: as many parts from the end of the path as it takes. [""] for a single folder."""
    if len(folders) == 1:
        return [""]
    parts = [folder.place.parts for folder in folders]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def with_label(sample: Sample, label: str) -> Sample:
    """The sample with its folder's label before its name: two folders may hold one file name."""
    if not label:
        return sample
    name = f"{label}/{sample.annotation.file_name}"
    return replace(sample, annotation=sample.annotation.model_copy(update={"file_name": name}))


def relative_weights(weights: Sequence[float]) -> list[float]:
    """Weights over the smallest of them: folders of weight 2 alone are trained on as folders of weight 1 are."""
    exact = [Fraction(str(weight)) for weight in weights]  # 0.3 and 0.1 are 3 and 1, which 0.3 / 0.1 is not
    return [float(weight / min(exact)) for weight in exact]


def folder_shares(
    sources: Sequence[SourceFolder], origins: Sequence[SourceFolder], held_out: set[int]
) -> list[FolderShare]:
    """What each folder contributes. origins: the folder of each sample; held_out: indices of samples."""
    counts = {id(source): [0, 0] for source in sources}
    for index, source in enumerate(origins):
        counts[id(source)][index in held_out] += 1
    return [FolderShare(source.folder.path, source.folder.weight, *counts[id(source)]) for source in sources]


def shared_image_warnings(samples: list[Sample], sources: list[SourceFolder]) -> list[str]:
    """A warning if images of equal content are in several folders: they are used once for each."""
    places: dict[str, dict[str, str]] = {}
    for sample, source in zip(samples, sources, strict=True):
        places.setdefault(sample.sha256, {}).setdefault(source.label, sample.annotation.file_name)
    twice = [list(names.values()) for names in places.values() if len(names) > 1]
    if not twice:
        return []
    count = "1 image is" if len(twice) == 1 else f"{len(twice)} images are"
    return [f"{count} in more than one folder, used once for each (e.g. {' and '.join(twice[0])})"]


def empty_prompt_warnings(places: Sequence[str], template: str) -> list[str]:
    """A warning if captions of images are empty."""
    if not places:
        return []
    some = "1 image has" if len(places) == 1 else f"{len(places)} images have"
    return [f"{some} an empty prompt from the template {template!r} (e.g. {places[0]})"]


def check_strict(left_out: list[str], cut: list[str], empty: list[str], folders: Sequence[Folder]) -> None:
    """--strict: nothing may be dropped. Raises InputErrors naming everything."""
    where = ", ".join(str(folder) for folder in folders)
    problems = [InputError(f"{text.removesuffix('.')} (--strict)") for text in left_out]
    problems += [InputError(f"caption truncated: {text} (--strict)", where=where) for text in cut]
    problems += [InputError("the caption template gives an empty prompt (--strict)", where=at) for at in empty]
    if problems:
        raise InputErrors(problems)


def sort_into_buckets(
    samples: list[Sample], size: int, step: int, several: bool
) -> tuple[Bucket, dict[Bucket, list[Sample]]]:
    """The square bucket, and the training images of each bucket, largest first."""
    if size % step:
        raise InputError(f"{size} pixels", where="--pictures.size", allowed=f"a multiple of {step} for this model")
    square = Bucket(size, size)
    sizes = buckets.make_buckets(size, step=step) if several else [square]
    found: dict[Bucket, list[Sample]] = {}
    for sample in samples:
        found.setdefault(buckets.assign_bucket(sample.width, sample.height, sizes), []).append(sample)
    return square, dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def content_fingerprint(
    samples: list[Sample], prompts: list[list[str]], weights: list[float], preserved: Sequence[str] = ()
) -> str:
    """A hash of the images' bytes, prompts and weights, and of preserved prompts: names and places do not count."""
    rows: list[list[Any]] = [[sample.sha256, texts] for sample, texts in zip(samples, prompts, strict=True)]
    if len(set(weights)) > 1:
        rows = [[*row, weight] for row, weight in zip(rows, weights, strict=True)]
    rows += [list(preserved)] if preserved else []
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
