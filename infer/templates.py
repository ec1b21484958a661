"""Prompt templates: `{a|b}` and `__name__` are chosen at random, `{name}` is filled in from --grid.

    {water|fire}          one of them            {3::water|1::fire}   water three times as often
    {2$$wings|horns|fins} two different ones, joined by ", "          {2$$ and $$a|b|c} joined by " and "
    {e$$a|b}              each of them, one image after the other (every combination, if there are several)
    __colour__            a line of wildcards/colour.txt; __animals/*__ a line of any file there
    {type}                a value of --grid "type=water,fire;object=fridge,car": every combination is generated
    \\{ \\} \\| \\_           the characters themselves

Choices nest. A choice is a function of the image's seed and of its position in the template, so --seed 45 alone chooses
as the fourth image of --seed 42 does. The syntax is that of sd-dynamic-prompts and kohya's gen_img.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data import rng
from data.errors import InputError, suggest
from infer.config import SLOT_NAME

ESCAPES = {"{": "\ue000", "}": "\ue001", "|": "\ue002", "_": "\ue003", "\\": "\ue004"}  # private use area
TOKEN = re.compile(r"__(?P<wildcard>[^\s_](?:[^_]|_(?!_))*?)__|(?P<brace>[{}|])")
COUNT = re.compile(r"(?P<count>e|\d+)\$\$(?:(?P<joint>[^$]*)\$\$)?")
WEIGHT = re.compile(r"\s*(?P<weight>\d+(?:\.\d+)?)::")
MAX_PROMPTS = 100_000  # of one template


@dataclass(frozen=True)
class PlainText:
    text: str


@dataclass(frozen=True)
class Slot:
    """`{name}`: filled in from --grid."""

    name: str


@dataclass(frozen=True)
class Choice:
    """`{a|b}` or `__name__`: `count` different options; count 0: each of them in turn."""

    options: tuple[tuple[TemplatePart, ...], ...]
    weights: tuple[float, ...]
    count: int = 1
    joint: str = ", "


TemplatePart = PlainText | Slot | Choice


def expand_template(template: str, axes: Mapping[str, Sequence[str]], wildcards: Path, seed: int) -> list[str]:
    """Every prompt that a template stands for, for an image of this seed; [template] if it chooses nothing.

    axes: name -> values, see infer.config.parse_grid; unused ones are ignored. Raises InputError.
    """
    parts = parse_template(template, wildcards)
    names = list(dict.fromkeys(slot_names(parts)))
    for name in names:
        if name not in axes:
            fix = f'Add --grid "{name}=one,two", or write \\{{{name}\\}} for the braces themselves.'
            what = f"{{{name}}} in {template!r} is not in --grid{suggest(name, axes)}"
            raise InputError(what, where="--prompt", fix=fix)
    combinations([axes[name] for name in names], "")  # not too many?
    prompts: list[str] = []
    for values in itertools.product(*(axes[name] for name in names)):
        render = Renderer(template, seed, dict(zip(names, values, strict=True)))
        prompts += map(restore_escapes, render.parts(parts))
    return prompts if is_plain_text(parts) else [" ".join(text.split()) for text in prompts]


class Renderer:
    """Texts of a template's parts; the choices are counted in the order in which they are made."""

    def __init__(self, template: str, seed: int, values: Mapping[str, str]) -> None:
        self.template, self.seed, self.values = template, seed, values
        self.choices = itertools.count()

    def parts(self, parts: Sequence[TemplatePart]) -> list[str]:
        """One text, or more where a choice stands for each of its options. Raises InputError."""
        return combinations([self.part(part) for part in parts], "")

    def part(self, part: TemplatePart) -> list[str]:
        match part:
            case PlainText(text):
                return [text]
            case Slot(name):
                return [self.values[name]]
            case Choice(options, count=0):
                return [text for option in options for text in self.parts(option)]
            case Choice(joint=joint):
                return combinations([self.parts(option) for option in self.pick(part)], joint)

    def pick(self, choice: Choice) -> list[tuple[TemplatePart, ...]]:
        """`count` different options, each in proportion to its weight among those that are left."""
        left = list(zip(choice.options, choice.weights, strict=True))
        chosen: list[tuple[TemplatePart, ...]] = []
        for _ in range(choice.count):
            uniform = rng.uniform("prompt template", self.template, self.seed, next(self.choices))
            place = uniform * sum(weight for _, weight in left)
            sums = list(itertools.accumulate(weight for _, weight in left))
            index = next((index for index, total in enumerate(sums) if place < total), len(left) - 1)
            chosen.append(left.pop(index)[0])
        return chosen


def combinations(texts: Sequence[Sequence[str]], joint: str) -> list[str]:
    """Raises InputError for more than MAX_PROMPTS."""
    if math.prod(map(len, texts)) > MAX_PROMPTS:
        what = f"a template stands for more than {MAX_PROMPTS:,} prompts"
        raise InputError(what, where="--prompt", fix="Use fewer options.")
    return [joint.join(pieces) for pieces in itertools.product(*texts)]


