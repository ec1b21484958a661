"""What a classifier's logits on a test set are worth. Library functions where there are any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Measures:
    """accuracy, balanced (mean of the classes' recalls), macro_f1, majority (of always saying the commonest class)
    in [0, 1]; calibration: expected |confidence - accuracy|; recalls: (classes,)."""

    accuracy: float
    balanced: float
    macro_f1: float
    majority: float
    calibration: float
    recalls: tuple[float, ...]


def measure(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Measures:
    """Of (n, classes) logits and (n,) classes."""
    from sklearn.metrics import f1_score, recall_score

    said = logits.argmax(axis=1)
    classes = list(range(logits.shape[1]))
    # sklearn's stubs know words alone where its functions take None and numbers as well
    recalls = recall_score(labels, said, labels=classes, average=None, zero_division=0.0)  # pyright: ignore[reportArgumentType]
    f1 = f1_score(labels, said, labels=classes, average="macro", zero_division=0.0)  # pyright: ignore[reportArgumentType]
    return Measures(
        accuracy=float((said == labels).mean()),
        balanced=float(np.mean(recalls)),
        macro_f1=float(f1),
        majority=float(np.bincount(labels).max() / len(labels)),
        calibration=calibration_error(logits, labels),
        recalls=tuple(float(value) for value in np.asarray(recalls)),
    )


def calibration_error(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Expected calibration error over BINS equal bins. Source: Guo et al. 2017, arXiv 1706.04599, eq. 3."""
    from scipy.special import softmax

    chances = softmax(np.asarray(logits, np.float64), axis=1)
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def domain_gap(real: NDArray[np.floating], drawn: NDArray[np.floating], seed: int = 0) -> float:
    """AUC of a linear classifier that tells real from artificial pictures by their features; 0.5: it cannot."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([real, drawn])
    sides = np.repeat([0, 1], [len(real), len(drawn)])
    folds = StratifiedKFold(min(5, len(real), len(drawn)), shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(np.mean(cross_val_score(model, features, sides, cv=folds, scoring="roc_auc")))
