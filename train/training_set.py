"""The training set: captioned folders, what is left out and why, the held-out split, the buckets; and its encoding:
images to latent moments and captions to text states, cached, and micro-batches of both.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data import buckets, captions, duplicates, latent_cache, rng
from data.buckets import Bucket
from data.captioned_folder import CaptionedFolder
from data.config import FolderOptions, ImageOptions
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
from data.errors import InputError, InputErrors, raise_all
from data.latent_cache import CacheResult, DiskEntries, EntryPaths, ImageCrop, MemoryEntries
from data.sample_set import sample_folder
from data.schema import Sample
from data.shapes import Images, Moments, TextStates
from data.sources import read_source
from train import signals
from train.config import POCKET, Config, Folder
from train.losses import read_preserved_prompts
from train.model import BaseModel


@dataclass(frozen=True)
class SourceFolder:
    """A folder and its images. label: a prefix for their names; empty for a single folder."""

    folder: Folder
    label: str
    listing: CaptionedFolder


@dataclass(frozen=True)
class FolderShare:
    """What one of several folders contributes."""

    folder: str
    weight: float
    training: int
    held_out: int


@dataclass(frozen=True)
class TrainingSet:
    """The usable images. A sample's file_name is its id, unique over all folders."""

    found: int  # images seen in the folders
    train: list[Sample]
    held_out: list[Sample]
    buckets: dict[Bucket, list[Sample]]  # of the training images
    square: Bucket
    prompts: dict[str, list[str]]  # sample id -> prompts
    weights: dict[str, float]  # sample id -> how often it is used, relative to others
    shares: list[FolderShare]  # one a folder
    left_out: list[str]
    warnings: list[str]  # about images that are used
    captions_cut: list[str]
    near_duplicates: int
    tokens: str
    fingerprint: str
    preserved: Sequence[str] = ()  # prompts whose meaning is kept
    chunks: int = 1  # of 75 tokens, in the text states of every prompt

    def facts(self) -> dict[str, Any]:
        """data.json: which images were trained on, so that anyone can check."""
        return {
            "fingerprint": self.fingerprint,
            "train": {sample.annotation.file_name: sample.sha256 for sample in self.train},
            "held_out": {sample.annotation.file_name: sample.sha256 for sample in self.held_out},
            "folders": [vars(share) for share in self.shares],
            "left_out": self.left_out,
            "warnings": self.warnings,
            "captions_cut": self.captions_cut,
        }


def load_training_set(config: Config, model: BaseModel) -> TrainingSet:
    """Read the folders, skip what cannot be used (--strict refuses), split off held-out images, sort into buckets.

    Raises InputError if nothing can be used.
    """
    options, size = config.pictures, config.pictures.size or model.sample_size
    sources = read_folders(config.data, size, options)
    problems = [problem for source in sources for problem in source.listing.problems]
    left_out = [str(problem) for problem in problems if problem.refused]
    # the order must not depend on file names: renaming images does not make another dataset
    found = [(sample, source) for source in sources for sample in source.listing.samples]
    found.sort(key=lambda pair: (pair[0].sha256, pair[0].captions, pair[1].folder.weight * pair[0].repeats))
    raw, origins = [sample for sample, _ in found], [source for _, source in found]
    fields = captions.known_fields(sample.annotation for sample in raw)
    prompts = [captions.render_prompts(each.annotation, options.caption, fields=fields) or [""] for each in raw]
    empty = [sample.where for sample, texts in zip(raw, prompts, strict=True) if texts == [""]]
    preserved = read_preserved_prompts(config.preserve) if config.preserve.share else []
    tokens = captions.count_tokens(raw, model.tokenizer, options.caption, chunks=options.caption_chunks)
    cut = [f"{item.file_name} ({item.where}): {item.count} tokens, lost: {item.lost_text}" for item in tokens.cut]
    kept = captions.count_tokens(preserved, model.tokenizer, chunks=options.caption_chunks)
    for item in kept.cut:
        cut.append(f"preserved prompt {item.where}: {item.count} tokens, lost: {item.lost_text}")
    warnings = [str(problem) for problem in problems if not problem.refused]
    warnings += [f"{s.folder}: {n} images: {note}" for s in sources for note, n in s.listing.caption_notes.items()]
    if empty:
        warnings.append(f"{len(empty)} images have an empty prompt from {options.caption!r} (e.g. {empty[0]})")
    if config.strict:
        check_strict(left_out, cut, empty, config.data)
    samples = [with_label(sample, source.label) for sample, source in found]
    names = [sample.annotation.file_name for sample in samples]
    assert len(set(names)) == len(names), "a sample id stands for two images"
    warnings += shared_image_warnings(samples, origins)
    repeats = [sample.repeats for sample in samples]
    weights = relative_weights([source.folder.weight for source in origins], repeats)
    groups = duplicates.duplicate_groups(samples)
    split = duplicates.split_held_out([s.sha256 for s in samples], groups, share=options.held_out, seed=config.seed)
    warnings += [split.note] if split.note else []
    trained = [samples[index] for index in split.train]
    used = dict(zip(names, prompts, strict=True))
    used |= vary_tags({names[index]: prompts[index] for index in split.train}, options, config.seed)
    square, sorted_out = sort_into_buckets(trained, size, model.step, options.buckets)
    return TrainingSet(
        found=sum(source.listing.found for source in sources),
        train=trained,
        held_out=[samples[index] for index in split.held_out],
        buckets=sorted_out,
        square=square,
        prompts=used,
        preserved=preserved,
        chunks=max(tokens.chunks, kept.chunks),
        weights=dict(zip(names, weights, strict=True)),
        shares=folder_shares(sources, origins, set(split.held_out)),
        left_out=left_out,
        warnings=warnings,
        captions_cut=cut,
        near_duplicates=sum(size for size in Counter(groups).values() if size > 1),
        tokens=str(tokens),
        fingerprint=content_fingerprint(samples, prompts, weights, preserved),
    )


