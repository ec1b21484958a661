"""Prompts and seeds of every question, as functions of the run's images and the seed alone."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import yaml

from data import rng
from data.captions import with_article
from infer.comparison import figures
from infer.comparison.grid import CREATURE, POKEMON, fix_article, with_trigger
from infer.config import EvaluateOptions
from infer.evaluation.target_run import TargetRun

FILE = Path(__file__).with_name("prompts.yaml")
FIRST_TYPES = ("water", "electric", "fire", "grass")  # of the thesis's figure 3.5
SEED_SPACE = 2**32
MIN_IMAGES = 3  # of a name or type that is used


@dataclass(frozen=True)
class Counts:
    """How many images each question gets. captions: 0 is one for every training image."""

    steps: int
    captions: int
    caption_seeds: int
    prompts: int
    prompt_seeds: int
    types: int
    objects: int
    grid_seeds: int
    variety: int
    variety_seeds: int
    triggers: int
    mixes: int
    losses: int
    timesteps: int


FULL = Counts(50, 0, 3, 100, 4, 18, 20, 4, 30, 16, 40, 20, 10_000, 8)
QUICK = Counts(10, 24, 1, 12, 2, 3, 4, 2, 4, 6, 8, 2, 32, 4)


def counts_of(options: EvaluateOptions) -> Counts:
    given = {name: value for name in ("steps", "captions", "prompts") if (value := getattr(options, name)) is not None}
    return replace(QUICK if options.quick else FULL, **given)


@dataclass(frozen=True)
class EvalPrompt:
    """An image to generate. labels: what the question needs, such as type and object."""

    text: str
    seed: int
    labels: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """For the prompt grammar: brackets of a caption are text, not weights."""
        return re.sub(r"([()\[\]\\])", r"\\\1", self.text)


@dataclass(frozen=True)
class EvalPrompts:
    """captions, plain, variety, grid, mixes: for base and tuned. anchors: the grid's objects alone, row for row.

    without, trigger: for tuned alone. all_captions, all_plain: what images are matched against.
    """

    captions: tuple[EvalPrompt, ...]
    plain: tuple[EvalPrompt, ...]
    variety: tuple[EvalPrompt, ...]
    grid: tuple[EvalPrompt, ...]
    anchors: tuple[EvalPrompt, ...]
    mixes: tuple[EvalPrompt, ...]
    without: tuple[EvalPrompt, ...]
    trigger: tuple[EvalPrompt, ...]
    figures: tuple[tuple[EvalPrompt, str], ...]
    all_captions: tuple[str, ...]
    all_plain: tuple[str, ...]
    objects: tuple[str, ...]

    @property
    def paired(self) -> tuple[EvalPrompt, ...]:
        """Everything that both models generate, once each."""
        every = (*self.captions, *self.plain, *self.variety, *self.grid, *self.anchors, *self.mixes)
        return tuple(dict.fromkeys(every))


def build_prompts(target: TargetRun, counts: Counts, seed: int, trigger: str) -> EvalPrompts:
    captions, plain = caption_texts(target, seed), plain_texts()
    used_captions, used_plain = captions[: counts.captions or len(captions)], plain[: counts.prompts]
    varied = [text for pair in zip(used_captions, used_plain, strict=False) for text in pair][: counts.variety]
    grid = type_grid(target, counts, seed)
    word = trigger or (CREATURE if target.is_pocket else POKEMON)
    without = [EvalPrompt(text, seed_of(seed, text, 0)) for text in used_plain[: counts.triggers]]
    return EvalPrompts(
        captions=with_seeds(used_captions, counts.caption_seeds, seed),
        plain=with_seeds(used_plain, counts.prompt_seeds, seed),
        variety=with_seeds(varied, counts.variety_seeds, seed),
        grid=grid,
        anchors=tuple(EvalPrompt(with_article(each.labels[1]), each.seed) for each in grid),
        mixes=name_mixes(target, counts, seed),
        without=tuple(without),
        trigger=tuple(EvalPrompt(with_trigger(each.text, word, True), each.seed) for each in without),
        figures=figure_prompts(target, seed),
        all_captions=tuple(captions),
        all_plain=tuple(plain),
        objects=tuple(load_prompts()["objects"]),
    )


@cache
def load_prompts() -> dict[str, list[str]]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def plain_texts() -> list[str]:
    """A hundred without style: every object in every wording, ordered so that the first few have many of both."""
    objects, wordings = load_prompts()["objects"], load_prompts()["wordings"]
    turns = [(turn, place) for turn in range(len(wordings)) for place in range(len(objects))]
    filled = [(wordings[(place + turn) % len(wordings)], objects[place]) for turn, place in turns]
    return [text.replace("a {object}", with_article(name)).replace("{object}", name) for text, name in filled]


def caption_texts(target: TargetRun, seed: int) -> list[str]:
    """The training images' first captions, each once, in an order given by the seed."""
    texts = list(dict.fromkeys(sorted(target.caption(sample) for sample in target.images.train)))
    return [texts[place] for place in rng.permutation(len(texts), seed, "evaluate", "captions")]


