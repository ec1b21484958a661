"""One classifier: cross entropy, Adam, a fixed number of steps without looking at test images; and what it is worth."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from data import rng
from train.study.config import Arm, TrainingOptions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in the thesis
DECAY_EVERY = 7  # passes, of the thesis' 30: then the learning rate is divided by ten
SHIFT = 1 / 8  # of a side, the largest shift of the augmented arm
CALIBRATION_BINS = 15

# ---- networks


class Logits(nn.Module):
    """A transformers model as a plain function from images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


def resnet34(classes: int) -> nn.Module:
    """21,797,672 weights at 1,000 classes, 21,289,802 at 10. Source: He et al. 2016, arXiv 1512.03385, table 1."""
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512]}
    config = ResNetConfig(layer_type="basic", num_labels=classes, **shape)  # pyright: ignore[reportCallIssue]
    return Logits(ResNetForImageClassification(config))


def tiny_net(classes: int) -> nn.Module:
    """Three halvings, 16, 48 and 112 channels, group norms, mean over places."""

    def stage(width: int, wider: int) -> list[nn.Module]:
        return [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]

    layers = [*stage(3, 16), *stage(16, 48), *stage(48, 112), nn.Conv2d(112, 16, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes))


NETS = {"tiny": tiny_net, "resnet34": resnet34}


def make_network(name: str, classes: int, seed: int) -> nn.Module:
    """The network with weights that are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed_for(seed, "study", "weights") % 2**63)
        return NETS[name](classes)


# ---- training


@dataclass(frozen=True)
class LabelledPixels:
    """uint8 (n, size, size, 3) and their classes (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def train_classifier(images: LabelledPixels, classes: int, arm: Arm, options: TrainingOptions, seed: int) -> nn.Module:
    """The trained classifier; weights and order are functions of the seed."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = make_network(options.net, classes, seed).to(device, memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    steps = training_steps(options, arm, len(images))
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(options, step, steps)
        rows = batch_rows(len(images), options.batch_size, step, seed)
        x = normalise(images.pixels[rows], device)
        x = augment(x, step, seed) if arm.augmented else x
        target = torch.from_numpy(images.labels[rows]).to(device)
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(x), target).backward()
        optimizer.step()
    return network.eval()


def training_steps(options: TrainingOptions, arm: Arm, count: int) -> int:
    """Optimiser steps of an arm with so many images."""
    if options.recipe == "thesis":
        return max(1, round(options.passes * arm.passes * count / options.batch_size))
    return max(1, round(options.steps * arm.steps))


def learning_rate_at(options: TrainingOptions, step: int, steps: int) -> float:
    """Cosine to 0 for `equal`, divided by ten every 7 passes for `thesis`."""
    if options.recipe == "thesis":
        passes = step * options.passes / steps
        return options.learning_rate * 0.1 ** int(passes // DECAY_EVERY)
    return options.learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))


def batch_rows(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The images of a step: all once, in a new order each pass, before any comes again."""
    slots = (divmod(slot, count) for slot in range(step * batch, (step + 1) * batch))
    return [pass_order(count, turn, seed)[place] for turn, place in slots]


@lru_cache(maxsize=4)
def pass_order(count: int, turn: int, seed: int) -> list[int]:
    return rng.permutation(count, seed, "study", "order", turn)


def normalise(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (b, h, w, 3) -> float (b, 3, h, w), channels last."""
    x = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255.0
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, step: int, seed: int) -> Tensor:
    """Each image mirrored with probability 1/2 and shifted by up to SHIFT of a side, the border repeated."""
    random = np.random.default_rng(rng.seed_for(seed, "study", "augment", step))
    most, side, moved = max(1, round(SHIFT * images.shape[-1])), images.shape[-1], []
    for image in functional.pad(images, (most,) * 4, mode="replicate"):
        down, right = random.integers(0, 2 * most + 1, 2)
        part = image[:, down : down + side, right : right + side]
        moved.append(part.flip(-1) if random.random() < 0.5 else part)
    return torch.stack(moved)


@torch.no_grad()
def predict_logits(network: nn.Module, pixels: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
    """(n, classes) logits."""
    device = next(network.parameters()).device
    starts = range(0, len(pixels), batch)
    parts = [network(normalise(pixels[start : start + batch], device)).float().cpu() for start in starts]
    return torch.cat(parts).numpy() if parts else np.empty((0, 0), np.float32)


# ---- measures


@dataclass(frozen=True)
class Measures:
    """accuracy, balanced (mean of the recalls), macro_f1, majority (of always predicting the most common class) in
    [0, 1]; calibration: expected |confidence - accuracy|; recalls: (classes,)."""

    accuracy: float
    balanced: float
    macro_f1: float
    majority: float
    calibration: float
    recalls: tuple[float, ...]


def measure(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Measures:
    """Of (n, classes) logits and (n,) classes."""
    from sklearn.metrics import f1_score, recall_score

    predicted = logits.argmax(axis=1)
    classes = list(range(logits.shape[1]))
    # sklearn's stubs know strings only where its functions take None and numbers as well
    recalls = recall_score(labels, predicted, labels=classes, average=None, zero_division=0.0)  # pyright: ignore
    f1 = f1_score(labels, predicted, labels=classes, average="macro", zero_division=0.0)  # pyright: ignore
    return Measures(
        accuracy=float((predicted == labels).mean()),
        balanced=float(np.mean(recalls)),
        macro_f1=float(f1),
        majority=float(np.bincount(labels).max() / len(labels)),
        calibration=calibration_error(logits, labels),
        recalls=tuple(float(value) for value in np.asarray(recalls)),
    )


def calibration_error(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Expected calibration error over equal bins. Source: Guo et al. 2017, arXiv 1706.04599, eq. 3."""
    from scipy.special import softmax

    probabilities = softmax(np.asarray(logits, np.float64), axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def domain_gap(real: NDArray[np.floating], artificial: NDArray[np.floating], seed: int = 0) -> float:
    """AUC of a linear classifier that separates real from artificial images by their features; 0.5: it cannot."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([real, artificial])
    sides = np.repeat([0, 1], [len(real), len(artificial)])
    folds = StratifiedKFold(min(5, len(real), len(artificial)), shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(np.mean(cross_val_score(model, features, sides, cv=folds, scoring="roc_auc")))
