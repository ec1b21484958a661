"""Which pictures of a folder are worth captioning, and in which order: the usable ones once, like beside like."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import store
from data.alignment import SIDE
from data.duplicates import Thumbnail, groups
from data.errors import InputError
from data.features import Features, features
from data.problems import Problem
from data.schema import Annotation, Sample
from data.walk import walk

COARSE = 12  # pixels of the thumbnails that are compared for the order


@dataclass(frozen=True)
class Intake:
    """pictures: what to caption, in the order in which it is shown; twins: name -> the name that stands for it."""

    folder: Path
    pictures: list[Sample]
    formats: dict[str, str]  # SHA-256 -> "PNG"
    twins: dict[str, str]
    problems: list[Problem]


def take_in(folder: Path, known: Collection[str] = (), *, keep_twins: bool = False) -> Intake:
    """Look at every picture of a folder. Raises InputError if it holds none that can be used.

    known: SHA-256 of pictures that were pushed before; of near-duplicates they are the ones that stay.
    keep_twins: near-duplicates stay too, but never the same file twice: its bytes are its key.
    """
    samples, formats, problems = examine(folder)
    if not samples:
        first = f"; first: {problems[0].what}" if problems else ""
        raise InputError(f"holds no picture that can be used{first}", where=folder, fix="Give a folder of pictures.")
    kept, twins = without_twins(samples, known, keep_near=keep_twins)
    return Intake(folder, in_order(kept), formats, twins, problems)


def examine(folder: Path) -> tuple[list[Sample], dict[str, str], list[Problem]]:
    """Decode every picture once: the usable ones by name, their formats, and what is wrong with the others."""
    seen = walk(folder)
    problems = [problem for problem in seen.problems if problem.refused]
    samples, formats = [], {}
    names = sorted(seen.pictures)
    for name, verdict in zip(names, store.examine_all([seen.pictures[name] for name in names]), strict=True):
        if isinstance(verdict, InputError):
            problems.append(Problem.of(verdict, str(folder / name)))
            continue
        sha256, info = verdict
        path = seen.pictures[name].absolute()
        samples.append(Sample(path, Annotation(file_name=name), str(path), sha256, info.width, info.height))
        formats[sha256] = info.format
    return samples, formats, problems


def without_twins(
    samples: Sequence[Sample], known: Collection[str], *, keep_near: bool
) -> tuple[list[Sample], dict[str, str]]:
    """One of each group of near-duplicates: one that was pushed before, else the first by name."""
    numbers = groups(samples) if not keep_near else same_bytes(samples)
    stands: dict[int, Sample] = {}
    for sample, number in sorted(zip(samples, numbers, strict=True), key=lambda pair: pair[0].sha256 not in known):
        stands.setdefault(number, sample)
    kept, twins = [], {}
    for sample, number in zip(samples, numbers, strict=True):
        other = stands[number]
        pushed = sample.sha256 in known and sample.sha256 != other.sha256  # both are on the server: neither goes
        if sample is other or pushed:
            kept.append(sample)
        else:
            twins[sample.annotation.file_name] = other.annotation.file_name
    return once_each(kept), twins


def same_bytes(samples: Sequence[Sample]) -> list[int]:
    """A number for each picture; equal files share one."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(sample.sha256, len(numbers)) for sample in samples]


def once_each(samples: Sequence[Sample]) -> list[Sample]:
    """No SHA-256 twice."""
    return list({sample.sha256: sample for sample in reversed(samples)}.values())[::-1]


def in_order(samples: Sequence[Sample]) -> list[Sample]:
    """Each picture followed by the most similar one that was not shown yet, from the first by name on."""
    return [samples[index] for index in chain(coarse(features(Thumbnail(), samples)))]


def coarse(thumbs: Features) -> Features:
    """(n, 3 SIDE^2) thumbnails -> (n, 3 COARSE^2) block means: what remains of a picture at a glance."""
    block = SIDE // COARSE
    shape = (len(thumbs), COARSE, block, COARSE, block, 3)
    return thumbs.reshape(shape).mean(axis=(2, 4)).reshape(len(thumbs), -1)


def chain(rows: Features) -> list[int]:
    """A greedy path through all rows: from row 0, always to the nearest one (Euclidean) that is left. O(n^2 d)."""
    left = np.ones(len(rows), bool)
    path = [0]
    for _ in range(len(rows) - 1):
        left[path[-1]] = False
        far = np.square(rows - rows[path[-1]]).sum(axis=1)
        path.append(int(np.where(left, far, np.inf).argmin()))
    return path
