"""The denoising losses of training and held-out pictures, with base and tuned weights, at the same noise: kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from data import disk_cache, rng
from data.buckets import assign_bucket
from data.latent_cache import EntryPaths, MemoryEntries
from data.schema import Sample
from infer.comparison.image_cache import ImageCache
from infer.comparison.weights import Weights
from infer.evaluation.config import Counts
from infer.evaluation.samples import Losses
from infer.evaluation.target_run import Subject
from train import encode
from train.model import Denoiser
from train.validation import HELD_OUT, TRAIN, Validator

if TYPE_CHECKING:
    from data.dataset import EncodedImage


def losses(subject: Subject, store: ImageCache, counts: Counts, seed: int) -> Losses:
    """Of at most counts.losses pictures a side, counts.timesteps timesteps each."""
    sides = {TRAIN: chosen(subject.collection.train, min(counts.losses, len(subject.collection.held_out)), seed),
             HELD_OUT: chosen(subject.collection.held_out, counts.losses, seed)}  # fmt: skip
    tuned, base = (measured(subject, store, weights, sides, counts) for weights in (subject.tuned, subject.base))
    return Losses(tuned[TRAIN], tuned[HELD_OUT], base[TRAIN], base[HELD_OUT])


def chosen(samples: Sequence[Sample], most: int, seed: int) -> list[Sample]:
    order = sorted(samples, key=lambda sample: rng.seed_for(seed, "evaluate", "losses", sample.sha256))
    return order[:most]


def measured(
    subject: Subject, store: ImageCache, weights: Weights, sides: dict[str, list[Sample]], counts: Counts
) -> dict[str, np.ndarray]:
    """The mean loss of each picture over timesteps, by side; worked out once for the same weights and pictures."""
    names = {side: [sample.sha256 for sample in samples] for side, samples in sides.items()}
    model = store.model(weights)
    key = disk_cache.cache_key("evaluate losses 1", model.fingerprint, store.machine.facts, names, counts.timesteps,
                      subject.config.pictures.caption, subject.config.objective,
                      [(file.weight, store_hash(file.path)) for file in weights.loras])  # fmt: skip
    found = disk_cache.cached_value("evaluate", key, lambda: work_out(subject, store, weights, sides, counts))
    return {side: np.array(values) for side, values in found.items()}


def store_hash(path: object) -> str:
    from pathlib import Path

    from data.atomic_io import file_sha256

    return file_sha256(Path(str(path)))


def work_out(
    subject: Subject, store: ImageCache, weights: Weights, sides: dict[str, list[Sample]], counts: Counts
) -> dict[str, list[float]]:
    entries = {side: encoded(subject, store, samples) for side, samples in sides.items()}
    model = store.model(weights)
    validator = Validator(entries, subject.config.objective, model.schedule.to(store.machine.device),
                          model.scaling_factor, counts.timesteps)  # fmt: skip
    with store.pipe(weights) as (pipe, _):
        found = validator.measure(Denoiser(pipe.unet), store.machine.device)
    return {side: each.per_picture.tolist() for side, each in found.items()}


def encoded(subject: Subject, store: ImageCache, samples: Sequence[Sample]) -> Sequence[EncodedImage]:
    """As they were for training, out of the cache if they are still there."""
    collection, model = subject.collection, store.model(subject.base)
    sizes = list(collection.buckets)
    by_bucket: dict = {bucket: [] for bucket in sizes}
    for sample in samples:
        by_bucket[assign_bucket(sample.width, sample.height, sizes)].append(sample)
    names = [sample.annotation.file_name for sample in samples]
    some = replace(collection, buckets=by_bucket, held_out=[], prompts={n: collection.prompts[n] for n in names})
    states, _ = encode.encode_captions(model, some, store.machine.device)
    moments, _ = encode.encode_pictures(model, some, subject.config, store.machine.device)
    return MemoryEntries(store.machine.device).entries(
        [EntryPaths(name, moments[name], tuple(states[text] for text in some.prompts[name])) for name in names]
    )
