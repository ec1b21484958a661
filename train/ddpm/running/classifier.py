"""A small classifier: its accuracy tells what drawn pictures are worth to learn from, its features tell sets apart.

Features have the name of what they are, with a hash of the weights: a distance in them can be compared only with
distances in the same ones. They are this project's own, so no number here is an FID that others have published.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from data import seeds
from data.features import Features
from data.sets.pictures import Pictures, from_images, unit
from data.shapes import Images

WIDTH = 32  # features
SPATIAL = 7  # channels of the middle layer that the spatial features keep, at 4 x 4 places
EPOCHS, BATCH, RATE = 12, 64, 2e-3


class SmallNet(nn.Module):
    """Three convolutions, the mean over places, one layer: (B, C, S, S) -> (B, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 16, 3, padding=1), nn.Conv2d(16, WIDTH, 3, padding=1)
        self.third = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.out = nn.Linear(4 * WIDTH, classes)

    def middle(self, x: Images) -> Tensor:
        """(B, WIDTH, S / 2, S / 2)."""
        x = functional.relu(self.first(x))
        return functional.relu(self.second(functional.max_pool2d(x, 2)))

    def features(self, x: Images) -> Tensor:
        """(B, 4 WIDTH): the means of the last layer over each quarter of the picture."""
        x = functional.relu(self.third(self.middle(x)))
        return functional.adaptive_avg_pool2d(x, 2).flatten(1)

    def forward(self, x: Images) -> Tensor:
        return self.out(self.features(x))


def train(x: Images, labels: Tensor, classes: int, *, seed: int) -> SmallNet:
    """A classifier of pictures x (n, C, S, S) in [-1, 1] with labels (n,): the same whenever it is trained again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed_for(seed, "classifier"))
        network = SmallNet(x.shape[1], classes)
    network.train()
    steps = EPOCHS * math.ceil(len(x) / BATCH)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for epoch in range(EPOCHS):
        order = torch.tensor(seeds.permutation(len(x), seed, "classifier", epoch))
        for rows in order.split(BATCH):
            loss = functional.cross_entropy(network(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    return network.eval()


@dataclass(frozen=True)
class Accuracy:
    """right of count pictures, and the interval that the share lies in."""

    right: int
    count: int

    @property
    def share(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 %. Source: Wilson 1927, JASA 22, 209-212."""
        z, n, p = 1.959964, self.count, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return centre - half, centre + half

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.count}"


@torch.no_grad()
def accuracy(network: SmallNet, x: Images, labels: Tensor) -> Accuracy:
    return Accuracy(int((network(x).argmax(1) == labels).sum()), len(x))


def trained_on(pictures: Pictures, *, seed: int) -> SmallNet:
    assert pictures.labels is not None
    return train(unit(pictures.pixels), pictures.labels, len(pictures.classes), seed=seed)


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """An extractor of data/features.py: what the classifier sees before it decides, 128 numbers a picture.

    scale: they are multiplied by it, so that those of the pictures it learnt from have a mean square of 1: the kernel
    distance is not free of scale. spatial: what it sees half way, 7 channels at 4 x 4 places, as sFID takes them of
    Inception (Nash et al. 2021, arXiv 2103.03841).
    """

    network: SmallNet
    channels: int
    scale: float = 1.0
    spatial: bool = False

    @property
    def name(self) -> str:
        return "classifier-spatial" if self.spatial else "classifier"

    @property
    def version(self) -> str:
        digest = hashlib.sha256()
        for weight in self.network.state_dict().values():
            digest.update(weight.numpy().tobytes())
        digest.update(repr(self.scale).encode())
        return f"1-{digest.hexdigest()[:12]}"

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image.Image]) -> Features:
        mode = "L" if self.channels == 1 else "RGB"
        x = unit(from_images([picture.convert(mode) for picture in pictures]))
        found = self.spatially(x) if self.spatial else self.network.features(x)
        return (self.scale * found).numpy().astype(np.float32)

    def scaled_to(self, pictures: Pictures) -> ClassifierFeatures:
        """The same features with a mean square of 1 over these pictures."""
        found = self.encode(pictures.images())
        return replace(self, scale=self.scale / float(np.sqrt((found.astype(np.float64) ** 2).mean())))

    def spatially(self, x: Images) -> Tensor:
        return functional.adaptive_avg_pool2d(self.network.middle(x)[:, :SPATIAL], 4).flatten(1)
