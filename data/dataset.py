"""Encoded images and captions as a torch Dataset, and a sampler whose position is a pure function of the step.

The sample in a slot of the global batch, its caption, noise and timestep follow from (seed, optimiser step, slot):
a resumed run, another number of processes or more accumulation see the same samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from math import lcm
from typing import NamedTuple

import torch
from torch.utils.data import Dataset, Sampler

from data import captions, rng
from data.shapes import Latents, Moments, PerSample, Posterior, TextStates


@dataclass(frozen=True)
class TrainingNoise:
    """The noise of a training sample: standard normal by default.

    offset: of a constant a channel, so that the mean brightness is noised too (Guttenberg 2023, crosslabs.org; 0.05 to
    0.1). perturbation: gamma of extra noise in the network's input alone, which mimics its own errors during sampling
    (Ning et al. 2023, arXiv 2301.11706, algorithm 1; 0.1).
    """

    offset: float = 0.0
    perturbation: float = 0.0

    def sample(self, shape: tuple[int, ...], *position: int) -> tuple[Latents, Latents]:
        """(C, h, w) float32 twice: eps, the noise of the target, and the noise in the network's input."""
        eps = rng.normal(shape, "noise", *position)
        if self.offset:
            # eps <- eps + offset z, one z ~ N(0, 1) a channel
            eps = eps + self.offset * rng.normal((shape[0], 1, 1), "noise offset", *position)
        if not self.perturbation:
            return eps, eps
        # eps + gamma xi
        return eps, eps + self.perturbation * rng.normal(shape, "input perturbation", *position)


PLAIN_NOISE = TrainingNoise()
LOGVAR_RANGE = (-30.0, 20.0)  # as in diffusers' DiagonalGaussianDistribution


@dataclass(frozen=True)
class EncodedImage:
    """One encoded image, in both orientations if it may be mirrored, with the states of each of its captions."""

    sample_id: str
    moments: tuple[Posterior, ...]  # (2C, h, w) each: as it is, mirrored
    text_states: tuple[TextStates, ...]  # (L, D) each


@dataclass(frozen=True)
class Position:
    """The position of a sample in the run: its optimiser step and its slot in the global batch."""

    step: int
    slot: int
    bucket: int
    index: int  # of the entry in its bucket


class TrainingSample(NamedTuple):
    """One sample of a batch; the fields of Batch without the batch axis."""

    latents: Latents
    text_states: TextStates
    noise: Latents
    input_noise: Latents
    timestep_uniform: float
    sample_id: str
    preserved: bool


@dataclass(frozen=True)
class Batch:
    """What one micro-step trains on; all of it a function of (seed, optimiser step, slot in the global batch)."""

    latents: Latents
    text_states: TextStates
    noise: Latents  # eps, the noise of the target
    input_noise: Latents  # the noise in x_t: eps, or eps with an input perturbation
    timestep_uniforms: PerSample  # (B,) in [0, 1); the objective turns them into timesteps
    sample_ids: list[str]  # file names, for logs and errors
    preserved: list[bool]  # whether the text states are those of a preserved prompt, not of a caption


@dataclass(eq=False)
class EncodedDataset(Dataset[TrainingSample]):
    """Entries grouped by bucket (all latents of a bucket have one shape), multiplied by scaling_factor.

    empty: states of "", which replaces a caption with probability `dropout`. kept: states of prompts, one of which
    replaces a caption with probability `share` (train/losses.py).
    """

    buckets: Sequence[Sequence[EncodedImage]]
    empty: TextStates
    seed: int
    scaling_factor: float
    dropout: float
    noise: TrainingNoise = PLAIN_NOISE
    kept: Sequence[TextStates] = ()
    share: float = 0.0

    def __post_init__(self) -> None:
        assert self.buckets and all(self.buckets), "no empty buckets"

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    def __getitem__(self, position: Position) -> TrainingSample:
        entry = self.buckets[position.bucket][position.index]
        here = (self.seed, position.step, position.slot)
        moments = entry.moments[rng.integer(len(entry.moments), "flip", *here)]
        latents = sample_latents(moments, "latent", *here) * self.scaling_factor
        both = self.noise.sample(tuple(latents.shape), *here)
        noise, input_noise = (copy_to(values, latents.device) for values in both)
        preserved = bool(self.kept) and rng.uniform("preserved", *here) < self.share
        states, uniform = self.states(entry, preserved, *here), rng.uniform("timestep", *here)
        return TrainingSample(latents, states, noise, input_noise, uniform, entry.sample_id, preserved)

    def states(self, entry: EncodedImage, preserved: bool, *here: int) -> TextStates:
        """(L, D): a preserved prompt's, one of the captions', or the empty prompt's."""
        if preserved:
            return self.kept[rng.integer(len(self.kept), "preserved prompt", *here)]
        if not entry.text_states or captions.is_dropped(self.dropout, *here):
            return self.empty
        return entry.text_states[rng.integer(len(entry.text_states), "caption", *here)]


def moments_to_posterior(moments: Moments) -> Posterior:
    """(2C, h, w) mean and standard deviation of an autoencoder's mean and log-variance.

    Computed once, on the CPU: an exponential is not rounded alike on every device.
    """
    mean, log_variance = moments.chunk(2)
    return torch.cat([mean, (0.5 * log_variance.clamp(*LOGVAR_RANGE)).exp()])


