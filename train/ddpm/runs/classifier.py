"""A small classifier: its accuracy tells how useful generated images are, its features tell sets apart."""

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

from data import rng
from data.features import Features
from data.metrics.statistics import wilson_interval
from data.shapes import Images
from train.ddpm.image_sets import ImageSet, from_images, to_float


class SmallClassifier(nn.Module):
    """Three convolutions, the mean over quarters, one layer: (B, C, S, S) -> (B, classes)."""

    WIDTH = 32
    SPATIAL = 7  # channels of the middle layer that the spatial features use, at 4 x 4 places

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 16, 3, padding=1), nn.Conv2d(16, self.WIDTH, 3, padding=1)
        self.third = nn.Conv2d(self.WIDTH, self.WIDTH, 3, padding=1)
        self.out = nn.Linear(4 * self.WIDTH, classes)

    def middle(self, x: Images) -> Tensor:
        """(B, WIDTH, S / 2, S / 2)."""
        x = functional.relu(self.first(x))
        return functional.relu(self.second(functional.max_pool2d(x, 2)))

    def features(self, x: Images) -> Tensor:
        """(B, 4 WIDTH): the means of the last layer over each quarter of the image."""
        return functional.adaptive_avg_pool2d(functional.relu(self.third(self.middle(x))), 2).flatten(1)

    def spatial_features(self, x: Images) -> Tensor:
        """(B, 16 SPATIAL): the middle layer at 4 x 4 places, as sFID uses Inception's (arXiv 2103.03841)."""
        return functional.adaptive_avg_pool2d(self.middle(x)[:, : self.SPATIAL], 4).flatten(1)

    def forward(self, x: Images) -> Tensor:
        return self.out(self.features(x))


def train_classifier(
    x: Images, labels: Tensor, classes: int, *, seed: int, epochs: int = 12, batch: int = 64, rate: float = 2e-3
) -> SmallClassifier:
    """A classifier of images x (n, C, S, S) in [-1, 1] with labels (n,), a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed_for(seed, "classifier"))
        network = SmallClassifier(x.shape[1], classes).train()
    steps = epochs * math.ceil(len(x) / batch)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for epoch in range(epochs):
        order = torch.tensor(rng.permutation(len(x), seed, "classifier", epoch))
        for rows in order.split(batch):
            loss = functional.cross_entropy(network(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
    return network.eval()


def train_on(images: ImageSet, seed: int) -> SmallClassifier:
    assert images.labels is not None
    return train_classifier(to_float(images.pixels), images.labels, len(images.classes), seed=seed)


def has_classes(images: ImageSet) -> bool:
    """Whether every image has a class, and there are at least two."""
    return images.labels is not None and len(images.classes) > 1 and not bool((images.labels < 0).any())


@dataclass(frozen=True)
class Accuracy:
    """`right` of `count` images are classified correctly."""

    right: int
    count: int

    def __str__(self) -> str:
        share = wilson_interval(self.right, self.count)
        return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}] of {self.count}"


def compare_classifiers(
    classifier: SmallClassifier, real: ImageSet, unseen: ImageSet, generated: Tensor, labels: Tensor, seed: int
) -> dict[str, Accuracy]:
    """Accuracy on held-out real images after training on generated ones alone, on as many real ones, or on all."""
    same = real.at_most(len(generated), seed)
    on_generated = train_classifier(to_float(generated), labels, len(real.classes), seed=seed)
    trained = {
        f"{len(generated)} drawn pictures": on_generated,
        f"{len(same)} real pictures": train_on(same, seed),
        f"all {len(real)} real pictures": classifier,
    }
    with torch.no_grad():
        right = {name: network(to_float(unseen.pixels)).argmax(1) == unseen.labels for name, network in trained.items()}
    return {name: Accuracy(int(correct.sum()), len(correct)) for name, correct in right.items()}


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """An extractor of data/features.py: the classifier's last hidden features, 128 numbers an image.

    scale: multiplies them so that the training images have a mean square of 1: the kernel distance depends on it.
    spatial: the spatial features instead.
    """

    network: SmallClassifier
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
    def encode(self, images: Sequence[Image.Image]) -> Features:
        mode = "L" if self.channels == 1 else "RGB"
        x = to_float(from_images([image.convert(mode) for image in images]))
        features = self.network.spatial_features(x) if self.spatial else self.network.features(x)
        return (self.scale * features).numpy().astype(np.float32)

    def scaled_to(self, images: ImageSet) -> ClassifierFeatures:
        """The same features with a mean square of 1 over these images."""
        features = self.encode(images.images()).astype(np.float64)
        return replace(self, scale=self.scale / float(np.sqrt((features**2).mean())))
