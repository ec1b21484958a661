"""What is drawn: prompts and seeds of every question, as functions of the run's pictures and the seed alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import yaml

from data import rng
from data.captions import with_article
from infer.comparison import figures, grid
from infer.comparison.grid import CellRequest
from infer.comparison.weights import Weights
from infer.evaluation.config import Counts
from infer.evaluation.target_run import Subject

FILE = Path(__file__).with_name("prompts.yaml")
FIRST_TYPES = ("water", "electric", "fire", "grass")  # of the thesis, its figure 3.5
SEED_SPACE = 2**32
FEWEST = 3  # pictures of a name or type that is asked for


@dataclass(frozen=True)
class Ask:
    """A picture that is asked for, of base and tuned. about: words that the question needs, such as type and object."""

    text: str
    seed: int
    about: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """As the prompt grammar reads it: brackets of a caption are letters, not weights."""
        return re.sub(r"([()\[\]\\])", r"\\\1", self.text)


@dataclass(frozen=True)
class Questions:
    """captions, plain, variety, grid, mixes: of base and tuned. anchors: the grid's objects alone, row for row.

    trigger: with the word, and without, of tuned alone. every_caption, every_plain: what pictures are told among.
    """

    captions: tuple[Ask, ...]
    plain: tuple[Ask, ...]
    variety: tuple[Ask, ...]
    grid: tuple[Ask, ...]
    anchors: tuple[Ask, ...]
    mixes: tuple[Ask, ...]
    without: tuple[Ask, ...]
    trigger: tuple[Ask, ...]
    figures: tuple[tuple[Ask, str], ...]
    every_caption: tuple[str, ...]
    every_plain: tuple[str, ...]
    objects: tuple[str, ...]

    @property
    def paired(self) -> tuple[Ask, ...]:
        """Everything that both draw, once each."""
        asks = (*self.captions, *self.plain, *self.variety, *self.grid, *self.anchors, *self.mixes)
        return tuple(dict.fromkeys(asks))


def questions(subject: Subject, counts: Counts, seed: int, trigger: str) -> Questions:
    """All that the counts allow."""
    captions, plain = captions_of(subject, seed), plain_prompts()
    drawn = captions[: counts.captions or len(captions)]
    used = plain[: counts.prompts]
    varied = [text for pair in zip(drawn, used, strict=False) for text in pair][: counts.variety]
    cells = grid_of(subject, counts, seed)
    word = trigger or (grid.CREATURE if subject.is_pocket else grid.POKEMON)
    without = [Ask(text, seed_of(seed, text, 0)) for text in used[: counts.triggers]]
    return Questions(
        captions=asks(drawn, counts.caption_seeds, seed),
        plain=asks(used, counts.prompt_seeds, seed),
        variety=asks(varied, counts.variety_seeds, seed),
        grid=cells,
        anchors=tuple(Ask(with_article(ask.about[1]), ask.seed) for ask in cells),
        mixes=mixes_of(subject, counts, seed),
        without=tuple(without),
        trigger=tuple(Ask(grid.with_trigger(ask.text, word, True), ask.seed) for ask in without),
        figures=figures_of(subject, seed),
        every_caption=tuple(captions),
        every_plain=tuple(plain),
        objects=tuple(shipped()["objects"]),
    )


@cache
def shipped() -> dict[str, list[str]]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def plain_prompts() -> list[str]:
    """A hundred without style: every object in every wording, so ordered that few of them hold many of both."""
    things, ways = shipped()["objects"], shipped()["wordings"]
    turns = [(turn, place) for turn in range(len(ways)) for place in range(len(things))]
    return [worded(ways[(place + turn) % len(ways)], things[place]) for turn, place in turns]


def worded(way: str, thing: str) -> str:
    return way.replace("a {object}", with_article(thing)).replace("{object}", thing)


def captions_of(subject: Subject, seed: int) -> list[str]:
    """The training pictures' first captions, each once, in an order of the seed's."""
    texts = list(dict.fromkeys(sorted(subject.caption(sample) for sample in subject.collection.train)))
    return [texts[place] for place in rng.permutation(len(texts), seed, "evaluate", "captions")]


def asks(texts: Sequence[str], count: int, seed: int) -> tuple[Ask, ...]:
    return tuple(Ask(text, seed_of(seed, text, turn)) for text in texts for turn in range(count))


def seed_of(seed: int, text: str, turn: int) -> int:
    """A prompt's own noise, whichever question asks for it."""
    return rng.seed_for(seed, "evaluate", text, turn) % SEED_SPACE


def types_of(subject: Subject) -> list[str]:
    """The types of the training pictures, the thesis' first, then the commonest."""
    found = Counter(kind for sample in subject.collection.train if (kind := sample.annotation.type))
    known = [kind for kind, count in found.items() if count >= FEWEST]
    rank = {kind: place for place, kind in enumerate(FIRST_TYPES)}
    return sorted(known, key=lambda kind: (rank.get(kind, len(rank)), -found[kind], kind))


def grid_of(subject: Subject, counts: Counts, seed: int) -> tuple[Ask, ...]:
    """Types on objects, each picture from the noise of the object alone; nothing where no types are known."""
    kinds, things = types_of(subject), shipped()["objects"][: counts.objects]
    if len(kinds) < 2:
        return ()
    cells = product(kinds[: counts.types], things, range(counts.grid_seeds))
    return tuple(
        Ask(grid.fix_article(f"a {kind} type {thing}"), seed_of(seed, with_article(thing), turn), (kind, thing))
        for kind, thing, turn in cells
    )


def mixes_of(subject: Subject, counts: Counts, seed: int) -> tuple[Ask, ...]:
    """Two names in one prompt; nothing where names stand for fewer than three pictures each."""
    found = Counter(name for sample in subject.collection.train if (name := sample.annotation.name))
    known = sorted(name for name, count in found.items() if count >= FEWEST)
    if len(known) < 4:
        return ()
    order = [known[place] for place in rng.permutation(len(known), seed, "evaluate", "mixes")]
    pairs = list(zip(order[::2], order[1::2], strict=False))[: counts.mixes]
    return tuple(
        Ask(text := f"a mix of {one} and {two}", seed_of(seed, text, turn), (one, two))
        for one, two in pairs for turn in range(counts.grid_seeds)
    )  # fmt: skip


def figures_of(subject: Subject, seed: int) -> tuple[tuple[Ask, str], ...]:
    """The thesis' panels, each prompt once, with the figure it is of; the same pictures as compare.py --figures."""
    wording = "twin" if subject.is_pocket else "literal"
    found: dict[Ask, str] = {}
    for figure in figures.load_figures():
        for panel in figure.panels:
            found.setdefault(Ask(panel.wording(wording), seed + panel.seed), f"{figure.number}{panel.letter}")
    return tuple(found.items())


def wish(ask: Ask, weights: Weights, counts: Counts, guidance_scale: float, size: int) -> CellRequest:
    return CellRequest(weights, ask.prompt, ask.seed, counts.steps, guidance_scale, width=size, height=size)
