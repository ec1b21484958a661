"""Prompt templates: `{a|b}` and `__name__` are chosen, `{name}` is filled in from --grid.

    {water|fire}          one of them            {3::water|1::fire}   water three times as often
    {2$$wings|horns|fins} two different ones, joined by ", "          {2$$ and $$a|b|c} joined by " and "
    {e$$a|b}              each of them, one picture after the other (every combination, if there are several)
    __colour__            a line of wildcards/colour.txt; __animals/*__ a line of any file there
    {type}                a value of --grid "type=water,fire;object=fridge,car": every combination is drawn
    \\{ \\} \\| \\_           the signs themselves

Choices nest. What is chosen is a function of the picture's seed and of the place in the template, so --seed 45 alone
chooses as the fourth picture of --seed 42 does. The grammar is that of sd-dynamic-prompts and kohya's gen_img.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data import rng
from data.errors import InputError, suggest

ESCAPES = {"{": "\ue000", "}": "\ue001", "|": "\ue002", "_": "\ue003", "\\": "\ue004"}  # private use: never typed
TOKEN = re.compile(r"__(?P<wildcard>[^\s_](?:[^_]|_(?!_))*?)__|(?P<brace>[{}|])")
COUNT = re.compile(r"(?P<count>e|\d+)\$\$(?:(?P<joint>[^$]*)\$\$)?")
WEIGHT = re.compile(r"\s*(?P<weight>\d+(?:\.\d+)?)::")
SLOT_NAME = re.compile(r"[A-Za-z][\w-]*")
MAX_PROMPTS = 100_000  # prompts of one template: more is a slip, not a wish


@dataclass(frozen=True)
class PlainText:
    """Text as it stands."""

    text: str


@dataclass(frozen=True)
class Slot:
    """`{name}`: filled in from --grid."""

    name: str


@dataclass(frozen=True)
class Choice:
    """`{a|b}` or `__name__`: `count` of the options, all different; count 0: each of them in turn."""

    options: tuple[tuple[TemplatePart, ...], ...]
    weights: tuple[float, ...]
    count: int = 1
    joint: str = ", "


TemplatePart = PlainText | Slot | Choice
UniformDraw = Callable[[int], float]  # the number of a choice in its template -> [0, 1)


def expand_template(template: str, axes: Mapping[str, Sequence[str]], wildcards: Path, seed: int) -> list[str]:
    """Every prompt that a template stands for, for a picture of this seed; [template] if it chooses nothing.

    axes: name -> values, see grid(). Axes that the template does not name are left out. Raises InputError.
    """
    parts = parse_template(template, wildcards)
    named = list(dict.fromkeys(slot_names(parts)))
    for name in named:
        if name not in axes:
            hint = suggest(name, axes)
            fix = f'Say what it stands for: --grid "{name}=one,two", or write \\{{{name}\\}} for the braces themselves.'
            raise InputError(f"{{{name}}} in {template!r} is not on the grid{hint}", where="--prompt", fix=fix)
    combinations([list(axes[name]) for name in named], "")  # not too many?
    filled = [dict(zip(named, values, strict=True)) for values in itertools.product(*(axes[name] for name in named))]
    draw = uniform_draw(template, seed)
    found = [
        restore_escapes(text) for values in filled for text in render_parts(parts, values, draw, itertools.count())
    ]
    return found if is_plain_text(parts) else [" ".join(text.split()) for text in found]


def uniform_draw(template: str, seed: int) -> UniformDraw:
    """Uniform numbers that follow from the template, the seed and the number of the choice."""
    return lambda number: rng.uniform("prompt template", template, seed, number)


def render_parts(
    parts: Sequence[TemplatePart], values: Mapping[str, str], draw: UniformDraw, numbers: Iterator[int]
) -> list[str]:
    """The texts of parts in a row: one, unless something in them stands for each of its options. Raises InputError."""
    return combinations([render_part(part, values, draw, numbers) for part in parts], "")


def combinations(found: Sequence[list[str]], joint: str) -> list[str]:
    """Every combination. Raises InputError."""
    if math.prod(map(len, found)) > MAX_PROMPTS:
        raise InputError(
            f"a template stands for more than {MAX_PROMPTS:,} prompts", where="--prompt", fix="Name fewer."
        )
    return [joint.join(pieces) for pieces in itertools.product(*found)]


def render_part(part: TemplatePart, values: Mapping[str, str], draw: UniformDraw, numbers: Iterator[int]) -> list[str]:
    match part:
        case PlainText(text):
            return [text]
        case Slot(name):
            return [values[name]]
        case Choice(options, count=0):
            return [text for option in options for text in render_parts(option, values, draw, numbers)]
        case Choice(options, weights, count, joint):
            chosen = pick_options(options, weights, count, draw, numbers)
            return combinations([render_parts(option, values, draw, numbers) for option in chosen], joint)


def pick_options(
    options: Sequence[tuple[TemplatePart, ...]],
    weights: Sequence[float],
    count: int,
    draw: UniformDraw,
    numbers: Iterator[int],
) -> list[tuple[TemplatePart, ...]]:
    """`count` different options, each drawn in proportion to its weight among those that are left."""
    left = list(zip(options, weights, strict=True))
    chosen: list[tuple[TemplatePart, ...]] = []
    for _ in range(count):
        place = draw(next(numbers)) * sum(weight for _, weight in left)
        sums = list(itertools.accumulate(weight for _, weight in left))
        index = next((index for index, total in enumerate(sums) if place < total), len(left) - 1)
        chosen.append(left.pop(index)[0])
    return chosen


def slot_names(parts: Sequence[TemplatePart]) -> Iterator[str]:
    """The names of all slots, also those within choices, in the order of the text."""
    for part in parts:
        if isinstance(part, Slot):
            yield part.name
        elif isinstance(part, Choice):
            for option in part.options:
                yield from slot_names(option)


# ---- reading


@lru_cache(maxsize=1024)
def parse_template(template: str, wildcards: Path, within: tuple[str, ...] = ()) -> tuple[TemplatePart, ...]:
    """A template as parts. within: the wildcard files that led here. Raises InputError."""
    text = hide_escapes(template)
    stack: list[list[list[TemplatePart]]] = [[[]]]  # open braces, of which each has its options so far
    opened: list[int] = []
    end = 0
    for found in TOKEN.finditer(text):
        stack[-1][-1].append(PlainText(text[end : found.start()]))
        end, sign = found.end(), found["brace"]
        if found["wildcard"]:
            stack[-1][-1].append(read_wildcard(restore_escapes(found["wildcard"]), wildcards, within))
        elif sign == "{":
            stack.append([[]])
            opened.append(found.start())
        elif sign == "|" and opened:
            stack[-1].append([])
        elif sign == "}" and opened:
            options = stack.pop()
            opened.pop()
            stack[-1][-1].append(close_brace(options, template))
        else:
            stack[-1][-1].append(PlainText(found.group()))
    if opened:
        raise InputError(f"a brace of {template!r} is not closed", where="--prompt", fix="Close it, or write \\{.")
    (parts,) = stack[0]
    return (*parts, PlainText(text[end:]))


def close_brace(options: list[list[TemplatePart]], template: str) -> TemplatePart:
    """What stood between two braces: a slot, or a choice with its count and weights."""
    first = plain_text(options[0])
    if len(options) == 1 and first is not None and SLOT_NAME.fullmatch(first.strip()):
        return Slot(first.strip())
    count, joint = 1, ", "
    if leading := COUNT.match(leading_text(options[0])):
        count = 0 if leading["count"] == "e" else int(leading["count"])
        joint = ", " if leading["joint"] is None else leading["joint"]
        options[0] = drop_leading(options[0], leading.end())
    weights = [WEIGHT.match(leading_text(option)) for option in options]
    cut = [
        drop_leading(option, found.end()) if found else option for option, found in zip(options, weights, strict=True)
    ]
    numbers = tuple(float(found["weight"]) if found else 1.0 for found in weights)
    if count > len(options) or not sum(numbers) > 0:
        what = f"{template!r} asks for {count} of {len(options)} options" if sum(numbers) else "all weights are 0"
        raise InputError(what, where="--prompt", allowed=f"0 to {len(options)} different ones")
    return Choice(tuple(map(tuple, cut)), numbers, count, joint)


def plain_text(option: Sequence[TemplatePart]) -> str | None:
    """The text of an option that is nothing but words."""
    return "".join(part.text for part in option if isinstance(part, PlainText)) if is_plain_text(option) else None


def is_plain_text(option: Sequence[TemplatePart]) -> bool:
    return all(isinstance(part, PlainText) for part in option)


def leading_text(option: Sequence[TemplatePart]) -> str:
    return option[0].text if option and isinstance(option[0], PlainText) else ""


def drop_leading(option: list[TemplatePart], count: int) -> list[TemplatePart]:
    return [PlainText(leading_text(option)[count:]), *option[1:]]


def read_wildcard(name: str, wildcards: Path, within: tuple[str, ...]) -> Choice:
    """The lines of the files that a wildcard names. Raises InputError."""
    if name in within:
        raise InputError(f"__{name}__ contains itself: {' > '.join((*within, name))}", where=wildcards)
    root = wildcards.resolve()
    files = sorted(path for path in wildcards.glob(f"{name}.txt") if path.resolve().is_relative_to(root))
    if not files:
        there = sorted(str(path.relative_to(wildcards).with_suffix("")) for path in wildcards.rglob("*.txt"))
        allowed = ", ".join(there[:20]) or f"nothing yet: put lines into {wildcards / f'{name}.txt'}"
        raise InputError(f"there is no wildcard __{name}__{suggest(name, there)}", where=wildcards, allowed=allowed)
    lines = [line.strip() for path in files for line in read_lines(path)]
    options = [line for line in lines if line and not line.startswith("#")]
    if not options:
        raise InputError(f"__{name}__ has no lines", where=files[0])
    weights = [WEIGHT.match(option) for option in options]
    cut = [option[found.end() :] if found else option for option, found in zip(options, weights, strict=True)]
    numbers = tuple(float(found["weight"]) if found else 1.0 for found in weights)
    return Choice(tuple(parse_template(option, wildcards, (*within, name)) for option in cut), numbers)


def read_lines(path: Path) -> list[str]:
    """Raises InputError."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError("cannot be read as UTF-8 text", where=path) from error