def keep_split(dataset: TrainingSet, facts: Mapping[str, Any], model: BaseModel, *, several: bool) -> TrainingSet:
    """The set with the split that a run's data.json records: an earlier version may have drawn another one."""
    kept = set(facts.get("held_out", {}).values())
    samples = [*dataset.train, *dataset.held_out]
    known = {sample.sha256 for sample in samples}
    if "held_out" not in facts or kept == {sample.sha256 for sample in dataset.held_out} or not kept < known:
        return dataset
    samples.sort(key=lambda each: (each.sha256, each.captions, dataset.weights[each.annotation.file_name]))
    train = [sample for sample in samples if sample.sha256 not in kept]
    return replace(
        dataset,
        train=train,
        held_out=[sample for sample in samples if sample.sha256 in kept],
        buckets=sort_into_buckets(train, dataset.square.width, model.step, several)[1],
        shares=[FolderShare(**row) for row in facts.get("folders", [])] or dataset.shares,
    )


def read_folders(folders: Sequence[Folder], size: int, options: FolderOptions) -> list[SourceFolder]:
    """Read every folder. Raises InputError naming all that are missing or hold nothing usable."""
    sources: list[SourceFolder] = []
    errors: list[InputError] = []
    for folder, label in zip(folders, folder_labels(list(folders)), strict=True):
        path = sample_folder(size=size) if folder.path == POCKET else Path(folder.path).expanduser()
        try:
            listing = read_source(path, options)
        except InputError as error:
            errors.append(error)
            continue
        sources.append(SourceFolder(folder, label, listing))
        if not listing.samples:
            refused = [problem for problem in listing.problems if problem.refused]
            why = f": {refused[0].where} {refused[0].what}" + (", and so on" if refused[1:] else "") if refused else ""
            fix = f"See python data/prepare.py {path}"
            errors.append(InputError(f"no usable image{why}", where=f"--data {folder}", fix=fix))
    raise_all(errors)
    return sources


def vary_tags(prompts: dict[str, list[str]], options: ImageOptions, seed: int) -> dict[str, list[str]]:
    """The prompts of each image, then their variants with shuffled and dropped tags: all are encoded and cached."""
    settings: dict[str, Any] = {
        "shuffle": options.shuffle_tags,
        "keep": options.keep_tags,
        "dropout": options.tag_dropout,
    }
    settings |= {"count": options.tag_variants, "seed": seed}
    varied: dict[str, list[str]] = {}
    for name, texts in prompts.items():
        variants = [variant for text in texts for variant in captions.tag_variants(text, **settings)[1:]]
        varied[name] = list(dict.fromkeys([*texts, *variants]))
    return varied


def folder_labels(folders: Sequence[Folder]) -> list[str]:
    """A short, unique name for each: as many parts from the end of the path as it takes. [""] for a single folder."""
    if len(folders) == 1:
        return [""]
    parts = [folder.place.parts for folder in folders]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def with_label(sample: Sample, label: str) -> Sample:
    """The sample with its folder's label before its name: two folders may hold one file name."""
    if not label:
        return sample
    name = f"{label}/{sample.annotation.file_name}"
    return replace(sample, annotation=sample.annotation.model_copy(update={"file_name": name}))


