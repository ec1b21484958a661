"""Images to latent moments and captions to text states, cached; and micro-batches of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data import latent_cache, rng
from data.buckets import Bucket, assign_bucket
from data.dataset import (
    Batch,
    BatchLayout,
    EncodedDataset,
    EncodedImage,
    StepSampler,
    TrainingNoise,
    collate,
    to_device,
)
from data.latent_cache import CacheResult, DiskEntries, EntryPaths, ImageCrop, MemoryEntries
from data.schema import Sample
from data.shapes import Images, Moments, TextStates
from train import signals
from train.config import Config
from train.model import BaseModel
from train.training_set import TrainingSet

STORAGE_NAMES = {"memory": "in main memory", "disk": "on the disk, read again for every batch"}


@dataclass(frozen=True)
class Encoded:
    """The encoded training set."""

    buckets: list[Sequence[EncodedImage]]
    weights: list[list[float]]  # of each entry of each bucket: how often it is used, relative to others
    train_subset: Sequence[EncodedImage]  # as many as are held out, for validation
    held_out: Sequence[EncodedImage]
    empty: TextStates
    home: str  # memory or disk
    kept: Sequence[TextStates] = ()  # (L, D) each: of the prompts whose meaning is preserved


def encode_training_set(model: BaseModel, collection: TrainingSet, config: Config, accelerator: Accelerator) -> Encoded:
    """Encode what is not cached yet. The first process does it, the others read the cache."""
    with accelerator.main_process_first():
        states, texts = encode_captions(model, collection, accelerator.device)
        moments, images = encode_images(model, collection, config, accelerator.device)
    model.forget("vae", "text_encoder")
    names = collection.prompts
    records = {name: EntryPaths(name, moments[name], tuple(states[text] for text in names[name])) for name in names}
    size = latent_cache.total_bytes(records.values())
    home = latent_cache.choose_storage(config.pictures.keep, size)
    for path in (*texts.damaged, *images.damaged):
        accelerator.print(f"damaged, encoded again: {path}")
    accelerator.print(
        f"encoded    {len(records)} images, {size / latent_cache.GIB:.2f} GiB, kept {STORAGE_NAMES[home]}"
    )
    return store_encoded(home, collection, config, records, states)


def store_encoded(
    home: str,
    collection: TrainingSet,
    config: Config,
    records: dict[str, EntryPaths],
    states: Mapping[str, Path],
) -> Encoded:
    """The encoded set in memory or on disk."""
    memory = MemoryEntries(torch.device("cpu"))
    shelve = DiskEntries if home == "disk" else memory.entries
    buckets = [[sample.annotation.file_name for sample in samples] for samples in collection.buckets.values()]
    return Encoded(
        buckets=[shelve([records[name] for name in names]) for names in buckets],
        weights=[[collection.weights[name] for name in names] for names in buckets],
        train_subset=shelve(choose_for_validation(collection.train, config, records)),
        held_out=shelve(choose_for_validation(collection.held_out, config, records)),
        empty=memory.value(states[""]),
        kept=[memory.value(states[prompt]) for prompt in collection.preserved],
        home=home,
    )


def encode_captions(
    model: BaseModel, collection: TrainingSet, device: torch.device
) -> tuple[dict[str, Path], CacheResult]:
    """The files of the text states of each prompt, the empty one included."""
    prompts = all_prompts(collection)

    def encoded(text: str) -> TextStates:
        signals.stop_with_launcher()
        return encode_text(model, text, device)

    filled = latent_cache.cache_text_states(prompts, encoded, text_key(model))
    return dict(zip(prompts, filled.places, strict=True)), filled


def all_prompts(collection: TrainingSet) -> list[str]:
    """Every prompt once: the empty one, those to preserve, the captions."""
    captions = (text for texts in collection.prompts.values() for text in texts)
    return list(dict.fromkeys(["", *collection.preserved, *captions]))


def encode_images(
    model: BaseModel, collection: TrainingSet, config: Config, device: torch.device
) -> tuple[dict[str, tuple[Path, ...]], CacheResult]:
    """The files of the latent moments of each image, in both orientations if it may be mirrored."""
    frames = image_frames(collection, config)
    encoder = model.fingerprints["vae"]

    def encoded(pixels: Images) -> Moments:
        signals.stop_with_launcher()
        return encode_image(model, pixels, device)

    filled = latent_cache.cache_latents([f for _, f in frames], encoded, encoder)
    moments: dict[str, tuple[Path, ...]] = {}
    for (name, _), path in zip(frames, filled.places, strict=True):
        moments[name] = (*moments.get(name, ()), path)
    return moments, filled


def image_frames(collection: TrainingSet, config: Config) -> list[tuple[str, ImageCrop]]:
    """The crop of each image by file name, in both orientations if it may be mirrored."""
    flips = (False, True) if config.pictures.flip else (False,)
    return [
        (sample.annotation.file_name, ImageCrop(sample.path, sample.sha256, bucket.width, bucket.height, flip))
        for sample, bucket in with_buckets(collection, list(collection.buckets))
        for flip in flips
    ]


def with_buckets(collection: TrainingSet, sizes: Sequence[Bucket]) -> list[tuple[Sample, Bucket]]:
    """Every image with the bucket it is trained in; held-out images go to the nearest that training uses."""
    trained = [(sample, bucket) for bucket, samples in collection.buckets.items() for sample in samples]
    return trained + [(sample, assign_bucket(sample.width, sample.height, sizes)) for sample in collection.held_out]


@torch.no_grad()
def encode_image(model: BaseModel, pixels: Images, device: torch.device) -> Moments:
    """(1, 3, H, W) -> (1, 2C, h, w) mean and log-variance, in float32: in fp16 SD v1's autoencoder overflows."""
    vae: Any = model.vae
    vae.to(device, torch.float32)
    with exact_float32():
        (posterior,) = vae.encode(pixels.to(device), return_dict=False)
    return posterior.parameters


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 on a GPU, whatever the training uses: the cache must not depend on how the first run was started."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@torch.no_grad()
def encode_text(model: BaseModel, text: str, device: torch.device) -> TextStates:
    """(L, D): the last hidden states that Stable Diffusion v1 is conditioned on, in float32."""
    encoder: Any = model.text_encoder
    encoder.to(device, torch.float32)
    tokens = model.tokenizer(
        text, padding="max_length", truncation=True, max_length=model.tokenizer.model_max_length, return_tensors="pt"
    )
    with exact_float32():
        return encoder(tokens.input_ids.to(device))[0][0]


