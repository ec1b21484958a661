"""Encoded pictures and captions as a torch Dataset, and a sampler whose position is a pure function of the step.

What the sample in a slot of the global batch is, which caption, noise and timestep it gets: all of it follows from
(seed, optimiser step, slot). A resumed run, another number of processes or more accumulation see the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset, Sampler

from data import captions, seeds
from data.noise import PLAIN, Noise
from data.schema import Batch
from data.shapes import Latents, Moments, TextStates

CLAMP = (-30.0, 20.0)  # of the log-variance, as diffusers' DiagonalGaussianDistribution has it


@dataclass(frozen=True)
class Entry:
    """One picture, encoded, in both orientations if it may be mirrored, with the states of each of its captions."""

    sample_id: str
    moments: tuple[Moments, ...]  # (2C, h, w) each: as it is, mirrored
    text_states: tuple[TextStates, ...]  # (L, D) each


@dataclass(frozen=True)
class Position:
    """Where a sample stands in the run: its optimiser step and its slot in the global batch."""

    step: int
    slot: int
    bucket: int
    index: int  # of the entry in its bucket


@dataclass(frozen=True)
class Item:
    """One sample of a batch; the fields of data.schema.Batch without the batch axis."""

    latents: Latents
    text_states: TextStates
    noise: Latents
    input_noise: Latents
    timestep_uniform: float
    sample_id: str


class EncodedPictures(Dataset[Item]):
    """Entries grouped by bucket (all latents of a bucket have one shape).

    empty: the text encoder's own states of "", which takes a caption's place with probability `dropout`.
    scaling_factor: latents are multiplied by it, as the U-Net expects them.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[Entry]],
        empty: TextStates,
        *,
        seed: int,
        scaling_factor: float,
        dropout: float,
        noise: Noise = PLAIN,
    ) -> None:
        assert buckets and all(buckets), "no empty buckets"
        self.buckets, self.empty = buckets, empty
        self.seed, self.scaling_factor, self.dropout = seed, scaling_factor, dropout
        self.noise = noise

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    def __getitem__(self, position: Position) -> Item:
        entry = self.buckets[position.bucket][position.index]
        here = (self.seed, position.step, position.slot)
        moments = entry.moments[seeds.integer(len(entry.moments), "flip", *here)]
        latents = sample_latents(moments, "latent", *here) * self.scaling_factor
        noise, input_noise = (drawn.to(latents.device) for drawn in self.noise.draw(tuple(latents.shape), *here))
        return Item(
            latents=latents,
            text_states=self.states(entry, *here),
            noise=noise,
            input_noise=input_noise,
            timestep_uniform=seeds.uniform("timestep", *here),
            sample_id=entry.sample_id,
        )

    def states(self, entry: Entry, *here: int) -> TextStates:
        """(L, D): one of the captions, or the empty prompt's states."""
        if not entry.text_states or captions.dropped(self.dropout, *here):
            return self.empty
        return entry.text_states[seeds.integer(len(entry.text_states), "caption", *here)]


def sample_latents(moments: Moments, *position: int | str) -> Latents:
    """(C, h, w): a draw from the autoencoder's posterior, whose noise is a function of the position."""
    mean, log_variance = moments.chunk(2)
    deviation = (0.5 * log_variance.clamp(*CLAMP)).exp()
    return mean + deviation * seeds.normal(tuple(mean.shape), *position).to(mean.device)


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into a Batch on the device where they lie."""
    device = items[0].latents.device
    return Batch(
        latents=torch.stack([item.latents for item in items]),
        text_states=torch.stack([item.text_states for item in items]),
        noise=torch.stack([item.noise for item in items]),
        input_noise=torch.stack([item.input_noise for item in items]),
        timestep_uniforms=torch.tensor([item.timestep_uniform for item in items], dtype=torch.float64, device=device),
        sample_ids=[item.sample_id for item in items],
    )


@dataclass(frozen=True)
class Layout:
    """How a global batch is cut up: micro-batches one after another, each shared out over the processes."""

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


class StepSampler(Sampler[list[Position]]):
    """Micro-batches of positions for the steps [start, stop), each step's global batch from one bucket.

    Each bucket is an endless stream: a new order of all its pictures each time round, so that every batch is full. The
    buckets take turns in proportion to their sizes, so after any number of steps every picture was seen equally often
    to within one batch.
    """

    def __init__(self, sizes: Sequence[int], layout: Layout, *, seed: int, start: int, stop: int) -> None:
        assert all(size > 0 for size in sizes)
        self.sizes, self.layout, self.seed = list(sizes), layout, seed
        self.start, self.stop = start, stop
        self._order_key: tuple[int, int] | None = None
        self._order: list[int] = []

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.layout.accumulate

    def __iter__(self) -> Iterator[list[Position]]:
        turns = turns_of_buckets(self.sizes)
        for step in range(self.stop):
            bucket, turn = next(turns)
            if step < self.start:
                continue
            for micro in range(self.layout.accumulate):
                slots = self.layout.slots(micro)
                yield [Position(step, slot, bucket, self.index(bucket, turn, slot)) for slot in slots]

    def index(self, bucket: int, turn: int, slot: int) -> int:
        """The picture in `slot` of a bucket's turn-th global batch."""
        round_, place = divmod(turn * self.layout.global_batch + slot, self.sizes[bucket])
        return self.order(bucket, round_)[place]

    def order(self, bucket: int, round_: int) -> list[int]:
        """The order of a bucket's pictures the round_-th time through; the last one is remembered."""
        key = (bucket, round_)
        if self._order_key != key:
            self._order_key = key
            self._order = seeds.permutation(self.sizes[bucket], self.seed, "order", bucket, round_)
        return self._order


def turns_of_buckets(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(bucket, batches it has had before) for step 0, 1, 2 ...: always the bucket that is furthest behind its share."""
    total = sum(sizes)
    taken = [0] * len(sizes)
    step = 0
    while True:
        step += 1
        behind = [step * size - total * count for size, count in zip(sizes, taken, strict=True)]
        bucket = max(range(len(sizes)), key=lambda candidate: behind[candidate])
        yield bucket, taken[bucket]
        taken[bucket] += 1


def mean_latents(moments: Moments, scaling_factor: float) -> Latents:
    """(C, h, w): the posterior's mean, scaled: what validation looks at, so that it holds no sampling noise."""
    return moments.chunk(2)[0] * scaling_factor
