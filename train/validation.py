"""Does it learn or memorise: the denoising loss at fixed noise, on held-out pictures and on as many training pictures.

Noise and timesteps are functions of the picture alone, so two measurements differ only by the network: the difference
from the base is paired, and its interval is far narrower than that of either loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit  # Student's t quantile; all of scipy.stats takes 0.9 CPU seconds to load

from data import seeds
from data.dataset import Entry, mean_latents
from train import pieces
from train.ddpm import losses, process
from train.ddpm.schedule import Schedule
from train.denoiser import Denoiser
from train.objectives import Objective

HELD_OUT, TRAIN = "held-out", "train"


@dataclass(frozen=True)
class Losses:
    """Loss of each picture at each timestep. values: (pictures, timesteps) float64."""

    values: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def per_picture(self) -> np.ndarray:
        """(pictures,)"""
        return self.values.mean(axis=1)

    @property
    def per_timestep(self) -> list[float]:
        return [float(value) for value in self.values.mean(axis=0)]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def bounds(self) -> str:
        """The interval in words; a single picture has none."""
        known = np.isfinite(self.low) and np.isfinite(self.high)
        return f"95 % interval {self.low:+.4f} to {self.high:+.4f}" if known else "on one picture only"

    @property
    def finite(self) -> dict[str, float | None]:
        """As JSON has it, which has no infinity."""
        return {name: float(value) if np.isfinite(value) else None for name, value in vars(self).items()}

    @property
    def words(self) -> str:
        return f"{self.mean:+.4f}, {self.bounds}"


def paired_difference(now: Losses, base: Losses, confidence: float = 0.95) -> Interval:
    """now - base over the same pictures, with Student's t interval; pictures are the independent units."""
    differences = now.per_picture - base.per_picture
    mean = float(differences.mean())
    if len(differences) < 2:
        return Interval(mean, float("-inf"), float("inf"))
    half = stdtrit(len(differences) - 1, 0.5 + confidence / 2) * standard_error(differences)
    return Interval(mean, mean - float(half), mean + float(half))


def standard_error(values: np.ndarray) -> float:
    """Of the mean of (n,) values."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def welch_difference(one: np.ndarray, other: np.ndarray, confidence: float = 0.95) -> Interval:
    """mean(one) - mean(other) of two independent groups, (n,) and (m,), whose spreads may differ.

    Source: Welch 1947, Biometrika 34, 28-35: Student's t with the Welch-Satterthwaite degrees of freedom.
    """
    mean = float(one.mean() - other.mean())
    if min(len(one), len(other)) < 2:
        return Interval(mean, float("-inf"), float("inf"))
    parts = [float(group.var(ddof=1)) / len(group) for group in (one, other)]
    if sum(parts) == 0:
        return Interval(mean, mean, mean)
    freedom = sum(parts) ** 2 / sum(p**2 / (len(g) - 1) for p, g in zip(parts, (one, other), strict=True))
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * sum(parts) ** 0.5
    return Interval(mean, mean - half, mean + half)


def content_of(entry: Entry) -> str:
    """A hash of a picture as the network sees it: renaming it changes neither its noise nor what was asked."""
    return hashlib.sha256(entry.moments[0].detach().cpu().contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Validator:
    """Measures a network on fixed questions. sides: e.g. {"held-out": entries, "train": entries}."""

    sides: Mapping[str, Sequence[Entry]]
    objective: Objective
    schedule: Schedule
    scaling_factor: float
    timesteps: int

    @property
    def questions(self) -> str:
        """A hash of what is asked: losses of the same questions can be compared."""
        contents = {side: [content_of(entry) for entry in entries] for side, entries in self.sides.items()}
        return hashlib.sha256(json.dumps([contents, self.timesteps]).encode()).hexdigest()[:16]

    @torch.no_grad()
    def measure(self, denoiser: Denoiser, device: torch.device) -> dict[str, Losses]:
        """The loss of every side. Leaves the network's mode and every generator as they were."""
        was_training = denoiser.unet.training
        denoiser.unet.eval()
        try:
            return {
                side: Losses(np.stack([self.one(denoiser, device, entry) for entry in entries]))
                for side, entries in self.sides.items()
                if entries
            }
        finally:
            denoiser.unet.train(was_training)

    def one(self, denoiser: Denoiser, device: torch.device, entry: Entry) -> np.ndarray:
        """(timesteps,): one picture at evenly spread timesteps, as a batch: no picture depends on its neighbours."""
        count = self.timesteps
        latents = mean_latents(entry.moments[0], self.scaling_factor)
        noise = seeds.normal((count, *latents.shape), "validation", content_of(entry))
        x0 = latents.to(device).expand(count, *latents.shape)
        eps = noise.to(device)
        uniforms = (torch.arange(count, dtype=torch.float64, device=device) + 0.5) / count
        t = self.objective.timesteps(uniforms, self.schedule)
        states = entry.text_states[0].to(device).expand(count, *entry.text_states[0].shape)
        noisy = process.add_noise(self.schedule, x0, eps, t)
        target = self.objective.target(self.schedule, x0, eps, t)
        answer = pieces.asked(lambda rows: denoiser(noisy[rows], t[rows], states[rows]), count)
        # mean squares, whatever the training loss is: runs can be compared
        return losses.mse(answer, target).double().cpu().numpy()
