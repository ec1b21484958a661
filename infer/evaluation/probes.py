"""Probes: which type, object and names a picture shows, each with its accuracy on pictures it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.captions import with_article
from data.metrics.distances import Matrix, unit_rows
from infer.comparison.measures import POCKET_SCORER
from infer.evaluation.samples import Probe, Seen, Words

STRENGTH = 1.0  # of the logistic regression's penalty, sklearn's own default


@dataclass(frozen=True)
class TypeProbe:
    """Logistic regression on standardised content and style of the training pictures, whose types people gave."""

    model: Any
    classes: Words

    def says(self, seen: Seen) -> Words:
        return np.asarray(self.model.predict(table(seen)), str)


def table(seen: Seen) -> Matrix:
    return np.concatenate([unit_rows(seen.content), seen.style], axis=1)


def type_probe(train: Seen, types: Sequence[str | None]) -> TypeProbe | None:
    """None where fewer than two types are known."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = [row for row, kind in enumerate(types) if kind]
    labels = np.array([str(types[row]) for row in known])
    if len(set(labels.tolist())) < 2:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    model.fit(table(train.take(known)), labels)
    return TypeProbe(model, np.unique(labels))


def checked(probe: TypeProbe, held_out: Seen, types: Sequence[str | None]) -> Probe | None:
    """On held-out pictures whose types are known."""
    known = [row for row, kind in enumerate(types) if kind]
    if not known:
        return None
    right = probe.says(held_out.take(known)) == np.array([str(types[row]) for row in known])
    return Probe("types", int(right.sum()), len(known), len(probe.classes))


def objects_said(joint: Matrix, words: Matrix, names: Sequence[str]) -> Words:
    """The nearest of the names to each picture. words: (names, e) of "a fridge" and so on."""
    return np.array(names)[(unit_rows(joint) @ unit_rows(words).T).argmax(axis=1)]


def objects_checked(words: Matrix, names: Sequence[str]) -> Probe | None:
    """On real pictures of the embedded world's objects, four of each, that nothing was trained on."""
    from safetensors.numpy import load_file

    scored = (POCKET_SCORER / "names.txt").read_text(encoding="utf-8").splitlines()
    rows = load_file(POCKET_SCORER / "real.safetensors")["features"].astype(np.float64)
    if rows.shape[1] != words.shape[1]:
        return None
    shown = np.array([scored[row % len(scored)] for row in range(len(rows))])
    mine = np.isin(shown, names)
    right = objects_said(rows[mine], words, names) == shown[mine]
    return Probe("objects", int(right.sum()), int(mine.sum()), len(names)) if mine.any() else None


def object_texts(names: Sequence[str]) -> list[str]:
    return [with_article(name) for name in names]


def name_likeness(seen: Seen, train: Seen, owners: Sequence[str | None]) -> tuple[NDArray[np.float64], list[str]]:
    """(n, names): the cosine of each picture to the mean of each name's training pictures; and the names."""
    names = sorted({name for name in owners if name})
    content = unit_rows(train.content)
    middle = content.mean(axis=0)
    means = np.stack([content[[row for row, own in enumerate(owners) if own == name]].mean(axis=0) for name in names])
    return unit_rows(unit_rows(seen.content) - middle) @ unit_rows(means - middle).T, names