def relative_weights(weights: Sequence[float], repeats: Sequence[int]) -> list[float]:
    """Weights times repeats, over the smallest: folders of weight 2 alone are trained on as folders of weight 1 are."""
    exact = [
        Fraction(str(weight)) * times for weight, times in zip(weights, repeats, strict=True)
    ]  # 0.3 and 0.1 are 3 and 1, which 0.3 / 0.1 is not
    return [float(weight / min(exact)) for weight in exact]


def folder_shares(
    sources: Sequence[SourceFolder], origins: Sequence[SourceFolder], held_out: set[int]
) -> list[FolderShare]:
    """What each folder contributes. origins: the folder of each sample; held_out: indices of samples."""
    counts = {id(source): [0, 0] for source in sources}
    for index, source in enumerate(origins):
        counts[id(source)][index in held_out] += 1
    return [FolderShare(source.folder.path, source.folder.weight, *counts[id(source)]) for source in sources]


def shared_image_warnings(samples: list[Sample], sources: list[SourceFolder]) -> list[str]:
    """A warning if images of equal content are in several folders: they are used once for each."""
    places: dict[str, dict[str, str]] = {}
    for sample, source in zip(samples, sources, strict=True):
        places.setdefault(sample.sha256, {}).setdefault(source.label, sample.annotation.file_name)
    twice = [" and ".join(names.values()) for names in places.values() if len(names) > 1]
    count = f"{len(twice)} images are" if len(twice) > 1 else "1 image is"
    return [f"{count} in more than one folder, used once for each (e.g. {twice[0]})"] if twice else []


def check_strict(left_out: list[str], cut: list[str], empty: list[str], folders: Sequence[Folder]) -> None:
    """--strict: nothing may be dropped. Raises InputErrors naming everything."""
    where = ", ".join(str(folder) for folder in folders)
    problems = [InputError(f"{text.removesuffix('.')} (--strict)") for text in left_out]
    problems += [InputError(f"caption truncated: {text} (--strict)", where=where) for text in cut]
    problems += [InputError("the caption template gives an empty prompt (--strict)", where=at) for at in empty]
    if problems:
        raise InputErrors(problems)


def sort_into_buckets(
    samples: list[Sample], size: int, step: int, several: bool
) -> tuple[Bucket, dict[Bucket, list[Sample]]]:
    """The square bucket, and the training images of each bucket, largest first."""
    if size % step:
        raise InputError(f"{size} pixels", where="--pictures.size", allowed=f"a multiple of {step} for this model")
    square = Bucket(size, size)
    sizes = buckets.make_buckets(size, step=step) if several else [square]
    found: dict[Bucket, list[Sample]] = {}
    for sample in samples:
        found.setdefault(buckets.assign_bucket(sample.width, sample.height, sizes), []).append(sample)
    return square, dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def content_fingerprint(
    samples: list[Sample], prompts: list[list[str]], weights: list[float], preserved: Sequence[str] = ()
) -> str:
    """A hash of the images' bytes, prompts and weights, and of preserved prompts: names and places do not count."""
    rows: list[list[Any]] = [[sample.sha256, texts] for sample, texts in zip(samples, prompts, strict=True)]
    if len(set(weights)) > 1:
        rows = [[*row, weight] for row, weight in zip(rows, weights, strict=True)]
    rows += [list(preserved)] if preserved else []
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# ---- encoding

STORAGE_NAMES = {"memory": "in main memory", "disk": "on the disk, read again for every batch"}


@dataclass(frozen=True)
class Encoded:
    """The encoded training set."""

    buckets: list[Sequence[EncodedImage]]
    weights: list[list[float]]  # of each entry of each bucket: how often it is used, relative to others
    train_subset: Sequence[EncodedImage]  # as many as are held out, for validation
    held_out: Sequence[EncodedImage]
    empty: TextStates
    kept: Sequence[TextStates] = ()  # (L, D) each: of the prompts whose meaning is preserved


