"""The classifiers: transformers' ResNet-34 from random weights, and a small net for small pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data import seeds


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


def tiny(classes: int) -> nn.Module:
    """Three halvings, 16, 48 and 112 channels, group norms (a batch of any size is judged alike), mean over places."""

    def stage(width: int, wider: int) -> list[nn.Module]:
        return [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]

    layers = [*stage(3, 16), *stage(16, 48), *stage(48, 112), nn.Conv2d(112, 16, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes))


NETS = {"tiny": tiny, "resnet34": resnet34}


def make(name: str, classes: int, seed: int) -> nn.Module:
    """The net with weights that are a function of the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed_for(seed, "study", "weights") % 2**63)
        return NETS[name](classes)