def sample_latents(moments: Posterior, *position: int | str) -> Latents:
    """(C, h, w): a sample of the autoencoder's posterior, with noise by position."""
    mean, deviation = moments.chunk(2)
    return mean + deviation * copy_to(rng.normal(tuple(mean.shape), *position), mean.device)


def mean_latents(moments: Posterior, scaling_factor: float) -> Latents:
    """(C, h, w): the posterior's mean, scaled: validation uses it, so that it has no sampling noise."""
    return moments.chunk(2)[0] * scaling_factor


def copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy through pinned memory: a copy from other memory would wait for the GPU's queue."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    tensors = {name: value for name, value in vars(batch).items() if torch.is_tensor(value)}
    return replace(batch, **{name: copy_to(value, device) for name, value in tensors.items()})


def collate(items: Sequence[TrainingSample]) -> Batch:
    latents, states, noise, input_noise, uniforms, names, preserved = zip(*items, strict=True)
    tensors = (torch.stack(values) for values in (latents, states, noise, input_noise))
    return Batch(*tensors, torch.tensor(uniforms, dtype=torch.float64), list(names), list(preserved))


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch is divided: micro-batches one after another, each split over the processes."""

    batch_size: int  # samples in one process' micro-batch
    accumulate: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.processes

    def slots(self, micro: int) -> range:
        """The slots of the global batch that this process computes in micro-step `micro`."""
        start = (micro * self.processes + self.rank) * self.batch_size
        return range(start, start + self.batch_size)


@dataclass(frozen=True)
class Stream:
    """The images of a bucket that have one weight: an endless series of permutations of them all."""

    number: int  # among all streams; seeds the permutations
    members: Sequence[int]  # positions in the bucket
    share: int  # weight times images, over a common denominator


@dataclass(eq=False)
class StepSampler(Sampler[list[Position]]):
    """Micro-batches of positions for the steps [start, stop), each step's global batch from one bucket.

    Each bucket is an endless stream, a new permutation of its images in each round, so every batch is full. Buckets
    take turns in proportion to their sizes: after any number of steps every image was seen equally often to within
    one batch. weights: one an image, for each bucket; an image of weight 2 is seen twice as often as one of weight 1.
    """

    sizes: Sequence[int]
    layout: BatchLayout
    seed: int
    start: int
    stop: int
    weights: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        weights = [[1.0] * size for size in self.sizes] if self.weights is None else self.weights
        assert all(self.sizes) and list(map(len, weights)) == list(self.sizes)
        self.streams = make_streams(weights)
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.layout.accumulate

    def __iter__(self) -> Iterator[list[Position]]:
        turns = bucket_turns([sum(stream.share for stream in bucket) for bucket in self.streams])
        for step in range(self.stop):
            bucket, turn = next(turns)
            if step < self.start:
                continue
            for micro in range(self.layout.accumulate):
                slots = self.layout.slots(micro)
                yield [Position(step, slot, bucket, self.index(bucket, turn, slot)) for slot in slots]

    def index(self, bucket: int, turn: int, slot: int) -> int:
        """The image in `slot` of a bucket's turn-th global batch."""
        stream, filled = stream_turn(self.streams[bucket], turn * self.layout.global_batch + slot)
        round_, place = divmod(filled, len(stream.members))
        known, order = self._orders.get(stream.number, (None, []))  # a stream's last permutation is cached
        if known != round_:
            order = rng.permutation(len(stream.members), self.seed, "order", stream.number, round_)
            self._orders[stream.number] = (round_, order)
        return stream.members[order[place]]


def make_streams(weights: Sequence[Sequence[float]]) -> list[list[Stream]]:
    """The streams of each bucket, one for each weight of its images, heaviest first."""
    exact = [[Fraction(str(weight)) for weight in bucket] for bucket in weights]
    assert all(weight > 0 for bucket in exact for weight in bucket)
    denominator = lcm(*(weight.denominator for bucket in exact for weight in bucket))
    streams: list[list[Stream]] = []
    number = 0
    for bucket in exact:
        streams.append([])
        for weight in sorted(set(bucket), reverse=True):
            members = [index for index, own in enumerate(bucket) if own == weight]
            streams[-1].append(Stream(number, members, int(weight * denominator) * len(members)))
            number += 1
    return streams


def stream_turn(streams: Sequence[Stream], place: int) -> tuple[Stream, int]:
    """Which stream fills the place-th place of a bucket, and how many places it has filled before.

    Of the first n places that the streams before it leave, a stream fills n * share / total, rounded.
    """
    total = sum(stream.share for stream in streams)
    for stream in streams[:-1]:
        before, after = ((2 * n * stream.share + total) // (2 * total) for n in (place, place + 1))
        if after > before:
            return stream, before
        place -= before
        total -= stream.share
    return streams[-1], place


def bucket_turns(shares: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(bucket, batches it has had before) for step 0, 1, 2 ...: always the bucket that is furthest behind its share."""
    total, taken = sum(shares), [0] * len(shares)
    for step in count(1):
        behind = [step * share - total * had for share, had in zip(shares, taken, strict=True)]
        bucket = behind.index(max(behind))
        yield bucket, taken[bucket]
        taken[bucket] += 1