def encode_training_set(model: BaseModel, dataset: TrainingSet, config: Config, accelerator: Accelerator) -> Encoded:
    """Encode what is not cached yet, and keep it in memory or on disk. The first process encodes, the others read."""
    with accelerator.main_process_first():
        states, texts = encode_captions(model, dataset, accelerator.device)
        moments, images = encode_images(model, dataset, config, accelerator.device)
    model.forget("vae", "text_encoder")
    prompts, most = dataset.prompts, config.validation.pictures
    paths = {name: EntryPaths(name, moments[name], tuple(states[text] for text in prompts[name])) for name in prompts}
    size = latent_cache.total_bytes(paths.values())
    home = latent_cache.choose_storage(config.pictures.keep, size)
    for path in (*texts.damaged, *images.damaged):
        accelerator.print(f"damaged, encoded again: {path}")
    kept = f"{size / latent_cache.GIB:.2f} GiB, kept {STORAGE_NAMES[home]}"
    accelerator.print(f"encoded    {len(paths)} images, {kept}")
    memory = MemoryEntries(torch.device("cpu"))

    def read(samples: Sequence[Sample]) -> Sequence[EncodedImage]:
        chosen = [paths[sample.annotation.file_name] for sample in samples]
        return DiskEntries(chosen) if home == "disk" else memory.entries(chosen)

    return Encoded(
        buckets=[read(samples) for samples in dataset.buckets.values()],
        weights=[[dataset.weights[each.annotation.file_name] for each in held] for held in dataset.buckets.values()],
        train_subset=read(validation_order(dataset.train, config.seed)[:most]),
        held_out=read(validation_order(dataset.held_out, config.seed)[:most]),
        empty=memory.value(states[""]),
        kept=[memory.value(states[prompt]) for prompt in dataset.preserved],
    )


def validation_order(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Shuffled by content: the first ones are those that are validated and previewed."""
    return sorted(samples, key=lambda sample: rng.seed_for(seed, "validation", sample.sha256))


def encode_captions(
    model: BaseModel, dataset: TrainingSet, device: torch.device
) -> tuple[dict[str, Path], CacheResult]:
    """The files of the text states of each prompt, the empty one included."""
    prompts = all_prompts(dataset)
    key, chunks = text_key(model, dataset.chunks), dataset.chunks
    filled = latent_cache.cache_text_states(prompts, lambda text: encode_text(model, text, device, chunks), key)
    return dict(zip(prompts, filled.places, strict=True)), filled


def all_prompts(dataset: TrainingSet) -> list[str]:
    """Every prompt once: the empty one, those to preserve, the captions."""
    captions = (text for texts in dataset.prompts.values() for text in texts)
    return list(dict.fromkeys(["", *dataset.preserved, *captions]))


def encode_images(
    model: BaseModel, dataset: TrainingSet, config: Config, device: torch.device
) -> tuple[dict[str, tuple[Path, ...]], CacheResult]:
    """The files of the latent moments of each image, in both orientations if it may be mirrored."""
    frames, vae = image_frames(dataset, config), model.fingerprints["vae"]
    filled = latent_cache.cache_latents([f for _, f in frames], lambda x: encode_image(model, x, device), vae)
    moments: dict[str, tuple[Path, ...]] = {}
    for (name, _), path in zip(frames, filled.places, strict=True):
        moments[name] = (*moments.get(name, ()), path)
    return moments, filled


def image_frames(dataset: TrainingSet, config: Config) -> list[tuple[str, ImageCrop]]:
    """The crop of each image by file name, in both orientations if it may be mirrored; held-out images are cropped to
    the nearest bucket that training uses.
    """
    flips, sizes = (False, True) if config.pictures.flip else (False,), list(dataset.buckets)
    crops = [(sample, bucket) for bucket, samples in dataset.buckets.items() for sample in samples]
    crops += [(sample, buckets.assign_bucket(sample.width, sample.height, sizes)) for sample in dataset.held_out]
    return [
        (sample.annotation.file_name, ImageCrop(sample.path, sample.sha256, bucket.width, bucket.height, flip))
        for sample, bucket in crops
        for flip in flips
    ]


@torch.no_grad()
def encode_image(model: BaseModel, pixels: Images, device: torch.device) -> Moments:
    """(1, 3, H, W) -> (1, 2C, h, w) mean and log-variance, in float32: in fp16 SD v1's autoencoder overflows."""
    signals.stop_with_launcher()
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
def encode_text(model: BaseModel, text: str, device: torch.device, chunks: int = 1) -> TextStates:
    """(chunks L, D): the last hidden states that Stable Diffusion v1 is conditioned on, in float32.

    Of several chunks, those that a text does not fill are the empty prompt's, as generation pads them.
    """
    signals.stop_with_launcher()
    encoder: Any = model.text_encoder
    encoder.to(device, torch.float32)
    tokenizer: Any = model.tokenizer
    if chunks == 1:
        rows = [tokenizer(text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length).input_ids]
    else:
        parts = [*captions.caption_chunks(text, tokenizer), *[[]] * chunks][:chunks]
        rows = [captions.chunk_ids(part, tokenizer) for part in parts]
    with exact_float32():
        return torch.cat([encoder(torch.tensor([row], device=device))[0][0] for row in rows])


def text_key(model: BaseModel, chunks: int = 1) -> str:
    key = model.fingerprints["text_encoder"] + model.fingerprints["tokenizer"]
    return key if chunks == 1 else f"{key} {chunks} chunks"


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
