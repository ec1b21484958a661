"""Timesteps drawn more often where the bound is large, each weighted by how rarely it comes: same mean, less spread.

Source: Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.3, eq. 18.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.shapes import PerSample, Timesteps

REMEMBERED = 10  # losses of each timestep
LEAST = 1e-3  # part of the draws that stay even, so that no timestep is forgotten


@dataclass(frozen=True, eq=False)
class History:
    """The last losses seen at each timestep. A value: `seen` makes the next one, and a checkpoint keeps both tensors.

    losses: (T, n) float64, newest last. counts: (T,) int64, how many of them are there, up to n.
    """

    losses: Tensor
    counts: Tensor

    @property
    def complete(self) -> bool:
        """Every timestep has been seen n times. Until then draws are even."""
        return bool((self.counts == self.losses.shape[1]).all())

    def probabilities(self) -> Tensor:
        """(T,) float64, p_t."""
        T = len(self.counts)
        if not self.complete:
            return torch.full((T,), 1.0 / T, dtype=torch.float64)
        # p_t ~ sqrt(E[L_t^2])                                                                                eq. 18
        root = self.losses.square().mean(dim=1).sqrt()
        return (1.0 - LEAST) * root / root.sum() + LEAST / T

    def draw(self, uniforms: PerSample) -> tuple[Timesteps, PerSample]:
        """(B,) numbers in [0, 1) -> (B,) timesteps, and (B,) float32 weights 1 / (T p_t) to multiply losses with."""
        p = self.probabilities()
        t = torch.searchsorted(p.cumsum(0), uniforms.double(), right=True).clamp(max=len(p) - 1)
        return t, (1.0 / (len(p) * p[t])).float()

    def seen(self, t: Timesteps, losses: PerSample) -> History:
        """With the unweighted (B,) losses at (B,) timesteps added, in the order of the batch."""
        kept, counts = self.losses.clone(), self.counts.clone()
        for step, loss in zip(t.tolist(), losses.detach().double().tolist(), strict=True):
            kept[step] = torch.cat([kept[step, 1:], kept.new_tensor([loss])])
            counts[step] = min(counts[step] + 1, kept.shape[1])
        return History(kept, counts)


def empty(steps: int, remembered: int = REMEMBERED) -> History:
    """Nothing seen yet."""
    return History(torch.zeros(steps, remembered, dtype=torch.float64), torch.zeros(steps, dtype=torch.int64))
