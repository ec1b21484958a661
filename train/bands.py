"""Training losses by timestep: fine detail and composition are learnt at different speeds, which one mean hides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

BANDS = 4


def sums_and_counts(losses: Tensor, t: Tensor, steps: int) -> Tensor:
    """(2, BANDS): the sum and the number of the losses (B,) in each of BANDS equal bands of timesteps t (B,)."""
    found = torch.zeros(2, BANDS, device=losses.device)
    return found.index_add_(1, t * BANDS // steps, torch.stack([losses.float(), torch.ones_like(losses).float()]))


def means(sums: Sequence[float], counts: Sequence[float], steps: int) -> dict[str, float | None]:
    """{"0-249": mean loss ...}; None for a band in which no sample fell."""
    edges = [-(-steps * band // BANDS) for band in range(BANDS + 1)]  # rounded up
    names = [f"{low}-{high - 1}" for low, high in pairwise(edges)]
    return {name: a / n if n else None for name, a, n in zip(names, sums, counts, strict=True)}
