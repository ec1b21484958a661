"""What stands in each place of a comparison: every combination of the axes as one picture that is wanted."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.errors import InputError, raise_all
from infer import source, tags, templates
from infer.comparing import axes
from infer.comparing.axes import Axis
from infer.comparing.options import AXES, CompareOptions
from infer.comparing.weights import BASE, TUNED, Finder, Weights

FLAGS = tuple(f"--{axis}" for axis in AXES)
ARTICLE = re.compile(r"^(a|an|the)\s+", re.IGNORECASE)
TRIGGER_SLOT = re.compile(r"\s*\{\s*trigger\s*\}")
CREATURE, POKEMON = "creature", "Pokémon"


@dataclass(frozen=True)
class Wish:
    """A picture that is wanted: all that decides it, but for what the model itself says (its size, its scheduler)."""

    weights: Weights
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scheduler: str | None = None
    negative_prompt: str = ""
    width: int | None = None  # None: the model's own
    height: int | None = None
    template: str = ""


@dataclass(frozen=True)
class Place:
    """Where a wish stands: the index on each axis, x first; and what was chosen there, as headings."""

    at: tuple[int, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The axes of a comparison, x first, and the wish of every place, in reading order: z, y, x."""

    axes: tuple[Axis, ...]
    wishes: Mapping[tuple[int, ...], Wish]

    def place(self, at: tuple[int, ...]) -> Place:
        return Place(at, tuple(axis.shown[index] for axis, index in zip(self.axes, at, strict=True)))


def table(options: CompareOptions, finder: Finder) -> Table:
    """Every wish of the options. Raises InputError: unknown or empty axes, too many cells, models that are equal."""
    named = read_axes(options, finder)
    count = 1
    for axis in named:
        count *= len(axis)
    if count > options.max_cells:
        sizes = " x ".join(f"{len(axis)} ({axis.name})" for axis in named if axis.name)
        fix = f"Shorten an axis, or say --max-cells {count}."
        raise InputError(f"{sizes} = {count:,} cells", where="--max-cells", allowed=options.max_cells, fix=fix)
    wishes: dict[tuple[int, ...], Wish] = {}
    for backwards in itertools.product(*(range(len(axis)) for axis in reversed(named))):
        at = backwards[::-1]
        chosen = {axis.name: axis.values[index] for axis, index in zip(named, at, strict=True)}
        wishes[at] = wish(options, finder, chosen, named)
    found = Table(tuple(named), wishes)
    refuse_equal_weights(found)
    return found


def read_axes(options: CompareOptions, finder: Finder) -> list[Axis]:
    """The axes x, y, z; the places that are left are given to the prompts, then to base and tuned, then to one."""
    given = [getattr(options, f"{axis}_axis") for axis in AXES]
    read: list[Axis | None] = []
    problems: list[InputError] = []
    for text, flag in zip(given, FLAGS, strict=True):
        try:
            axis = axes.read(text, flag, options.prompt)
            read.append(all_checkpoints(axis, read, finder) if axis else None)
        except InputError as error:
            problems.append(error)
    raise_all(problems)
    names = [axis.name for axis in read if axis]
    rest = [axis for axis in unasked(options, finder, asked=bool(names)) if axis.name not in names]
    for index in (1, 0, 2):  # rows first: prompts are long
        if read[index] is None and rest:
            read[index] = rest.pop(0)
    if rest:
        fix = f"Leave an axis free, or put them on one: --z {rest[0].name}=..."
        raise InputError(f"no axis is left for the {len(rest[0])} {rest[0].name}s", where=f"--{rest[0].name}", fix=fix)
    found = [axis or one(flag) for axis, flag in zip(read, FLAGS, strict=True)]
    axes.refuse_clashes([axis for axis in found if len(axis) > 1 or axis.shown[0]])
    return found


def one(flag: str) -> Axis:
    """An axis along which nothing changes."""
    return Axis(flag, "", (None,), ("",))


def unasked(options: CompareOptions, finder: Finder, *, asked: bool) -> list[Axis]:
    """What fills free axes: several prompts always; if nothing was asked also base and tuned, or two seeds."""
    found: list[Axis] = []
    typed = "prompt" in options.model_fields_set
    several = len(options.prompt) > 1 or options.study is not None
    if (typed and several) or not (typed or asked):
        found.append(Axis("--y", "prompt", options.prompt, options.prompt))
    if not asked:
        both = (BASE, TUNED)
        seeds = (options.seed, options.seed + 1)
        shown = tuple(axes.heading("seed", seed) for seed in seeds)
        found.append(Axis("--x", "model", both, both) if finder.chosen.is_tuned else Axis("--x", "seed", seeds, shown))
    return found


