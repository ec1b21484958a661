"""Probes: which type, object and names an image shows, with their accuracy on images they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.captions import with_article
from data.metrics.distances import Matrix, unit_rows
from infer.comparison.measures import POCKET_SCORER
from infer.evaluation.samples import Features, ProbeAccuracy, Words

PENALTY = 1.0  # of the logistic regression, sklearn's default


@dataclass(frozen=True)
class TypeProbe:
    """Logistic regression on standardized content and style of the training images, whose types people annotated."""

    model: Any
    classes: Words

    def predict(self, features: Features) -> Words:
        return np.asarray(self.model.predict(probe_inputs(features)), str)


def probe_inputs(features: Features) -> Matrix:
    return np.concatenate([unit_rows(features.content), features.style], axis=1)


def train_type_probe(train: Features, types: Sequence[str | None]) -> TypeProbe | None:
    """None if fewer than two types are known."""
    known = [row for row, type_ in enumerate(types) if type_]
    labels = np.array([str(types[row]) for row in known])
    if len(set(labels.tolist())) < 2:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
    model.fit(probe_inputs(train.take(known)), labels)
    return TypeProbe(model, np.unique(labels))


def type_accuracy(probe: TypeProbe, held_out: Features, types: Sequence[str | None]) -> ProbeAccuracy | None:
    """On held-out images whose types are known."""
    known = [row for row, type_ in enumerate(types) if type_]
    if not known:
        return None
    right = probe.predict(held_out.take(known)) == np.array([str(types[row]) for row in known])
    return ProbeAccuracy("types", int(right.sum()), len(known), len(probe.classes))


def predict_objects(joint: Matrix, texts: Matrix, names: Sequence[str]) -> Words:
    """The nearest of the names to each image. texts: (names, e), of object_texts."""
    return np.array(names)[(unit_rows(joint) @ unit_rows(texts).T).argmax(axis=1)]


def object_texts(names: Sequence[str]) -> list[str]:
    return [with_article(name) for name in names]


def object_accuracy(texts: Matrix, names: Sequence[str]) -> ProbeAccuracy | None:
    """On real images of the embedded world's objects, four of each, that nothing was trained on."""
    known = (POCKET_SCORER / "names.txt").read_text(encoding="utf-8").splitlines()
    rows = load_file(POCKET_SCORER / "real.safetensors")["features"].astype(np.float64)
    if rows.shape[1] != texts.shape[1]:
        return None
    shown = np.array([known[row % len(known)] for row in range(len(rows))])
    used = np.isin(shown, names)
    right = predict_objects(rows[used], texts, names) == shown[used]
    return ProbeAccuracy("objects", int(right.sum()), int(used.sum()), len(names)) if used.any() else None


def name_similarity(
    features: Features, train: Features, owners: Sequence[str | None]
) -> tuple[NDArray[np.float64], list[str]]:
    """(n, names): the cosine of each image to the mean of each name's training images; and the names."""
    names = sorted({name for name in owners if name})
    content = unit_rows(train.content)
    mean = content.mean(axis=0)
    means = np.stack([content[[row for row, own in enumerate(owners) if own == name]].mean(axis=0) for name in names])
    return unit_rows(unit_rows(features.content) - mean) @ unit_rows(means - mean).T, names