def text_key(model: BaseModel) -> str:
    return model.fingerprints["text_encoder"] + model.fingerprints["tokenizer"]


def choose_for_validation(
    samples: Sequence[Sample], config: Config, records: dict[str, EntryPaths]
) -> list[EntryPaths]:
    """At most validation.images of them, the same ones every time."""
    order = sorted(samples, key=lambda sample: rng.seed_for(config.seed, "validation", sample.sha256))
    return [records[sample.annotation.file_name] for sample in order[: config.validation.pictures]]


def micro_batches(
    encoded: Encoded,
    config: Config,
    layout: BatchLayout,
    scaling_factor: float,
    device: torch.device,
    start: int,
    stop: int,
) -> Iterator[Batch]:
    """This process's micro-batches of the steps [start, stop), on the device. Every sample, its noise and timestep are
    a function of (seed, step, slot), so a resumed run repeats them.
    """
    images = EncodedDataset(
        encoded.buckets,
        encoded.empty,
        seed=config.seed,
        scaling_factor=scaling_factor,
        dropout=config.pictures.caption_dropout,
        noise=TrainingNoise(config.objective.noise_offset, config.objective.input_perturbation),
        kept=encoded.kept,
        share=config.preserve.share,
    )
    sizes = [len(bucket) for bucket in encoded.buckets]
    sampler = StepSampler(sizes, layout, seed=config.seed, start=start, stop=stop, weights=encoded.weights)
    # a generator of its own: DataLoader would draw from torch's global one
    loader = DataLoader(images, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator())
    return (to_device(batch, device) for batch in loader)
