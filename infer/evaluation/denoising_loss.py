"""Denoising losses of training and held-out images with base and tuned weights, at the same noise; cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data import rng
from data.atomic_io import file_sha256
from data.buckets import assign_bucket
from data.dataset import EncodedImage
from data.disk_cache import cache_key, cached_value
from data.latent_cache import EntryPaths, MemoryEntries
from data.schema import Sample
from infer.comparison.image_cache import ImageCache
from infer.comparison.weights import Weights
from infer.evaluation.config import Counts
from infer.evaluation.samples import DenoisingLosses
from infer.evaluation.target_run import TargetRun
from train import encode
from train.model import Denoiser
from train.validation import HELD_OUT, TRAIN, Validator

Sides = Mapping[str, Sequence[Sample]]


def measure_losses(target: TargetRun, cache: ImageCache, counts: Counts, seed: int) -> DenoisingLosses:
    """Of at most counts.losses images a side, at counts.timesteps timesteps each."""

    def choose(samples: Sequence[Sample], most: int) -> list[Sample]:
        return sorted(samples, key=lambda sample: rng.seed_for(seed, "evaluate", "losses", sample.sha256))[:most]

    train, held_out = target.images.train, target.images.held_out
    sides = {TRAIN: choose(train, min(counts.losses, len(held_out))), HELD_OUT: choose(held_out, counts.losses)}
    tuned, base = (losses_of(target, cache, weights, sides, counts) for weights in (target.tuned, target.base))
    return DenoisingLosses(tuned[TRAIN], tuned[HELD_OUT], base[TRAIN], base[HELD_OUT])


def losses_of(
    target: TargetRun, cache: ImageCache, weights: Weights, sides: Sides, counts: Counts
) -> dict[str, np.ndarray]:
    """The mean loss of each image over timesteps, by side; cached by weights and images."""
    hashes = {side: [sample.sha256 for sample in samples] for side, samples in sides.items()}
    model = cache.model(weights)
    key = cache_key("evaluate losses 1", model.fingerprint, cache.machine.facts, hashes, counts.timesteps,
                    target.config.pictures.caption, target.config.objective,
                    [(lora.weight, file_sha256(lora.path)) for lora in weights.loras])  # fmt: skip

    def measure() -> dict[str, list[float]]:
        entries = {side: encode_samples(target, cache, samples) for side, samples in sides.items()}
        validator = Validator(entries, target.config.objective, model.schedule.to(cache.machine.device),
                              model.scaling_factor, counts.timesteps)  # fmt: skip
        with cache.pipe(weights) as (pipe, _):
            found = validator.measure(Denoiser(pipe.unet), cache.machine.device)
        return {side: each.per_picture.tolist() for side, each in found.items()}

    return {side: np.array(values) for side, values in cached_value("evaluate", key, measure).items()}


def encode_samples(target: TargetRun, cache: ImageCache, samples: Sequence[Sample]) -> Sequence[EncodedImage]:
    """As for training, from the cache if they are still there."""
    images, model, device = target.images, cache.model(target.base), cache.machine.device
    by_bucket: dict = {bucket: [] for bucket in images.buckets}
    for sample in samples:
        by_bucket[assign_bucket(sample.width, sample.height, list(images.buckets))].append(sample)
    names = [sample.annotation.file_name for sample in samples]
    chosen = replace(images, buckets=by_bucket, held_out=[], prompts={name: images.prompts[name] for name in names})
    states, _ = encode.encode_captions(model, chosen, device)
    moments, _ = encode.encode_images(model, chosen, target.config, device)
    paths = [EntryPaths(name, moments[name], tuple(states[text] for text in chosen.prompts[name])) for name in names]
    return MemoryEntries(device).entries(paths)
