"""From a captioned folder to what is trained on: what is left out and why, the held-out split, the buckets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import buckets, captions, duplicates, store
from data.buckets import Bucket
from data.errors import InputError, InputErrors
from data.pocket.sample import sample_folder
from data.schema import Sample
from train.base_model import BaseModel
from train.config import Config


@dataclass(frozen=True)
class Collection:
    """The usable pictures, by what they are for."""

    found: int  # pictures seen in the folder
    train: list[Sample]
    held_out: list[Sample]
    buckets: dict[Bucket, list[Sample]]  # of the training pictures
    square: Bucket
    prompts: dict[str, list[str]]  # file name -> prompts
    left_out: list[str]
    warnings: list[str]  # used, but not as its owner may think
    captions_cut: list[str]
    near_duplicates: int
    tokens: str
    fingerprint: str

    def facts(self) -> dict[str, Any]:
        """data.json: which pictures were trained on, so that anyone can check."""
        return {
            "fingerprint": self.fingerprint,
            "train": {sample.annotation.file_name: sample.sha256 for sample in self.train},
            "held_out": {sample.annotation.file_name: sample.sha256 for sample in self.held_out},
            "left_out": self.left_out,
            "warnings": self.warnings,
            "captions_cut": self.captions_cut,
        }


def collect(config: Config, model: BaseModel) -> Collection:
    """Read the folder, leave out what cannot be used (or refuse, if --strict), split it and sort it into buckets.

    Raises InputError if nothing can be used.
    """
    size = config.pictures.size or model.sample_size
    folder = sample_folder(size=size) if config.data == "pocket" else Path(config.data).expanduser()
    listing = store.read(folder)
    left_out = [str(problem) for problem in listing.problems if problem.refused]
    if not listing.samples:
        raise InputError("no usable picture", where=f"--data {config.data}", fix=f"See python data/prepare.py {folder}")
    # the order must not depend on file names: renaming pictures is no other data set
    samples = sorted(listing.samples, key=lambda sample: (sample.sha256, sample.captions))
    prompts = render(samples, config.pictures.caption)
    report = captions.count_tokens(samples, model.tokenizer, config.pictures.caption)
    cut = [f"{item.file_name} ({item.where}): {item.count} tokens, lost: {item.lost_text}" for item in report.cut]
    if config.strict:
        refuse(left_out, cut, folder)
    train, held_out, near = split(samples, config)
    square, sorted_out = sort_into_buckets(train, size, model.step, config.pictures.buckets)
    return Collection(
        found=listing.found,
        train=train,
        held_out=held_out,
        buckets=sorted_out,
        square=square,
        prompts=prompts,
        left_out=left_out,
        warnings=[str(problem) for problem in listing.problems if not problem.refused],
        captions_cut=cut,
        near_duplicates=near,
        tokens=str(report),
        fingerprint=fingerprint(samples, prompts),
    )


def render(samples: list[Sample], template: str) -> dict[str, list[str]]:
    """The prompts of each picture. Raises InputError for an unknown field in the template."""
    fields = captions.known_fields(sample.annotation for sample in samples)
    return {
        sample.annotation.file_name: captions.render(sample.annotation, template, fields=fields) for sample in samples
    }


def refuse(left_out: list[str], cut: list[str], folder: Path) -> None:
    """--strict: nothing may be dropped. Raises InputErrors naming everything."""
    problems = [InputError(text, fix="(--strict)") for text in left_out]
    problems += [InputError(f"caption cut: {text}", where=folder, fix="(--strict)") for text in cut]
    if problems:
        raise InputErrors(problems)


def split(samples: list[Sample], config: Config) -> tuple[list[Sample], list[Sample], int]:
    """Training pictures, held-out pictures, and how many are near-duplicates of another."""
    groups = duplicates.groups(samples)
    near = sum(groups.count(group) > 1 for group in groups)
    if config.pictures.held_out == 0:
        return samples, [], near
    parts = duplicates.split(samples, groups, share=config.pictures.held_out, seed=config.seed)
    return [samples[index] for index in parts.train], [samples[index] for index in parts.held_out], near


def sort_into_buckets(
    samples: list[Sample], size: int, step: int, several: bool
) -> tuple[Bucket, dict[Bucket, list[Sample]]]:
    """The square bucket, and the training pictures of each bucket, largest first."""
    if size % step:
        raise InputError(f"{size} pixels", where="--pictures.size", allowed=f"a multiple of {step} for this model")
    square = Bucket(size, size)
    sizes = buckets.make(size, step=step) if several else [square]
    found: dict[Bucket, list[Sample]] = {}
    for sample in samples:
        found.setdefault(buckets.assign(sample.width, sample.height, sizes), []).append(sample)
    return square, dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def fingerprint(samples: list[Sample], prompts: dict[str, list[str]]) -> str:
    """A hash of the pictures' bytes and prompts: names and places do not count."""
    rows = [[sample.sha256, prompts[sample.annotation.file_name]] for sample in samples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
