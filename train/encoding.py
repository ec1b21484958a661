"""Pictures to latent moments and captions to text states, once; then the autoencoder and the text encoder may go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from data import cache, seeds
from data.buckets import Bucket, assign
from data.cache import Frame
from data.dataset import Entry
from data.schema import Sample
from data.shapes import Images, Moments, TextStates
from train.base_model import BaseModel
from train.config import Config
from train.curation import Collection

ROOM = 0.25  # share of the device's free memory that the whole encoded set may take; else it stays in main memory


@dataclass(frozen=True)
class Encoded:
    """Everything the loop needs of the data."""

    buckets: list[list[Entry]]
    train_subset: list[Entry]  # as many as are held out, for validation
    held_out: list[Entry]
    empty: TextStates


def encode(model: BaseModel, collection: Collection, config: Config, accelerator: Accelerator) -> Encoded:
    """Encode what is not in the cache yet. The first process does it, the others read what it kept."""
    with accelerator.main_process_first():
        states = cache.text_states(all_prompts(collection), lambda text: encode_text(model, text), text_key(model))
        moments = encode_pictures(model, collection, config, accelerator.device)
    model.forget("vae", "text_encoder")
    entries = {
        name: Entry(name, latents, tuple(states[prompt] for prompt in collection.prompts[name]))
        for name, latents in moments.items()
    }
    device = home(entries.values(), accelerator.device)
    entries = {name: moved(entry, device) for name, entry in entries.items()}
    sizes = collection.buckets.values()
    return Encoded(
        buckets=[[entries[sample.annotation.file_name] for sample in samples] for samples in sizes],
        train_subset=choose(collection.train, config, entries),
        held_out=choose(collection.held_out, config, entries),
        empty=states[""].to(device),
    )


def all_prompts(collection: Collection) -> list[str]:
    return ["", *(prompt for prompts in collection.prompts.values() for prompt in prompts)]


def encode_pictures(
    model: BaseModel, collection: Collection, config: Config, device: torch.device
) -> dict[str, tuple[Moments, ...]]:
    """The moments of every picture, in both orientations if it may be mirrored."""
    frames = frames_of(collection, config)
    encoder = model.fingerprints["vae"]
    found = cache.latent_moments([f for _, f in frames], lambda x: encode_picture(model, x, device), encoder)
    moments: dict[str, tuple[Moments, ...]] = {}
    for (name, _), value in zip(frames, found, strict=True):
        moments[name] = (*moments.get(name, ()), value)
    return moments


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
    (posterior,) = vae.encode(pixels.to(device), return_dict=False)
    return posterior.parameters


@torch.no_grad()
def encode_text(model: BaseModel, text: str) -> TextStates:
    """(L, D): the last hidden states that Stable Diffusion v1 is conditioned on."""
    tokens = model.tokenizer(
        text, padding="max_length", truncation=True, max_length=model.tokenizer.model_max_length, return_tensors="pt"
    )
    return model.text_encoder(tokens.input_ids)[0][0]


def text_key(model: BaseModel) -> str:
    return model.fingerprints["text_encoder"] + model.fingerprints["tokenizer"]


def choose(samples: Sequence[Sample], config: Config, entries: Mapping[str, Entry]) -> list[Entry]:
    """At most validation.pictures of them, the same ones every time."""
    order = sorted(samples, key=lambda sample: seeds.seed_for(config.seed, "validation", sample.sha256))
    return [entries[sample.annotation.file_name] for sample in order[: config.validation.pictures]]


def home(entries: Iterable[Entry], device: torch.device) -> torch.device:
    """The device, if all entries fit there beside the training; else the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")
    size = sum(tensor.nbytes for entry in entries for tensor in (*entry.moments, *entry.text_states))
    free, _ = torch.cuda.mem_get_info(device)
    return device if size < ROOM * free else torch.device("cpu")


def moved(entry: Entry, device: torch.device) -> Entry:
    return Entry(
        entry.sample_id,
        tuple(moments.to(device) for moments in entry.moments),
        tuple(states.to(device) for states in entry.text_states),
    )
