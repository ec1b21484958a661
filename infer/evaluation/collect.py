"""From questions to evidence: draw what is missing, look at everything, put rows in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from data.duplicates import near_duplicates
from data.metrics.adherence import directional_similarity
from data.metrics.memorization import nearest_neighbours
from data.schema import Sample
from infer.comparison.grid import CellRequest
from infer.comparison.image_cache import CachedImage, ImageCache
from infer.evaluation import denoising_loss, probes, prompts
from infer.evaluation.config import Counts
from infer.evaluation.features import Eyes
from infer.evaluation.probes import TypeProbe
from infer.evaluation.prompts import Ask, Questions
from infer.evaluation.samples import Asked, Copied, Evidence, Grid, Mixes, Said, Seen, Shown
from infer.evaluation.target_run import Subject

Key = tuple[str, Ask]  # base or tuned, and what was asked
BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class Drawings:
    """Every picture that was drawn, by side and question."""

    cells: Mapping[Key, CachedImage]

    def side(self, side: str, asks: Sequence[Ask]) -> list[CachedImage]:
        return [self.cells[side, ask] for ask in asks]

    @property
    def fresh(self) -> int:
        return len({cell.path for cell in self.cells.values() if cell.is_new})

    def __len__(self) -> int:
        return len({cell.path for cell in self.cells.values()})


def wanted(questions: Questions) -> list[Key]:
    """Every picture, once."""
    both = (*questions.paired, *(ask for ask, _ in questions.figures))
    keys = [*((BASE, ask) for ask in both), *((TUNED, ask) for ask in (*both, *questions.without, *questions.trigger))]
    return list(dict.fromkeys(keys))


def wishes_of(subject: Subject, questions: Questions, counts: Counts, guidance_scale: float) -> dict[Key, CellRequest]:
    weights = {BASE: subject.base, TUNED: subject.tuned}
    return {
        (side, ask): prompts.wish(ask, weights[side], counts, guidance_scale, subject.size)
        for side, ask in wanted(questions)
    }


def draw(store: ImageCache, wishes: Mapping[Key, CellRequest]) -> Drawings:
    """What is not kept yet is drawn now."""
    cells = store.get(list(wishes.values()))
    return Drawings({key: cells[wish] for key, wish in wishes.items()})


@dataclass(frozen=True)
class Gathered:
    """The evidence, and what the page shows beside it. nearest: a training picture of a drawn one, and its cosine."""

    subject: Subject
    questions: Questions
    drawings: Drawings
    eyes: Eyes
    counts: Counts
    store: ImageCache
    seed: int

    @cached_property
    def references(self) -> list[Image.Image]:
        """The training pictures, as they were trained on."""
        return [self.subject.picture(sample) for sample in self.subject.collection.train]

    @cached_property
    def train(self) -> Seen:
        return self.eyes.seen(self.references)

    @cached_property
    def held_out(self) -> Seen:
        return self.eyes.seen([self.subject.picture(sample) for sample in self.subject.collection.held_out])

    @cached_property
    def seen(self) -> dict[Key, int]:
        """The row of every drawing."""
        return {key: row for row, key in enumerate(self.drawings.cells)}

    @cached_property
    def drawn(self) -> Seen:
        return self.eyes.seen([cell.path for cell in self.drawings.cells.values()])

    def look(self, side: str, asks: Sequence[Ask]) -> Seen:
        return self.drawn.take([self.seen[side, ask] for ask in asks])

    def shown(self, asks: Sequence[Ask]) -> Shown:
        return Shown(np.array([ask.text for ask in asks]), self.look(BASE, asks), self.look(TUNED, asks))

    @cached_property
    def nearest(self) -> dict[Key, tuple[int, float]]:
        """The training picture that each drawing is most like, and the cosine."""
        cosines, places = nearest_neighbours(self.drawn.content, self.train.content)
        return {key: (int(places[row]), float(cosines[row])) for key, row in self.seen.items()}

    def sample(self, place: int) -> Sample:
        return self.subject.collection.train[place]

    @cached_property
    def evidence(self) -> Evidence:
        """Everything that the sections are worked out of."""
        asked = self.questions
        return Evidence(
            train=self.train,
            held_out=self.held_out,
            captions=Asked(self.shown(asked.captions), *self.told(asked.every_caption)),
            plain=Asked(self.shown(asked.plain), *self.told(asked.every_plain)),
            variety=self.shown(asked.variety),
            copied=self.copied(),
            trigger=self.trigger(),
            grid=self.grid(),
            mixes=self.mixes(),
            losses=denoising_loss.losses(self.subject, self.store, self.counts, self.seed),
        )

    def told(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array(texts), self.eyes.texts(texts)

    def trigger(self) -> Shown:
        asked = self.questions
        words = np.array([ask.text for ask in asked.without])
        return Shown(words, self.look(TUNED, asked.without), self.look(TUNED, asked.trigger))

    def copied(self) -> Copied:
        """Near-duplicates of training pictures, among held-out and among the tuned model's pictures."""
        train, held_out = self.subject.collection.train, self.subject.collection.held_out
        asks = (*self.questions.captions, *self.questions.plain)
        files = [self.drawings.cells[TUNED, ask].path for ask in asks]
        names = [*(sample.annotation.file_name for sample in (*train, *held_out)), *(ask.text for ask in asks)]
        first, second = len(train), len(train) + len(held_out)
        found: list[list[tuple[str, str]]] = [[], []]
        for pair in near_duplicates([*train, *held_out, *files]):
            if pair.first < first <= pair.second:
                found[pair.second >= second].append((names[pair.second], names[pair.first]))
        return Copied(*found)

    @property
    def types(self) -> list[str | None]:
        return [sample.annotation.type for sample in self.subject.collection.train]

    def grid(self) -> Grid | None:
        """None where no types are known."""
        asks = self.questions.grid
        probe = probes.type_probe(self.train, self.types) if asks else None
        if probe is None:
            return None
        names = list(dict.fromkeys(ask.about[1] for ask in asks))
        names += [name for name in self.questions.objects if name not in names]
        words = self.eyes.texts(probes.object_texts(names))
        kinds, things = (np.array([ask.about[place] for ask in asks]) for place in (0, 1))
        of_types = probes.checked(probe, self.held_out, [s.annotation.type for s in self.subject.collection.held_out])
        of_objects = probes.objects_checked(words, names) if self.subject.is_pocket else None
        base, tuned = (self.said(side, probe, words, names) for side in (BASE, TUNED))
        return Grid(kinds, things, base, tuned, tuple(filter(None, (of_types, of_objects))))

    def said(self, side: str, probe: TypeProbe, words: np.ndarray, names: Sequence[str]) -> Said:
        """What the grid's pictures of one model are taken for."""
        asks, anchors = self.questions.grid, self.questions.anchors
        after, before = self.look(side, asks), self.look(side, anchors)
        texts = [self.eyes.texts([ask.text for ask in side_asks]) for side_asks in (anchors, asks)]
        turned = directional_similarity(before.joint, after.joint, texts[0], texts[1])
        return Said(probe.says(after), probes.objects_said(after.joint, words, names), turned)

    def mixes(self) -> Mixes | None:
        """None where no names are known."""
        asks = self.questions.mixes
        if not asks:
            return None
        owners = [sample.annotation.name for sample in self.subject.collection.train]
        sides = [probes.name_likeness(self.look(side, asks), self.train, owners) for side in (BASE, TUNED)]
        place = {name: number for number, name in enumerate(sides[0][1])}
        pairs = np.array([[place[name] for name in ask.about] for ask in asks])
        return Mixes(np.array([ask.text for ask in asks]), pairs, sides[0][0], sides[1][0])