def escape_template(text: str) -> str:
    """The template that stands for exactly this text."""
    return re.sub(r"([{}|_\\])", r"\\\1", text)


def hide_escapes(text: str) -> str:
    return re.sub(r"\\([{}|_\\])", lambda found: ESCAPES[found[1]], text)


def restore_escapes(text: str) -> str:
    for sign, stand_in in ESCAPES.items():
        text = text.replace(stand_in, sign)
    return text


# ---- the grid


def parse_grid(text: str) -> dict[str, tuple[str, ...]]:
    """`type=water,fire;object=fridge,car` as name -> values; `||` instead of commas where values have commas."""
    axes: dict[str, tuple[str, ...]] = {}
    for axis in filter(str.strip, text.split(";")):
        name, equals, values = axis.partition("=")
        name = name.strip()
        given = tuple(value.strip() for value in values.split("||" if "||" in values else ","))
        if not equals or not SLOT_NAME.fullmatch(name) or not all(given):
            fix = 'Write it as --grid "type=water,fire;object=fridge,car".'
            raise InputError(f"{axis.strip()!r} is not a name with its values", where="--grid", fix=fix)
        if name in axes or len(set(given)) < len(given):
            raise InputError(f"{axis.strip()!r} is on the grid twice", where="--grid")
        axes[name] = given
    return axes
