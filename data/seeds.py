"""The only place where a seed is derived from a position.

Everything random is a function of where it stands (seed, optimiser step, slot ...), never of what was drawn before it.
So a resumed run needs no generator state, and results do not depend on the number of workers or processes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SEED_BITS = 63  # torch.Generator.manual_seed takes a signed 64-bit number


def seed_for(*position: int | str) -> int:
    """A seed in [0, 2**63) for a position, e.g. seed_for(run_seed, "noise", step, slot). Equal on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in position)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def uniform(*position: int | str) -> float:
    """A number in [0, 1) for a position."""
    return (seed_for(*position) >> (SEED_BITS - 53)) / 2.0**53


def integer(below: int, *position: int | str) -> int:
    """A whole number in [0, below) for a position; `below` is far under 2**63, so the modulo bias is under 1e-9."""
    assert 0 < below < 2**32
    return seed_for(*position) % below


def permutation(count: int, *position: int | str) -> list[int]:
    """An order of range(count) for a position."""
    return sorted(range(count), key=lambda index: seed_for(*position, index))


def generator(*position: int | str) -> torch.Generator:
    """A CPU generator of its own for a position: CPU noise is the same whatever device uses it."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_for(*position))


def normal(shape: tuple[int, ...], *position: int | str) -> torch.Tensor:
    """Standard normal noise, float32 on the CPU, of the given shape for a position."""
    import torch

    return torch.randn(shape, generator=generator(*position), dtype=torch.float32)
