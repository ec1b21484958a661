"""The grid of a comparison: every combination of the axes as one image to generate.

An axis as typed: `steps=10,20,50`, `seed=1..4`, `model=base,runs/0003`, `type=water,fire`. Values are separated by
commas, or by `||` if they contain commas. A name that is not a setting fills in the `{name}` of the prompt.
"""

import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.errors import InputError, raise_all, suggest
from infer import prompts, schedulers
from infer.comparison.weights import BASE, TUNED, Weights, WeightsFinder
from infer.config import AXES, MAX_SEED, MAX_WEIGHT, SLOT_NAME, CompareOptions
from train.config import POCKET

FLAGS = tuple(f"--{axis}" for axis in AXES)
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_VALUES = 1000  # of one axis
SLOT = re.compile(r"\{\s*([A-Za-z][\w-]*)\s*\}")
SWITCH = {"on": True, "yes": True, "with": True, "off": False, "no": False, "without": False}
ARTICLE = re.compile(r"^(a|an|the)\s+", re.IGNORECASE)
TRIGGER_SLOT = re.compile(r"\s*\{\s*trigger\s*\}")
CREATURE, POKEMON = "creature", "Pokémon"
Position = tuple[int, ...]  # index on each axis, x first


# ---- axes


@dataclass(frozen=True)
class Axis:
    """flag: where it was given. name: a setting, or a slot of the prompt. headings: of the values."""

    flag: str
    name: str
    values: tuple[Any, ...]
    headings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def short_headings(self) -> list[str]:
        """Without the axis's name, for where that stands beside them."""
        return [text.removeprefix(f"{LABELS.get(self.name, self.name)} ") for text in self.headings]


