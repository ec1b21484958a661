"""Pictures to latent moments and captions to text states, once; then the autoencoder and the text encoder may go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data import cache, homes, seeds
from data.buckets import Bucket, assign
from data.cache import Filled, Frame
from data.dataset import Entry
from data.homes import InMemory, OnDisk, Record
from data.schema import Sample
from data.shapes import Images, Moments, TextStates
from train import launched
from train.base_model import BaseModel
from train.config import Config
from train.curation import Collection

PLACES = {"memory": "in main memory", "disk": "on the disk, read again for every batch"}


@dataclass(frozen=True)
class Encoded:
    """Everything the loop needs of the data."""

    buckets: list[Sequence[Entry]]
    weights: list[list[float]]  # of each entry of each bucket: how often it comes, relative to others
    train_subset: Sequence[Entry]  # as many as are held out, for validation
    held_out: Sequence[Entry]
    empty: TextStates
    home: str  # memory or disk
    kept: Sequence[TextStates] = ()  # (L, D) each: of the prompts whose meaning is preserved


def encode(model: BaseModel, collection: Collection, config: Config, accelerator: Accelerator) -> Encoded:
    """Encode what is not in the cache yet. The first process does it, the others read what it kept."""
    with accelerator.main_process_first():
        states, texts = encode_captions(model, collection, accelerator.device)
        moments, pictures = encode_pictures(model, collection, config, accelerator.device)
    model.forget("vae", "text_encoder")
    names = collection.prompts
    records = {name: Record(name, moments[name], tuple(states[text] for text in names[name])) for name in names}
    size = homes.size_of(records.values())
    home = homes.choose(config.pictures.keep, size)
    for path in (*texts.damaged, *pictures.damaged):
        accelerator.print(f"damaged, encoded again: {path}")
    accelerator.print(f"encoded    {len(records)} pictures, {size / homes.GIB:.2f} GiB, kept {PLACES[home]}")
    return at_home(home, collection, config, records, states)


def at_home(
    home: str,
    collection: Collection,
    config: Config,
    records: dict[str, Record],
    states: Mapping[str, Path],
) -> Encoded:
    """The encoded set where it will be read from."""
    memory = InMemory(torch.device("cpu"))
    shelve = OnDisk if home == "disk" else memory.entries
    buckets = [[sample.annotation.file_name for sample in samples] for samples in collection.buckets.values()]
    return Encoded(
        buckets=[shelve([records[name] for name in names]) for names in buckets],
        weights=[[collection.weights[name] for name in names] for names in buckets],
        train_subset=shelve(choose(collection.train, config, records)),
        held_out=shelve(choose(collection.held_out, config, records)),
        empty=memory.value(states[""]),
        kept=[memory.value(states[prompt]) for prompt in collection.preserved],
        home=home,
    )


def encode_captions(model: BaseModel, collection: Collection, device: torch.device) -> tuple[dict[str, Path], Filled]:
    """Where the states of each prompt lie, the empty one included."""
    prompts = prompts_of(collection)

    def encoded(text: str) -> TextStates:
        launched.go_with_it()
        return encode_text(model, text, device)

    filled = cache.text_states(prompts, encoded, text_key(model))
    return dict(zip(prompts, filled.places, strict=True)), filled


def prompts_of(collection: Collection) -> list[str]:
    """All that is said, once each: the empty prompt, those that are preserved, the captions."""
    captions = (text for texts in collection.prompts.values() for text in texts)
    return list(dict.fromkeys(["", *collection.preserved, *captions]))


def encode_pictures(
    model: BaseModel, collection: Collection, config: Config, device: torch.device
) -> tuple[dict[str, tuple[Path, ...]], Filled]:
    """Where the moments of every picture lie, in both orientations if it may be mirrored."""
    frames = frames_of(collection, config)
    encoder = model.fingerprints["vae"]

    def encoded(pixels: Images) -> Moments:
        launched.go_with_it()
        return encode_picture(model, pixels, device)

    filled = cache.latent_moments([f for _, f in frames], encoded, encoder)
    moments: dict[str, tuple[Path, ...]] = {}
    for (name, _), path in zip(frames, filled.places, strict=True):
        moments[name] = (*moments.get(name, ()), path)
    return moments, filled


def frames_of(collection: Collection, config: Config) -> list[tuple[str, Frame]]:
    """What the autoencoder will see of each picture, by file name, in both orientations if it may be mirrored."""
    flips = (False, True) if config.pictures.flip else (False,)
    return [
        (sample.annotation.file_name, Frame(sample.path, sample.sha256, bucket.width, bucket.height, flip))
        for sample, bucket in with_bucket(collection, list(collection.buckets))
        for flip in flips
    ]


def with_bucket(collection: Collection, sizes: Sequence[Bucket]) -> list[tuple[Sample, Bucket]]:
    """Every picture with the bucket it is trained in; held-out pictures go to the nearest that training uses."""
    trained = [(sample, bucket) for bucket, samples in collection.buckets.items() for sample in samples]
    return trained + [(sample, assign(sample.width, sample.height, sizes)) for sample in collection.held_out]


@torch.no_grad()
def encode_picture(model: BaseModel, pixels: Images, device: torch.device) -> Moments:
    """(1, 3, H, W) -> (1, 2C, h, w) mean and log-variance, in float32: in fp16 SD v1's autoencoder overflows."""
    vae: Any = model.vae
    vae.to(device, torch.float32)
    with exact_float32():
        (posterior,) = vae.encode(pixels.to(device), return_dict=False)
    return posterior.parameters


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 on a GPU, whatever the training uses: what is kept must not depend on how the first run was started."""
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


def choose(samples: Sequence[Sample], config: Config, records: dict[str, Record]) -> list[Record]:
    """At most validation.pictures of them, the same ones every time."""
    order = sorted(samples, key=lambda sample: seeds.seed_for(config.seed, "validation", sample.sha256))
    return [records[sample.annotation.file_name] for sample in order[: config.validation.pictures]]