def with_seeds(texts: Sequence[str], count: int, seed: int) -> tuple[EvalPrompt, ...]:
    return tuple(EvalPrompt(text, seed_of(seed, text, turn)) for text in texts for turn in range(count))


def seed_of(seed: int, text: str, turn: int) -> int:
    """A prompt's own seeds, whichever question uses it."""
    return rng.seed_for(seed, "evaluate", text, turn) % SEED_SPACE


def type_grid(target: TargetRun, counts: Counts, seed: int) -> tuple[EvalPrompt, ...]:
    """Types on objects, each with the seed of the object alone; empty if no types are known."""
    found = Counter(type_ for sample in target.images.train if (type_ := sample.annotation.type))
    rank = {type_: place for place, type_ in enumerate(FIRST_TYPES)}  # the thesis's first, then the most frequent
    types = sorted(
        (type_ for type_, count in found.items() if count >= MIN_IMAGES),
        key=lambda type_: (rank.get(type_, len(rank)), -found[type_], type_),
    )
    if len(types) < 2:
        return ()
    objects = load_prompts()["objects"][: counts.objects]
    return tuple(
        EvalPrompt(fix_article(f"a {type_} type {name}"), seed_of(seed, with_article(name), turn), (type_, name))
        for type_, name, turn in product(types[: counts.types], objects, range(counts.grid_seeds))
    )


def name_mixes(target: TargetRun, counts: Counts, seed: int) -> tuple[EvalPrompt, ...]:
    """Two names in one prompt; empty if names have fewer than three images each."""
    found = Counter(name for sample in target.images.train if (name := sample.annotation.name))
    names = sorted(name for name, count in found.items() if count >= MIN_IMAGES)
    if len(names) < 4:
        return ()
    order = [names[place] for place in rng.permutation(len(names), seed, "evaluate", "mixes")]
    pairs = list(zip(order[::2], order[1::2], strict=False))[: counts.mixes]
    return tuple(
        EvalPrompt(text := f"a mix of {one} and {two}", seed_of(seed, text, turn), (one, two))
        for one, two in pairs for turn in range(counts.grid_seeds)
    )  # fmt: skip


def figure_prompts(target: TargetRun, seed: int) -> tuple[tuple[EvalPrompt, str], ...]:
    """The thesis's panels, each prompt once, with its figure; the same images as compare.py --figures."""
    wording = "twin" if target.is_pocket else "literal"
    found: dict[EvalPrompt, str] = {}
    for figure in figures.load_figures():
        for panel in figure.panels:
            prompt = EvalPrompt(panel.wording(wording), seed + panel.seed)
            found.setdefault(prompt, f"{figure.number}{panel.letter}")
    return tuple(found.items())
