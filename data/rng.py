"""Random numbers as a function of a position (seed, step, slot ...), never of earlier numbers, workers or processes."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SEED_BITS = 63  # torch.Generator.manual_seed takes a signed 64-bit number
COUNTER_BITS = 24  # of each number of counter_bits(): as many as a float32 has
COUNTER_RANGE = 2.0**COUNTER_BITS
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # as the signed number with these bits


def seed_for(*position: int | str) -> int:
    """A seed in [0, 2**63) for a position, e.g. seed_for(run_seed, "noise", step, slot). Equal on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in position)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def uniform(*position: int | str) -> float:
    """A number in [0, 1) for a position."""
    return (seed_for(*position) >> (SEED_BITS - 53)) / 2.0**53


def integer(below: int, *position: int | str) -> int:
    """An integer in [0, below) for a position; the modulo bias is under 1e-9."""
    assert 0 < below < 2**32
    return seed_for(*position) % below


def permutation(count: int, *position: int | str) -> list[int]:
    """A permutation of range(count) for a position."""
    return sorted(range(count), key=lambda index: seed_for(*position, index))


def generator(*position: int | str) -> torch.Generator:
    """A CPU generator for a position: CPU noise is the same whatever device uses it."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_for(*position))


def normal(shape: tuple[int, ...], *position: int | str) -> torch.Tensor:
    """Standard normal noise, float32 on the CPU, for a position."""
    import torch

    return torch.randn(shape, generator=generator(*position), dtype=torch.float32)


def counter_bits(keys: torch.Tensor, salt: int, count: int) -> torch.Tensor:
    """(B,) int64 -> (B, count) int64 in [0, 2**24): numbers by key and salt, equal on every device.

    A counter-based generator, SplitMix64. Source: Steele, Lea & Flood 2014, OOPSLA, figure 16 (mix64variant13).
    """
    import torch

    start = splitmix64(splitmix64(keys) ^ salt)
    counter = torch.arange(1, count + 1, device=keys.device)
    return (splitmix64(start[:, None] + counter * GOLDEN_GAMMA) >> (64 - COUNTER_BITS)) & (2**COUNTER_BITS - 1)


def splitmix64(z: torch.Tensor) -> torch.Tensor:
    """Mix the bits of int64 numbers; products wrap, shifts fill with zeros."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * factor
    return z ^ ((z >> 31) & (2**33 - 1))


def counter_uniforms(keys: Tensor, salt: int, count: int) -> Tensor:
    """(B,) int64 -> (B, count) float32 in [0, 1): numbers by key and salt, equal on every device."""
    return counter_bits(keys, salt, count).float() / COUNTER_RANGE


def counter_normals(keys: Tensor, salt: int, shape: tuple[int, ...]) -> Tensor:
    """(B,) int64 -> (B, *shape) float32, standard normal and never beyond 5.9. Source: Box & Muller 1958."""
    import torch

    count = math.prod(shape)
    pairs = (count + 1) // 2
    numbers = counter_bits(keys, salt, 2 * pairs).float()
    # in (0, 1]: the logarithm of 0 would be infinite
    first, second = (numbers[:, :pairs] + 0.5) / COUNTER_RANGE, numbers[:, pairs:] / COUNTER_RANGE
    # sqrt(-2 log u_1) (cos, sin)(2 pi u_2)
    radius, angle = (-2.0 * first.log()).sqrt(), (2.0 * math.pi) * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].reshape(-1, *shape)