def slot_names(parts: Sequence[TemplatePart]) -> Iterator[str]:
    """The names of all slots, also within choices, in the order of the text."""
    for part in parts:
        if isinstance(part, Slot):
            yield part.name
        elif isinstance(part, Choice):
            for option in part.options:
                yield from slot_names(option)


# ---- parsing


@lru_cache(maxsize=1024)
def parse_template(template: str, wildcards: Path, within: tuple[str, ...] = ()) -> tuple[TemplatePart, ...]:
    """A template as parts. within: the wildcard files that led here. Raises InputError."""
    text = re.sub(r"\\([{}|_\\])", lambda match: ESCAPES[match[1]], template)
    stack: list[list[list[TemplatePart]]] = [[[]]]  # for each open brace its options so far
    end = 0
    for token in TOKEN.finditer(text):
        stack[-1][-1].append(PlainText(text[end : token.start()]))
        end, sign, is_open = token.end(), token["brace"], len(stack) > 1
        if token["wildcard"]:
            stack[-1][-1].append(read_wildcard(restore_escapes(token["wildcard"]), wildcards, within))
        elif sign == "{":
            stack.append([[]])
        elif sign == "|" and is_open:
            stack[-1].append([])
        elif sign == "}" and is_open:
            options = stack.pop()
            stack[-1][-1].append(close_brace(options, template))
        else:
            stack[-1][-1].append(PlainText(token.group()))
    if len(stack) > 1:
        raise InputError(f"a brace in {template!r} is not closed", where="--prompt", fix="Close it, or write \\{.")
    return (*stack[0][0], PlainText(text[end:]))


def close_brace(options: list[list[TemplatePart]], template: str) -> TemplatePart:
    """What is between two braces: a slot, or a choice with its count and weights."""
    if len(options) == 1 and is_plain_text(options[0]):
        name = "".join(part.text for part in options[0] if isinstance(part, PlainText)).strip()
        if SLOT_NAME.fullmatch(name):
            return Slot(name)
    count, joint = 1, ", "
    if leading := COUNT.match(leading_text(options[0])):
        count = 0 if leading["count"] == "e" else int(leading["count"])
        joint = ", " if leading["joint"] is None else leading["joint"]
        options[0] = drop_leading(options[0], leading.end())
    return weighted_choice(options, count, joint, template)


def weighted_choice(options: Sequence[Sequence[TemplatePart]], count: int, joint: str, template: str) -> Choice:
    """Of options that may begin with a weight, as in `3::water`. Raises InputError."""
    matches = [WEIGHT.match(leading_text(option)) for option in options]
    weights = tuple(float(match["weight"]) if match else 1.0 for match in matches)
    if count > len(options) or not sum(weights) > 0:
        what = f"{template!r} asks for {count} of {len(options)} options" if sum(weights) else "all weights are 0"
        raise InputError(what, where="--prompt", allowed=f"0 to {len(options)} different ones")
    pairs = zip(options, matches, strict=True)
    return Choice(tuple(tuple(drop_leading(o, m.end()) if m else o) for o, m in pairs), weights, count, joint)


def is_plain_text(option: Sequence[TemplatePart]) -> bool:
    return all(isinstance(part, PlainText) for part in option)


def leading_text(option: Sequence[TemplatePart]) -> str:
    return option[0].text if option and isinstance(option[0], PlainText) else ""


def drop_leading(option: Sequence[TemplatePart], count: int) -> list[TemplatePart]:
    return [PlainText(leading_text(option)[count:]), *option[1:]]


def read_wildcard(name: str, wildcards: Path, within: tuple[str, ...]) -> Choice:
    """The lines of the files that a wildcard names. Raises InputError."""
    if name in within:
        raise InputError(f"__{name}__ contains itself: {' > '.join((*within, name))}", where=wildcards)
    root = wildcards.resolve()
    files = sorted(path for path in wildcards.glob(f"{name}.txt") if path.resolve().is_relative_to(root))
    if not files:
        known = sorted(str(path.relative_to(wildcards).with_suffix("")) for path in wildcards.rglob("*.txt"))
        allowed = ", ".join(known[:20]) or f"nothing yet: put lines into {wildcards / f'{name}.txt'}"
        raise InputError(f"there is no wildcard __{name}__{suggest(name, known)}", where=wildcards, allowed=allowed)
    lines: list[str] = []
    for path in files:
        try:
            lines += map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())
        except (UnicodeDecodeError, OSError) as error:
            raise InputError("cannot be read as UTF-8 text", where=path) from error
    options = [line for line in lines if line and not line.startswith("#")]
    if not options:
        raise InputError(f"__{name}__ has no lines", where=files[0])
    parts = [parse_template(option, wildcards, (*within, name)) for option in options]
    return weighted_choice(parts, 1, ", ", f"__{name}__")


def escape_template(text: str) -> str:
    """The template that stands for exactly this text."""
    return re.sub(r"([{}|_\\])", r"\\\1", text)


def restore_escapes(text: str) -> str:
    for sign, stand_in in ESCAPES.items():
        text = text.replace(stand_in, sign)
    return text
