"""The noise of a training sample: a function of its position in the run, like everything random."""

from __future__ import annotations

from dataclasses import dataclass

from data import seeds
from data.shapes import Latents


@dataclass(frozen=True)
class Noise:
    """How the noise of a sample is drawn; plain standard normal noise unless it is told more.

    offset: size of a constant added to each channel's noise, so that the mean brightness is noised as well.
    Source: Guttenberg 2023, "Diffusion with Offset Noise", crosslabs.org; usually 0.05 to 0.1.

    perturbation: gamma of the noise that only the network's input gets, as its own errors will give it when it draws.
    Source: Ning et al. 2023, arXiv 2301.11706, algorithm 1 (DDPM-IP), gamma 0.1.
    """

    offset: float = 0.0
    perturbation: float = 0.0

    def draw(self, shape: tuple[int, ...], *position: int) -> tuple[Latents, Latents]:
        """(C, h, w) float32 twice: eps, which the target is made of, and the noise in the network's input."""
        eps = seeds.normal(shape, "noise", *position)
        if self.offset:
            # eps <- eps + offset z, one z ~ N(0, 1) a channel
            eps = eps + self.offset * seeds.normal((shape[0], 1, 1), "noise offset", *position)
        if not self.perturbation:
            return eps, eps
        # eps + gamma xi
        return eps, eps + self.perturbation * seeds.normal(shape, "input perturbation", *position)


PLAIN = Noise()
