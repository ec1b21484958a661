"""Noise offset, input perturbation and caption dropout: rates and moments, each a function of the position."""

from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

from data import rng
from data.dataset import PLAIN_NOISE, EncodedDataset, EncodedImage, Position, TrainingNoise, collate
from train.ddpm import diffusion
from train.ddpm import schedule as schedules

SHAPE = (4, 5, 6)
COUNT = 3000
POSITIONS = [(7, 3, 1), (8, 3, 1), (7, 4, 1), (7, 3, 2), (7, 1, 3)]  # run seed, step, slot


def draws(noise: TrainingNoise) -> tuple[Tensor, Tensor]:
    """(COUNT, 4, 5, 6) twice: eps and the input's noise in the slots of ten steps."""
    pairs = [noise.sample(SHAPE, 7, slot % 10, slot // 10) for slot in range(COUNT)]
    return torch.stack([eps for eps, _ in pairs]), torch.stack([seen for _, seen in pairs])


def near(found: Tensor, expected: float, deviation: float) -> bool:
    """Within five standard errors."""
    return abs(float(found) - expected) < 5 * deviation


def test_without_them_noise_is_what_it_was() -> None:
    """Bit for bit the stream that runs had before there was a choice."""
    for step in range(5):
        eps, seen = PLAIN_NOISE.sample(SHAPE, 3, step, 1)
        assert seen is eps
        assert torch.equal(eps, rng.normal(SHAPE, "noise", 3, step, 1))


def test_the_offset_is_one_number_a_channel_of_its_variance() -> None:
    eps, seen = draws(TrainingNoise(offset=0.5))
    assert torch.equal(eps, seen), "the network sees what it is asked for"
    plain, _ = draws(PLAIN_NOISE)
    added = eps - plain
    spread = (added - added.mean(dim=(2, 3), keepdim=True)).abs().max()
    assert spread < 2e-6, "constant within a channel"
    per_channel = added.mean(dim=(2, 3)).flatten()
    n = len(per_channel)
    assert near(per_channel.mean(), 0.0, 0.5 / n**0.5)
    assert near(per_channel.var(), 0.25, 0.25 * (2 / n) ** 0.5)
    channels = added.mean(dim=(2, 3))
    correlation = torch.corrcoef(channels.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / COUNT**0.5, "channels are offset independently"
    # a pixel: 1 + offset^2; a channel's mean over 30 pixels: 1 / 30 + offset^2
    assert near(eps.mean(dim=(2, 3)).var(), 1 / 30 + 0.25, (1 / 30 + 0.25) * (2 / n) ** 0.5)
    assert near(eps[:, :, 0, 0].var(), 1.25, 1.25 * (2 / n) ** 0.5)


def test_the_perturbation_is_seen_and_not_asked_for() -> None:
    eps, seen = draws(TrainingNoise(perturbation=0.3))
    plain, _ = draws(PLAIN_NOISE)
    assert torch.equal(eps, plain), "the target stays what it was"
    n = eps.numel()
    xi = (seen - eps) / 0.3
    assert near(xi.mean(), 0.0, n**-0.5) and near(xi.var(), 1.0, (2 / n) ** 0.5)
    assert near((xi * eps).mean(), 0.0, n**-0.5), "independent of eps"
    assert near(seen.var(), 1.09, 1.09 * (2 / n) ** 0.5)


def test_the_perturbed_inputs_marginal() -> None:
    """q(x_t | x_0) = N(sqrt(abar) x_0, (1 - abar) (1 + gamma^2)), as Ning et al. 2023 make it."""
    schedule, t = schedules.scaled_linear(1000, 0.00085, 0.012), torch.full((COUNT,), 600)
    _, seen = draws(TrainingNoise(perturbation=0.3))
    noisy = diffusion.add_noise(schedule, torch.full_like(seen, 2.0), seen, t)
    abar, n = schedule.alphas_cumprod[600].item(), seen.numel()
    variance = (1 - abar) * 1.09
    assert near(noisy.mean(), 2 * abar**0.5, (variance / n) ** 0.5)
    assert near(noisy.var(), variance, variance * (2 / n) ** 0.5)


def test_both_at_once() -> None:
    """The target has the offset; the input has that, and the same perturbation as without it."""
    both, (offset, _), perturbed = (
        draws(TrainingNoise(0.1, 0.2)),
        draws(TrainingNoise(offset=0.1)),
        draws(TrainingNoise(perturbation=0.2)),
    )
    assert torch.equal(both[0], offset)
    torch.testing.assert_close(both[1] - both[0], perturbed[1] - perturbed[0], rtol=0, atol=1e-6)


def test_they_follow_from_the_position_alone() -> None:
    noise = TrainingNoise(0.1, 0.1)
    state = torch.get_rng_state()
    first, again = noise.sample(SHAPE, 7, 3, 1), noise.sample(SHAPE, 7, 3, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    others = [noise.sample(SHAPE, *here) for here in POSITIONS]
    offsets = [eps - rng.normal(SHAPE, "noise", *h) for (eps, _), h in zip(others, POSITIONS, strict=True)]
    assert all(not torch.allclose(a, b) for a, b in pairwise(offsets))


def pictures(dropout: float, noise: TrainingNoise = PLAIN_NOISE) -> EncodedDataset:
    generator = torch.Generator().manual_seed(0)
    entries = [
        EncodedImage(f"{i}.png", (torch.randn(8, 5, 6, generator=generator),), (torch.full((5, 6), float(i)),))
        for i in range(4)
    ]
    return EncodedDataset([entries], EMPTY, seed=1, scaling_factor=0.5, dropout=dropout, noise=noise)


EMPTY = rng.normal((5, 6), "the encoder's states of nothing")


def test_a_batch_carries_both() -> None:
    positions = [Position(2, slot, 0, slot) for slot in range(3)]
    plain, noised = (
        collate([pictures(0.1, noise)[p] for p in positions]) for noise in (PLAIN_NOISE, TrainingNoise(0.1, 0.2))
    )
    assert torch.equal(plain.noise, plain.input_noise)
    assert torch.equal(noised.latents, plain.latents) and torch.equal(noised.text_states, plain.text_states)
    assert torch.equal(noised.timestep_uniforms, plain.timestep_uniforms)
    for slot in range(3):
        eps, seen = TrainingNoise(0.1, 0.2).sample(SHAPE, 1, 2, slot)
        assert torch.equal(noised.noise[slot], eps) and torch.equal(noised.input_noise[slot], seen)


@pytest.mark.parametrize("rate", [0.0, 0.04, 0.1, 0.5, 1.0])
def test_captions_are_dropped_at_their_rate_to_the_encoders_own_nothing(rate: float) -> None:
    """Within the interval that a binomial count leaves once in ten thousand times; a dropped one is "" bit for bit."""
    found, total = pictures(rate), 2000
    items = [found[Position(step, slot, 0, slot % 4)] for step in range(200) for slot in range(10)]
    dropped = [item for item in items if torch.equal(item.text_states, EMPTY)]
    low, high = stats.binom.interval(0.9999, total, rate) if 0 < rate < 1 else (rate * total, rate * total)
    assert low <= len(dropped) <= high
    kept = [item for item in items if not torch.equal(item.text_states, EMPTY)]
    assert all(torch.equal(item.text_states, torch.full((5, 6), float(item.sample_id[0]))) for item in kept)


def test_dropping_is_no_matter_of_the_picture_or_of_the_noise() -> None:
    """Each picture is dropped as often as the others, and whether it is says nothing about its timestep."""
    found = pictures(0.5)
    items = [found[Position(step, slot, 0, slot)] for step in range(1000) for slot in range(4)]
    is_dropped = torch.tensor([torch.equal(item.text_states, EMPTY) for item in items]).double()
    each = is_dropped.reshape(1000, 4).mean(dim=0)
    assert (each - 0.5).abs().max() < 5 * (0.25 / 1000) ** 0.5
    uniforms = torch.tensor([item.timestep_uniform for item in items], dtype=torch.float64)
    assert torch.corrcoef(torch.stack([is_dropped, uniforms]))[0, 1].abs() < 5 / 4000**0.5
