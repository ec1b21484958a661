"""What a slot of a global batch holds is a function of (seed, step, slot), and of nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from data.dataset import (
    BatchLayout,
    EncodedDataset,
    EncodedImage,
    Position,
    StepSampler,
    TrainingSample,
    collate,
    moments_to_posterior,
    sample_latents,
)


def positions(sizes: Sequence[int], layout: BatchLayout, start: int = 0, stop: int = 10) -> list[Position]:
    return [p for batch in StepSampler(sizes, layout, seed=3, start=start, stop=stop) for p in batch]


def by_slot(found: list[Position]) -> dict[tuple[int, int], Position]:
    slots = {(p.step, p.slot): p for p in found}
    assert len(slots) == len(found), "a slot was filled twice"
    return slots


def test_accumulation_and_processes_see_the_same_samples() -> None:
    whole = by_slot(positions([7, 5], BatchLayout(batch_size=8)))
    assert by_slot(positions([7, 5], BatchLayout(batch_size=2, accumulate=4))) == whole
    ranks = [positions([7, 5], BatchLayout(batch_size=2, accumulate=2, processes=2, rank=rank)) for rank in range(2)]
    assert by_slot(ranks[0] + ranks[1]) == whole


def test_resume_goes_on_where_it_was() -> None:
    layout = BatchLayout(batch_size=3, accumulate=2)
    whole = positions([10, 4], layout, stop=12)
    for start in (1, 5, 11):
        assert positions([10, 4], layout, start=start, stop=12) == [p for p in whole if p.step >= start]


def test_every_image_once_before_any_twice() -> None:
    seen = [p.index for p in positions([10], BatchLayout(batch_size=5), stop=6)]
    for round_ in range(3):
        assert sorted(seen[round_ * 10 : (round_ + 1) * 10]) == list(range(10))
    assert seen[:10] != seen[10:20], "each round has an order of its own"


def test_buckets_take_turns_in_proportion() -> None:
    sizes = [60, 30, 6]
    found = positions(sizes, BatchLayout(batch_size=2), stop=480)  # ten times through 96 images
    assert all(len({p.bucket for p in found if p.step == step}) == 1 for step in range(480))
    uses = Counter((p.bucket, p.index) for p in found)
    assert len(uses) == 96
    assert max(uses.values()) - min(uses.values()) <= 1


def weighted(weights: Sequence[Sequence[float]], layout: BatchLayout, start: int = 0, stop: int = 10) -> list[Position]:
    sizes = [len(bucket) for bucket in weights]
    sampler = StepSampler(sizes, layout, seed=3, start=start, stop=stop, weights=weights)
    return [p for batch in sampler for p in batch]


@pytest.mark.parametrize(
    "weights",
    [
        [[1.0] * 8 + [3.0] * 4],
        [[2.5] * 6 + [1.0] * 10, [1.0] * 5],
        [[0.1] * 7 + [0.3] * 9 + [1.0] * 3 + [7.0], [0.3] * 6, [7.0] * 2],
        [[1.0] * 30 + [0.01] * 3],
    ],
)
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_every_image_comes_as_often_as_its_weight_says(weights: list[list[float]], batch: int) -> None:
    """At every moment, and to within one batch: no bucket and no weight runs ahead or is forgotten."""
    uses: Counter[tuple[int, int]] = Counter()
    total = sum(map(sum, weights))
    for step in range(400):
        uses.update((p.bucket, p.index) for p in weighted_step(weights, batch, step))
        if step % 57 and step != 399:
            continue
        for bucket, own in enumerate(weights):
            for weight in set(own):
                members = [(bucket, index) for index, other in enumerate(own) if other == weight]
                drawn = sum(uses[member] for member in members)
                expected = (step + 1) * batch * weight * len(members) / total
                assert abs(drawn - expected) <= batch + 1, f"weight {weight} of bucket {bucket} after {step + 1} steps"
                counts = [uses[member] for member in members]
                assert max(counts) - min(counts) <= 1, "each once before any twice"


def weighted_step(weights: list[list[float]], batch: int, step: int) -> list[Position]:
    return weighted(weights, BatchLayout(batch), start=step, stop=step + 1)


def test_weights_are_a_function_of_the_step() -> None:
    """Resumed, accumulated or shared among processes: the same images in the same slots."""
    weights = [[2.0] * 5 + [0.7] * 6, [1.0] * 4]
    whole = weighted(weights, BatchLayout(batch_size=8), stop=20)
    assert weighted(weights, BatchLayout(batch_size=8), start=13, stop=20) == [p for p in whole if p.step >= 13]
    parts = weighted(weights, BatchLayout(batch_size=2, accumulate=4), stop=20)
    assert by_slot(parts) == by_slot(whole)
    ranks = [weighted(weights, BatchLayout(2, 2, processes=2, rank=rank), stop=20) for rank in range(2)]
    assert by_slot(ranks[0] + ranks[1]) == by_slot(whole)


def test_equal_weights_are_no_weights() -> None:
    plain = positions([7, 5], BatchLayout(batch_size=4), stop=20)
    for weight in (1.0, 2.0, 0.3):
        assert weighted([[weight] * 7, [weight] * 5], BatchLayout(batch_size=4), stop=20) == plain


@pytest.fixture
def images() -> EncodedDataset:
    generator = torch.Generator().manual_seed(0)
    entries = []
    for i in range(4):
        moments = tuple(torch.randn(8, 4, 4, generator=generator) for _ in range(2))
        entries.append(
            EncodedImage(f"{i}.png", moments, tuple(torch.full((5, 6), float(10 * i + c)) for c in range(3)))
        )
    return EncodedDataset([entries], torch.full((5, 6), -1.0), seed=1, scaling_factor=0.5, dropout=0.25)


def test_an_item_is_a_function_of_its_position(images: EncodedDataset) -> None:
    one, again = (images[Position(2, 3, 0, 1)] for _ in range(2))
    other = images[Position(2, 4, 0, 1)]
    assert torch.equal(one.noise, again.noise) and torch.equal(one.latents, again.latents)
    assert one.timestep_uniform == again.timestep_uniform != other.timestep_uniform
    assert not torch.equal(one.noise, other.noise)


def test_captions_orientation_and_dropout_have_their_rates(images: EncodedDataset) -> None:
    items = [images[Position(step, slot, 0, 1)] for step in range(100) for slot in range(20)]
    captions = Counter(float(item.text_states[0, 0]) for item in items)
    assert abs(captions[-1.0] / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    for caption in (10.0, 11.0, 12.0):
        assert abs(captions[caption] / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    mirrored = images.buckets[0][1].moments[1][:4]
    flips = sum(float((item.latents / 0.5 - mirrored).norm()) < 1e-9 for item in still(images))
    assert abs(flips / 2000 - 0.5) < 4 * (0.25 / 2000) ** 0.5
    uniforms = torch.tensor([item.timestep_uniform for item in items])
    assert abs(float(uniforms.mean()) - 0.5) < 4 * (1 / 12 / 2000) ** 0.5


def still(images: EncodedDataset) -> list[TrainingSample]:
    """As many items of the same image from posteriors without spread: the latents tell the orientation."""
    entry = images.buckets[0][1]
    sharp = replace(entry, moments=tuple(torch.cat([m[:4], torch.zeros(4, 4, 4)]) for m in entry.moments))
    plain = EncodedDataset([[sharp]], images.empty, seed=1, scaling_factor=0.5, dropout=0.25)
    return [plain[Position(step, slot, 0, 0)] for step in range(100) for slot in range(20)]


def test_latents_have_the_posteriors_mean_and_variance() -> None:
    moments = moments_to_posterior(torch.cat([torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 0.81).log()]))
    draws = torch.stack([sample_latents(moments, "latent", step) for step in range(4000)])
    assert abs(float(draws.mean()) - 3.0) < 4 * 0.9 / 16000**0.5
    assert abs(float(draws.var()) - 0.81) < 4 * 0.81 * (2 / 16000) ** 0.5


def test_collate_stacks(images: EncodedDataset) -> None:
    batch = collate([images[Position(0, slot, 0, slot)] for slot in range(3)])
    assert batch.latents.shape == batch.noise.shape == (3, 4, 4, 4)
    assert batch.text_states.shape == (3, 5, 6)
    assert batch.timestep_uniforms.shape == (3,)
    assert batch.sample_ids == ["0.png", "1.png", "2.png"]
