"""Pictures that a query means, best first: fields decide who may come, words decide the order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Row

import numpy as np

from data.encoders import Clip
from infer.galleries import query
from infer.galleries.index import Index, features_of


@dataclass(frozen=True)
class Hit:
    """A picture; likeness: cosine to the words, None without words. places: relative, of all copies."""

    row: Row
    likeness: float | None

    @property
    def places(self) -> list[str]:
        return str(self.row["places"]).split("\n")

    def path(self, folder: Path) -> Path:
        return folder / self.places[0]


def search(index: Index, text: str, judge: Clip, most: int | None = None) -> list[Hit]:
    """At most so many hits. Raises InputError for a query that makes no sense."""
    asked = query.parse(text)
    rows = index.rows(asked.where, asked.values)
    if not asked.words or not rows:
        return [Hit(row, None) for row in rows[:most]]
    likeness = features_of(rows) @ judge.encode_text([asked.words])[0]
    order = np.argsort(-likeness, kind="stable")[:most]
    return [Hit(rows[place], float(likeness[place])) for place in order]
