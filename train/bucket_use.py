"""How the pictures are used, for the plan: what each bucket and each folder contributes, and what it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from train.curation import Collection, Share


@dataclass(frozen=True)
class BucketUse:
    """One bucket. Shares are of a picture's area, in [0, 1)."""

    pictures: int
    steps: float  # of the run, whose global batch comes from this bucket
    mean_cropped: float
    worst_cropped: float
    enlarged: int  # pictures that are smaller than the bucket
    batches: float  # global batches that all its pictures, each once, make


@dataclass(frozen=True)
class FolderUse:
    """One of several folders. times: how often each of its training pictures is seen in the run."""

    folder: str
    weight: float
    training: int
    held_out: int
    times: float


def bucket_uses(collection: Collection, global_batch: int, steps: int) -> dict[str, BucketUse]:
    """By size, as "512x512"."""
    drawn = {
        bucket: sum(collection.weights[sample.annotation.file_name] for sample in samples)
        for bucket, samples in collection.buckets.items()
    }
    total = sum(drawn.values())
    return {
        str(use.bucket): BucketUse(
            pictures=use.count,
            steps=steps * drawn[use.bucket] / total,
            mean_cropped=use.mean_cropped,
            worst_cropped=use.worst_cropped,
            enlarged=use.enlarged,
            batches=use.count / global_batch,
        )
        for use in collection.uses()
    }


def folder_uses(shares: Sequence[Share], global_batch: int, steps: int) -> list[FolderUse]:
    """Empty for a single folder, about which the plan has nothing to add."""
    total = sum(share.weight * share.training for share in shares)
    if len(shares) < 2:
        return []
    return [FolderUse(**vars(share), times=steps * global_batch * share.weight / total) for share in shares]


def use_lines(buckets: Mapping[str, BucketUse], folders: Sequence[FolderUse], global_batch: int) -> list[str]:
    """For the plan: a line a folder if there are several, a line a bucket, and the buckets that no batch fills."""
    lines = [
        f"{'folder':<10} {use.folder}: {use.training} to train on, {use.held_out} held out; weight {use.weight:g},"
        f" each picture seen {use.times:.1f} times"
        for use in folders
    ]
    lines += [f"{'bucket':<10} {size}: {words(use)}" for size, use in buckets.items()]
    small = [f"{size} ({use.pictures})" for size, use in buckets.items() if use.pictures < global_batch]
    if small:
        what = f"buckets with fewer pictures than the {global_batch} of a step repeat them within it"
        lines.append(f"{'beware':<10} {what}: {', '.join(small)}")
    return lines


def words(use: BucketUse) -> str:
    """A bucket in a line: the truth about what is cut away and what is blown up."""
    many = "1 picture" if use.pictures == 1 else f"{use.pictures} pictures"
    cropped = f"{100 * use.mean_cropped:.1f} % of a picture cut away, {100 * use.worst_cropped:.1f} % at most"
    return (
        f"{many}, {use.batches:.1f} batches a time through, {use.steps:.0f} steps; {cropped}; {use.enlarged} enlarged"
    )
