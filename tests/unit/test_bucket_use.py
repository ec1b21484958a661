"""What the plan says of buckets and folders is what the sampler does."""

from collections import Counter
from pathlib import Path

import pytest

from data.buckets import Bucket
from data.dataset import BatchLayout, StepSampler
from data.schema import Annotation, Sample
from train.plan import bucket_uses, folder_uses, use_lines
from train.training_set import FolderShare, TrainingSet


def sample(name: str, width: int, height: int) -> Sample:
    return Sample(Path(name), Annotation(file_name=name), "", name, width, height)


@pytest.fixture
def collection() -> TrainingSet:
    square = [sample(f"square {i}", 64, 64) for i in range(9)] + [sample("small", 32, 48)]
    wide = [sample("wide", 192, 64), sample("heavy", 128, 64)]
    found = {Bucket(64, 64): square, Bucket(96, 48): wide}
    names = [item.annotation.file_name for item in (*square, *wide)]
    return TrainingSet(
        found=12,
        train=[*square, *wide],
        held_out=[],
        buckets=found,
        square=Bucket(64, 64),
        prompts={name: ["a"] for name in names},
        weights={name: 9.0 if name == "heavy" else 1.0 for name in names},
        shares=[FolderShare("cats", 1, 11, 1), FolderShare("dogs", 9, 1, 0)],
        left_out=[],
        warnings=[],
        captions_cut=[],
        near_duplicates=0,
        tokens="",
        fingerprint="",
    )


def test_buckets(collection: TrainingSet) -> None:
    uses = bucket_uses(collection, global_batch=4, steps=40)
    square, wide = uses["64x64"], uses["96x48"]
    assert (square.pictures, square.enlarged, square.batches) == (10, 1, 2.5)
    assert square.mean_cropped == pytest.approx((1 / 3) / 10) and square.worst_cropped == pytest.approx(1 / 3)
    assert (wide.pictures, wide.enlarged, wide.batches) == (2, 0, 0.5)
    assert wide.mean_cropped == pytest.approx((1 - 2 / 3) / 2)
    weights = [[collection.weights[s.annotation.file_name] for s in held] for held in collection.buckets.values()]
    sampler = StepSampler([10, 2], BatchLayout(4), seed=0, start=0, stop=40, weights=weights)
    turns = Counter(batch[0].bucket for batch in sampler)
    assert [turns[0], turns[1]] == [square.steps, wide.steps] == [20, 20]


def test_folders_are_seen_as_often_as_their_weights_say(collection: TrainingSet) -> None:
    cats, dogs = folder_uses(collection.shares, global_batch=4, steps=40)
    assert cats.times == pytest.approx(8.0) and dogs.times == pytest.approx(72.0)
    assert cats.times * 11 + dogs.times * 1 == pytest.approx(160)
    assert folder_uses(collection.shares[:1], 4, 40) == []


def test_the_lines_of_the_plan(collection: TrainingSet) -> None:
    lines = use_lines(bucket_uses(collection, 4, 40), folder_uses(collection.shares, 4, 40), global_batch=4)
    assert [line.split(":")[0] for line in lines[:4]] == [
        "folder     cats",
        "folder     dogs",
        "bucket     64x64",
        "bucket     96x48",
    ]
    assert lines[4].startswith("warning") and lines[4].endswith("96x48 (2)")
    assert not any(line.startswith("warning") for line in use_lines(bucket_uses(collection, 2, 40), [], global_batch=2))
