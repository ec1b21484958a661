"""The classifiers: transformers' ResNet-34 from random weights, and a small net for small pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from data import rng
from data.rng import seed_for
from train.study.arms import Arm
from train.study.config import Training


class Logits(nn.Module):
    """transformers' model as a plain function from pictures to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pixel_values=pictures).logits


def resnet34(classes: int) -> nn.Module:
    """21,797,672 weights at 1,000 classes, 21,289,802 at 10. Source: He et al. 2016, arXiv 1512.03385, table 1."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        layer_type="basic", depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 256, 512], num_labels=classes  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return Logits(ResNetForImageClassification(config))


def tiny_net(classes: int) -> nn.Module:
    """Three halvings, 16, 48 and 112 channels, group norms (a batch of any size is judged alike), mean over places."""

    def stage(width: int, wider: int) -> list[nn.Module]:
        return [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]

    layers = [*stage(3, 16), *stage(16, 48), *stage(48, 112), nn.Conv2d(112, 16, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes))


NETS = {"tiny": tiny_net, "resnet34": resnet34}


def make_network(name: str, classes: int, seed: int) -> nn.Module:
    """The net with weights that are a function of the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed_for(seed, "study", "weights") % 2**63)
        return NETS[name](classes)


# of ImageNet, as the thesis normalises
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CUT_AFTER = 7  # passes, of the thesis' 30: then the learning rate is a tenth
SHIFT = 1 / 8  # of a side, the largest shift of the augmented arm


@dataclass(frozen=True)
class LabelledPixels:
    """uint8 (n, size, size, 3) and their classes (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def training_steps(options: Training, arm: Arm, count: int) -> int:
    """How many optimiser steps an arm of so many pictures takes."""
    if options.recipe == "thesis":
        return max(1, round(options.passes * arm.passes * count / options.batch_size))
    return max(1, round(options.steps * arm.steps))


def learning_rate_at(options: Training, step: int, steps: int) -> float:
    """The learning rate: constant then cosine to 0 for `equal`, a tenth every 7 passes for `thesis`."""
    if options.recipe == "thesis":
        passes = step * options.passes / steps
        return options.learning_rate * 0.1 ** int(passes // CUT_AFTER)
    return options.learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))


def batch_rows(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The pictures of a step: all once, in a new order each pass, before any comes again."""
    rows = []
    for slot in range(step * batch, (step + 1) * batch):
        turn, place = divmod(slot, count)
        rows.append(pass_order(count, turn, seed)[place])
    return rows


_orders: dict[tuple[int, int, int], list[int]] = {}


def pass_order(count: int, turn: int, seed: int) -> list[int]:
    """The order of one pass; the last two passes are remembered."""
    key = (count, turn, seed)
    if key not in _orders:
        for old in list(_orders)[:-1]:
            del _orders[old]
        _orders[key] = rng.permutation(count, seed, "study", "order", turn)
    return _orders[key]


def normalise(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (b, h, w, 3) -> float (b, 3, h, w), channels last."""
    shown = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255.0
    mean, deviation = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return ((shown - mean) / deviation).contiguous(memory_format=torch.channels_last)


def augment(pictures: Tensor, step: int, seed: int) -> Tensor:
    """Each picture mirrored at a half chance and shifted by up to SHIFT of a side, the border repeated."""
    rng = np.random.default_rng(seed_for(seed, "study", "augment", step))
    most = max(1, round(SHIFT * pictures.shape[-1]))
    padded = functional.pad(pictures, (most,) * 4, mode="replicate")
    side, moved = pictures.shape[-1], []
    for picture in padded:
        down, right = rng.integers(0, 2 * most + 1, 2)
        part = picture[:, down : down + side, right : right + side]
        moved.append(part.flip(-1) if rng.random() < 0.5 else part)
    return torch.stack(moved)


def train_classifier(pictures: LabelledPixels, classes: int, arm: Arm, options: Training, seed: int) -> nn.Module:
    """The trained classifier; weights and order are functions of the seed."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = make_network(options.net, classes, seed).to(device, memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.Adam(net.parameters(), lr=options.learning_rate)
    steps = training_steps(options, arm, len(pictures))
    net.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(options, step, steps)
        rows = batch_rows(len(pictures), options.batch_size, step, seed)
        shown = normalise(pictures.pixels[rows], device)
        shown = augment(shown, step, seed) if arm.augmented else shown
        target = torch.from_numpy(pictures.labels[rows]).to(device)
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(net(shown), target).backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def predict_logits(net: nn.Module, pixels: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
    """(n, classes) logits."""
    device = next(net.parameters()).device
    parts = [
        net(normalise(pixels[start : start + batch], device)).float().cpu() for start in range(0, len(pixels), batch)
    ]
    return torch.cat(parts).numpy() if parts else np.empty((0, 0), np.float32)