def all_checkpoints(axis: Axis, before: Sequence[Axis | None], finder: Finder) -> Axis:
    """`checkpoint=all` spelled out."""
    if axis.name != "checkpoint" or "all" not in axis.values:
        return axis
    if len(axis) > 1:
        raise InputError("`all` stands alone", where=axis.flag, fix=f"Write {axis.flag} checkpoint=all.")
    steps = tuple(finder.checkpoints(""))
    return Axis(axis.flag, axis.name, steps, tuple(axes.heading(axis.name, step) for step in steps))


def wish(options: CompareOptions, finder: Finder, chosen: Mapping[str, Any], named: Sequence[Axis]) -> Wish:
    """The picture of one place. `<lora:NAME:WEIGHT>` in a prompt is laid over every model but `base`."""
    model = chosen.get("model", "")
    weights = finder.find(model, chosen.get("lora"), chosen.get("lora-weight"), chosen.get("checkpoint"))
    seed = chosen.get("seed", options.seed)
    template = chosen.get("prompt", options.prompt[0])
    prompt, template = worded(template, chosen, named, options, weights, seed)
    prompt, own = tags.parted(prompt)
    if model != BASE:
        weights = replace(weights, loras=(*weights.loras, *own))
    return Wish(
        weights=weights,
        prompt=prompt,
        seed=seed,
        steps=chosen.get("steps", options.steps),
        guidance_scale=chosen.get("guidance-scale", options.guidance_scale),
        scheduler=chosen.get("scheduler", options.scheduler),
        negative_prompt=chosen.get("negative-prompt", options.negative_prompt),
        width=options.width,
        height=options.height,
        template=template,
    )


def worded(
    template: str,
    chosen: Mapping[str, Any],
    named: Sequence[Axis],
    options: CompareOptions,
    weights: Weights,
    seed: int,
) -> tuple[str, str]:
    """A template with the axes' words, as one prompt; and the template if it is another. Raises InputError."""
    text = template
    searched = next((axis.values[0] for axis in named if axis.name == "replace"), None)
    if searched is not None:
        if searched not in text:
            raise InputError(f"{searched!r} is not in the prompt {text!r}", where="replace")
        text = text.replace(searched, chosen["replace"])
    if "trigger" in chosen:
        text = triggered(text, trigger_of(options, weights), chosen["trigger"])
    filled = {name: (value,) for name, value in chosen.items() if name in axes.slots_of([text])}
    found = templates.expand(text, filled, options.wildcards, seed)
    if len(found) != 1:
        what = f"{template!r} stands for {len(found)} prompts, and a cell shows one"
        raise InputError(what, where="--prompt", fix='Put the choices on an axis: --y "object=fridge,car".')
    return found[0], text if text != found[0] else ""


def trigger_of(options: CompareOptions, weights: Weights) -> str:
    """The word that calls the style: the sample creatures' for models tuned on pocket, else the thesis'."""
    return options.trigger or (CREATURE if weights.model == source.POCKET else POKEMON)


def triggered(prompt: str, word: str, with_it: bool) -> str:
    """A prompt with the trigger word or without: at {trigger}, where the word stands already, or after the article.

    "A calculator" -> "A Pokémon calculator"; "an apple" -> "a Pokémon apple".
    """
    if TRIGGER_SLOT.search(prompt):
        return TRIGGER_SLOT.sub(f" {word}" if with_it else "", prompt).strip()
    present = re.compile(rf"\b{re.escape(word)}\b\s*", re.IGNORECASE)
    if present.search(prompt):
        return prompt if with_it else agreed(present.sub("", prompt).strip())
    if not with_it:
        return prompt
    found = ARTICLE.match(prompt)
    return agreed(f"{found[0]}{word} {prompt[found.end() :]}") if found else f"{word} {prompt}"


def agreed(prompt: str) -> str:
    """`a apple` -> `an apple`, its capital kept."""
    found = ARTICLE.match(prompt)
    if not found or found[1].lower() == "the":
        return prompt
    rest = prompt[found.end() :]
    article = "an" if rest[:1].lower() in tuple("aeiou") else "a"
    return f"{article.capitalize() if found[1][0].isupper() else article} {rest}"


def refuse_equal_weights(found: Table) -> None:
    """Raise InputError where two models of an axis are one: their columns would be equal for no reason to be seen."""
    for index, axis in enumerate(found.axes):
        if axis.name not in ("model", "lora", "checkpoint"):
            continue
        seen: dict[tuple[Weights, ...], str] = {}
        for place, value in enumerate(axis.values):
            here = tuple(wish.weights for at, wish in found.wishes.items() if at[index] == place)
            first = seen.setdefault(here, str(value))
            if first != str(value):
                fix = "Name each once."
                raise InputError(f"{first!r} and {value!r} are the same weights", where=axis.flag, fix=fix)
