"""The images of a project, and which of a folder to caption, in which order: once each, similar ones in a row."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import captioned_folder
from data.atomic_io import file_sha256
from data.duplicates import SIDE, Thumbnail, duplicate_groups
from data.errors import InputError, Problem
from data.features import Features, extract_features, make_extractor
from data.folder_scan import scan_folder
from data.schema import Annotation, Sample

COARSE = 12  # pixels of the thumbnails that are compared to find the order


@dataclass(frozen=True)
class ImageFile:
    """An image by its content. file_name: below the image folder."""

    sha256: str
    file_name: str
    path: Path


def images_by_sha256(folder: Path) -> dict[str, ImageFile]:
    """SHA-256 -> image, by file name; of equal files the first. Raises InputError for a missing folder."""
    found: Mapping[str, Path] = scan_folder(folder).images
    names = sorted(found)
    with ThreadPoolExecutor(4) as threads:
        hashes = list(threads.map(file_sha256, (found[name] for name in names)))
    images: dict[str, ImageFile] = {}
    for name, digest in zip(names, hashes, strict=True):
        images.setdefault(digest, ImageFile(digest, name, found[name]))
    return images


def readable(images: Iterable[ImageFile], problems: list[Problem]) -> list[ImageFile]:
    """The images that can be decoded; what is wrong with the others is added to `problems`."""
    images = list(images)
    results = list(captioned_folder.decode_all([image.path for image in images]))
    problems += [Problem.of(error) for error in results if isinstance(error, InputError)]
    return [image for image, result in zip(images, results, strict=True) if not isinstance(result, InputError)]


def image_features(images: Sequence[ImageFile], extractor: str) -> dict[str, Features]:
    """SHA-256 -> features, of the images that can be decoded."""
    try:
        rows = extract_features(make_extractor(extractor), [image.path for image in images])
    except InputError:  # one cannot be decoded: push and prepare report it
        images = readable(images, [])
        rows = extract_features(make_extractor(extractor), [image.path for image in images])
    return {image.sha256: row for image, row in zip(images, rows, strict=True)}


@dataclass(frozen=True)
class Selection:
    """samples: what to caption, in this order; duplicates: name -> the name of the image that is kept instead."""

    folder: Path
    samples: list[Sample]
    formats: dict[str, str]  # SHA-256 -> "PNG"
    duplicates: dict[str, str]
    problems: list[Problem]


def select_images(folder: Path, pushed: Collection[str] = (), *, keep_duplicates: bool = False) -> Selection:
    """Decode every image of a folder and leave out near-duplicates. Raises InputError if none can be used.

    pushed: SHA-256 of what is kept rather than its near-duplicates. keep_duplicates: keep them, but no file twice.
    """
    samples, formats, problems = examine_folder(folder)
    if not samples:
        first = f"; first: {problems[0].what}" if problems else ""
        raise InputError(f"contains no usable image{first}", where=folder, fix="Give a folder of images.")
    kept, duplicates = drop_duplicates(samples, pushed, only_equal_files=keep_duplicates)
    return Selection(folder, order_by_similarity(kept), formats, duplicates, problems)


def examine_folder(folder: Path) -> tuple[list[Sample], dict[str, str], list[Problem]]:
    """Decode every image once: the usable ones by name, their formats, and what is wrong with the others."""
    found = scan_folder(folder)
    problems = [problem for problem in found.problems if problem.refused]
    samples: list[Sample] = []
    formats: dict[str, str] = {}
    names = sorted(found.images)
    for name, result in zip(names, captioned_folder.decode_all([found.images[name] for name in names]), strict=True):
        if isinstance(result, InputError):
            problems.append(Problem.of(result, str(folder / name)))
            continue
        digest, info = result
        path = found.images[name].absolute()
        samples.append(Sample(path, Annotation(file_name=name), str(path), digest, info.width, info.height))
        formats[digest] = info.format
    return samples, formats, problems


def drop_duplicates(
    samples: Sequence[Sample], pushed: Collection[str], *, only_equal_files: bool
) -> tuple[list[Sample], dict[str, str]]:
    """One of each group of near-duplicates: one that was pushed before, else the first by name."""
    keys = [sample.sha256 for sample in samples] if only_equal_files else duplicate_groups(samples)
    kept_of: dict[object, Sample] = {}
    for sample, key in sorted(zip(samples, keys, strict=True), key=lambda pair: pair[0].sha256 not in pushed):
        kept_of.setdefault(key, sample)
    kept: dict[str, Sample] = {}
    duplicates: dict[str, str] = {}
    for sample, key in zip(samples, keys, strict=True):
        other = kept_of[key]
        both_pushed = sample.sha256 in pushed and sample.sha256 != other.sha256
        if sample is other or both_pushed:
            kept.setdefault(sample.sha256, sample)
        else:
            duplicates[sample.annotation.file_name] = other.annotation.file_name
    return list(kept.values()), duplicates


def standardize(rows: Features) -> Features:
    """Columns of mean 0 and deviation 1; constant ones are 0."""
    spread = rows.std(axis=0)
    return (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)


def order_by_similarity(samples: Sequence[Sample]) -> list[Sample]:
    """Each image followed by the most similar one left, starting with the first by name."""
    thumbnails = extract_features(Thumbnail(), samples)
    block = SIDE // COARSE
    shape = (len(samples), COARSE, block, COARSE, block, 3)
    return [samples[index] for index in greedy_path(thumbnails.reshape(shape).mean(axis=(2, 4)).reshape(shape[0], -1))]


def greedy_path(rows: Features) -> list[int]:
    """A path through all rows: from row 0, always to the nearest one (Euclidean) that is left. O(n^2 d)."""
    left = np.ones(len(rows), bool)
    path = [0]
    for _ in range(len(rows) - 1):
        left[path[-1]] = False
        distances = np.square(rows - rows[path[-1]]).sum(axis=1)
        path.append(int(np.where(left, distances, np.inf).argmin()))
    return path