def in_range(kind: type, low: float, high: float, allowed: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError(allowed)
        return value

    return parse


def parse_switch(text: str) -> bool:
    if text.lower() not in SWITCH:
        raise ValueError("on, off")
    return SWITCH[text.lower()]


def parse_checkpoint(text: str) -> str:
    if not (text.isdecimal() or text in ("best", "final", "all")):
        raise ValueError("an optimizer step (0 is the base), best, final, all")
    return str(int(text)) if text.isdecimal() else text


PARSERS: Mapping[str, Callable[[str], Any]] = {
    "model": str,
    "lora": str,
    "lora-weight": in_range(float, -MAX_WEIGHT, MAX_WEIGHT, f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}"),
    "checkpoint": parse_checkpoint,
    "seed": in_range(int, 0, MAX_SEED, f"0 to {MAX_SEED}"),
    "steps": in_range(int, 1, math.inf, "a whole number, 1 or more"),
    "guidance-scale": in_range(float, 0, sys.float_info.max, "a number, 0 or more"),
    "scheduler": schedulers.canonical_name,
    "prompt": str,
    "negative-prompt": str,
    "replace": str,
    "trigger": parse_switch,
}
ALIASES = {
    "models": "model", "loras": "lora", "weight": "lora-weight", "checkpoints": "checkpoint", "seeds": "seed",
    "cfg": "guidance-scale", "scale": "guidance-scale", "guidance": "guidance-scale", "cfg-scale": "guidance-scale",
    "sampler": "scheduler", "prompts": "prompt", "negative": "negative-prompt", "n": "negative-prompt",
    "sr": "replace", "prompt-sr": "replace", "num-inference-steps": "steps",
}  # fmt: skip
LABELS = {"guidance-scale": "guidance", "lora-weight": "weight", "lora": "LoRA", "negative-prompt": "not"}
UNLABELED = ("model", "prompt", "replace")  # their values need no name


def parse_axis(text: str, flag: str, prompts: Sequence[str]) -> Axis | None:
    """One axis; None for an empty flag. Raises InputError: unknown name, no values, a value given twice."""
    if not text.strip():
        return None
    word, equals, rest = text.partition("=")
    name = word.strip().lower().replace("_", "-")
    name = ALIASES.get(name, name)
    if name not in PARSERS:
        name = word.strip()
        slots = slots_of(prompts)
        if name not in slots:
            known = [*PARSERS, *sorted(slots)]
            fix = f'A word of the prompt in braces is an axis too: --prompt "a {{{name}}} fridge".' if name else None
            raise InputError(
                f"unknown axis {name!r}{suggest(name, known)}", where=flag, allowed=", ".join(known), fix=fix
            )
    values_given = [value.strip() for value in rest.split("||" if "||" in rest else ",")]
    if not equals or not all(values_given):
        what = f"the axis {name!r} has {'an empty value' if any(values_given) else 'no values'}"
        raise InputError(what, where=flag, fix=f'Write it as {flag} "{name}=one,two".')
    if not SLOT_NAME.fullmatch(name):
        raise InputError(f"invalid name {name!r}", where=flag)
    values = tuple(value for each in values_given for value in parse_values(name, each, flag))
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise InputError(f"the {name} {heading(name, twice)!r} is named twice", where=flag, fix="Name each once.")
    if name == "replace" and len(values) < 2:
        raise InputError("there is no replacement", where=flag, fix=f'Write {flag} "replace=fridge,car,cup".')
    return Axis(flag, name, values, tuple(heading(name, value) for value in values))


def parse_values(name: str, text: str, flag: str) -> list[Any]:
    """One value, or those of a range such as `1..4`. Raises InputError."""
    span = RANGE.fullmatch(text) if name in ("seed", "steps") else None
    if span:
        first, last = int(span[1]), int(span[2])
        if not first <= last < first + MAX_VALUES:
            raise InputError(f"{text!r} is not a range of at most {MAX_VALUES} numbers", where=flag)
        return [value for number in range(first, last + 1) for value in parse_values(name, str(number), flag)]
    try:
        return [PARSERS.get(name, str)(text)]
    except InputError as error:
        raise InputError(error.what, where=flag, allowed=error.allowed) from None
    except ValueError as error:
        allowed = "a number" if "could not convert" in str(error) or "invalid literal" in str(error) else str(error)
        raise InputError(f"invalid {name} {text!r}", where=flag, allowed=allowed) from None


def slots_of(prompts: Sequence[str]) -> list[str]:
    """The names in braces, in order."""
    return list(dict.fromkeys(name for prompt in prompts for name in SLOT.findall(prompt)))


def heading(name: str, value: Any) -> str:
    if name == "trigger":
        return "with trigger" if value else "without trigger"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if name in UNLABELED else f"{LABELS.get(name, name)} {text}"


# ---- images


@dataclass(frozen=True)
class CellRequest:
    """Everything that decides an image. None: the model's own."""

    weights: Weights
    prompt: str
    seed: int
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    template: str = ""


@dataclass(frozen=True)
class Grid:
    """The axes, x first, and the request of every position, in reading order: z, y, x."""

    axes: tuple[Axis, ...]
    requests: Mapping[Position, CellRequest]

    def place(self, at: Position) -> dict[str, str]:
        """The heading on each axis at a position."""
        return {axis.name: axis.headings[index] for axis, index in zip(self.axes, at, strict=True) if axis.name}


def build_grid(options: CompareOptions, finder: WeightsFinder) -> Grid:
    """Raises InputError: unknown or empty axes, too many images, two models that are the same."""
    axes = read_axes(options, finder)
    count = math.prod(map(len, axes))
    if count > options.max_cells:
        sizes = " x ".join(f"{len(axis)} ({axis.name})" for axis in axes if axis.name)
        fix = f"Shorten an axis, or pass --max-cells {count}."
        raise InputError(f"{sizes} = {count:,} images", where="--max-cells", allowed=options.max_cells, fix=fix)
    requests: dict[Position, CellRequest] = {}
    for reverse in itertools.product(*(range(len(axis)) for axis in reversed(axes))):
        at = reverse[::-1]
        values = {axis.name: axis.values[index] for axis, index in zip(axes, at, strict=True)}
        requests[at] = build_request(options, finder, values, axes)
    grid = Grid(tuple(axes), requests)
    check_equal_weights(grid)
    return grid


def read_axes(options: CompareOptions, finder: WeightsFinder) -> list[Axis]:
    """The axes x, y, z. Free ones go to several prompts, then to base and tuned."""
    axes: list[Axis | None] = []
    problems: list[InputError] = []
    for text, flag in zip((options.x_axis, options.y_axis, options.z_axis), FLAGS, strict=True):
        try:
            axis = parse_axis(text, flag, options.prompt)
            axes.append(expand_checkpoints(axis, finder) if axis else None)
        except InputError as error:
            problems.append(error)
    raise_all(problems)
    names = [axis.name for axis in axes if axis]
    rest = [axis for axis in default_axes(options, finder, any_given=bool(names)) if axis.name not in names]
    for index in (1, 0, 2):  # rows first: prompts are long
        if axes[index] is None and rest:
            axes[index] = rest.pop(0)
    if rest:
        fix = f"Leave an axis free, or put them on one: --z {rest[0].name}=..."
        what = f"there is no free axis for the {len(rest[0])} {rest[0].name}s"
        raise InputError(what, where=f"--{rest[0].name}", fix=fix)
    for place, axis in enumerate(axes):
        first = next((other for other in axes[:place] if axis and other and other.name == axis.name), None)
        if axis and first:
            raise InputError(f"the axis {axis.name!r} is already on {first.flag}", where=axis.flag)
    return [axis or Axis(flag, "", (None,), ("",)) for axis, flag in zip(axes, FLAGS, strict=True)]


def default_axes(options: CompareOptions, finder: WeightsFinder, *, any_given: bool) -> list[Axis]:
    """What fills free axes: several prompts always; if no axis is given also base and tuned, or two seeds."""
    axes: list[Axis] = []
    has_prompt = "prompt" in options.model_fields_set
    several = len(options.prompt) > 1 or options.study is not None
    if (has_prompt and several) or not (has_prompt or any_given):
        axes.append(Axis("--y", "prompt", options.prompt, options.prompt))
    if not any_given and finder.chosen.is_tuned:
        axes.append(Axis("--x", "model", (BASE, TUNED), (BASE, TUNED)))
    elif not any_given:
        seeds = (options.seed, options.seed + 1)
        axes.append(Axis("--x", "seed", seeds, tuple(heading("seed", seed) for seed in seeds)))
    return axes


def expand_checkpoints(axis: Axis, finder: WeightsFinder) -> Axis:
    """Spell out `checkpoint=all`."""
    if axis.name != "checkpoint" or "all" not in axis.values:
        return axis
    if len(axis) > 1:
        raise InputError("`all` cannot be combined", where=axis.flag, fix=f"Write {axis.flag} checkpoint=all.")
    steps = tuple(finder.checkpoints(""))
    return Axis(axis.flag, axis.name, steps, tuple(heading(axis.name, step) for step in steps))


def build_request(
    options: CompareOptions, finder: WeightsFinder, values: Mapping[str, Any], axes: Sequence[Axis] = ()
) -> CellRequest:
    """The image at some values of the axes. `<lora:NAME:WEIGHT>` in a prompt applies to every model but `base`."""
    model, seed = values.get("model", ""), values.get("seed", options.seed)
    weights = finder.find(model, values.get("lora"), values.get("lora-weight"), values.get("checkpoint"))
    prompt, template = fill_prompt(options, values, axes, weights, seed)
    prompt, loras = prompts.split_lora_tags(prompt)
    if model != BASE:
        weights = replace(weights, loras=(*weights.loras, *loras))
    return CellRequest(
        weights, prompt, seed,
        steps=values.get("steps", options.steps),
        guidance_scale=values.get("guidance-scale", options.guidance_scale),
        scheduler=values.get("scheduler", options.scheduler),
        negative_prompt=values.get("negative-prompt", options.negative_prompt),
        width=options.width, height=options.height, template=template,
    )  # fmt: skip


def fill_prompt(
    options: CompareOptions, values: Mapping[str, Any], axes: Sequence[Axis], weights: Weights, seed: int
) -> tuple[str, str]:
    """The prompt at some values, and its template if that is different. Raises InputError."""
    template = text = values.get("prompt", options.prompt[0])
    if "replace" in values:
        searched = next(axis.values[0] for axis in axes if axis.name == "replace")
        if searched not in text:
            raise InputError(f"{searched!r} is not in the prompt {text!r}", where="replace")
        text = text.replace(searched, values["replace"])
    if "trigger" in values:
        text = with_trigger(text, trigger_word(options, weights), values["trigger"])
    slots = {name: (value,) for name, value in values.items() if name in slots_of([text])}
    texts = prompts.expand_template(text, slots, options.wildcards, seed)
    if len(texts) != 1:
        what = f"{template!r} expands to {len(texts)} prompts, but an image has one"
        raise InputError(what, where="--prompt", fix='Put the choices on an axis: --y "object=fridge,car".')
    return texts[0], text if text != texts[0] else ""


def trigger_word(options: CompareOptions, weights: Weights) -> str:
    """The style's trigger word: the sample set's for models tuned on pocket, else the thesis's."""
    return options.trigger or (CREATURE if weights.model == POCKET else POKEMON)


def with_trigger(prompt: str, word: str, on: bool) -> str:
    """A prompt with or without the trigger word: at {trigger}, where the word is already, or after the article.

    "A calculator" -> "A Pokémon calculator"; "an apple" -> "a Pokémon apple".
    """
    if TRIGGER_SLOT.search(prompt):
        return TRIGGER_SLOT.sub(f" {word}" if on else "", prompt).strip()
    present = re.compile(rf"\b{re.escape(word)}\b\s*", re.IGNORECASE)
    if present.search(prompt):
        return prompt if on else fix_article(present.sub("", prompt).strip())
    if not on:
        return prompt
    article = ARTICLE.match(prompt)
    return fix_article(f"{article[0]}{word} {prompt[article.end() :]}") if article else f"{word} {prompt}"


def fix_article(prompt: str) -> str:
    """`a apple` -> `an apple`, keeping the capital."""
    found = ARTICLE.match(prompt)
    if not found or found[1].lower() == "the":
        return prompt
    rest = prompt[found.end() :]
    article = "an" if rest[:1].lower() in tuple("aeiou") else "a"
    return f"{article.capitalize() if found[1][0].isupper() else article} {rest}"


def check_equal_weights(grid: Grid) -> None:
    """Raise InputError if two values of an axis are the same weights: their columns would be equal."""
    for index, axis in enumerate(grid.axes):
        if axis.name not in ("model", "lora", "checkpoint"):
            continue
        seen: dict[tuple[Weights, ...], str] = {}
        for place, value in enumerate(axis.values):
            weights = tuple(request.weights for at, request in grid.requests.items() if at[index] == place)
            first = seen.setdefault(weights, str(value))
            if first != str(value):
                what = f"{first!r} and {value!r} are the same weights"
                raise InputError(what, where=axis.flag, fix="Name each once.")
