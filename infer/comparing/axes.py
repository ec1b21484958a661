"""The axes of a comparison as they are typed: `steps=10,20,50`, `seed=1..4`, `model=base,runs/0003`, `type=water,fire`.

Values are parted by commas, or by `||` where they hold commas themselves. A name that is no setting fills in the
`{name}` of the prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import InputError, suggest
from infer import schedulers
from infer.config import HIGHEST_SEED, HIGHEST_WEIGHT
from infer.templates import NAME

RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_VALUES = 1000  # of one axis
SLOT = re.compile(r"\{\s*([A-Za-z][\w-]*)\s*\}")
NOTHING = "none"  # a LoRA axis' value: without any


@dataclass(frozen=True)
class Axis:
    """flag: where it was said. name: a setting, or a slot of the prompt. values: what it takes; shown: as headings."""

    flag: str
    name: str
    values: tuple[Any, ...]
    shown: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)


def seed(text: str) -> int:
    number = int(text)
    if not 0 <= number <= HIGHEST_SEED:
        raise ValueError(f"a seed from 0 to {HIGHEST_SEED}")
    return number


def steps(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("a whole number from 1 on")
    return number


def guidance(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError("a number from 0 on")
    return number


def weight(text: str) -> float:
    number = float(text)
    if not abs(number) <= HIGHEST_WEIGHT:
        raise ValueError(f"a number from -{HIGHEST_WEIGHT:g} to {HIGHEST_WEIGHT:g}")
    return number


def switch(text: str) -> bool:
    words = {"on": True, "yes": True, "with": True, "off": False, "no": False, "without": False}
    if text.lower() not in words:
        raise ValueError("on, off")
    return words[text.lower()]


def checkpoint(text: str) -> str:
    if not (text.isdecimal() or text in ("best", "final", "all")):
        raise ValueError("a number of optimiser steps (0 is the base), best, final, all")
    return str(int(text)) if text.isdecimal() else text


READERS: Mapping[str, Callable[[str], Any]] = {
    "model": str,
    "lora": str,
    "lora-weight": weight,
    "checkpoint": checkpoint,
    "seed": seed,
    "steps": steps,
    "guidance-scale": guidance,
    "scheduler": schedulers.canonical,
    "prompt": str,
    "negative-prompt": str,
    "replace": str,
    "trigger": switch,
}
ALSO = {
    "models": "model", "loras": "lora", "weight": "lora-weight", "checkpoints": "checkpoint", "seeds": "seed",
    "cfg": "guidance-scale", "scale": "guidance-scale", "guidance": "guidance-scale", "cfg-scale": "guidance-scale",
    "sampler": "scheduler", "prompts": "prompt", "negative": "negative-prompt", "n": "negative-prompt",
    "sr": "replace", "prompt-sr": "replace", "num-inference-steps": "steps",
}  # fmt: skip
LABELS = {"guidance-scale": "guidance", "lora-weight": "weight", "lora": "LoRA", "negative-prompt": "not"}
BARE = ("model", "prompt", "replace")  # whose values speak for themselves


def read(text: str, flag: str, prompts: Sequence[str]) -> Axis | None:
    """One axis; None for an empty flag. Raises InputError: unknown name, no values, a value that is said twice."""
    if not text.strip():
        return None
    word, equals, rest = text.partition("=")
    name = word.strip().lower().replace("_", "-")
    name = ALSO.get(name, name)
    slots = slots_of(prompts)
    if name not in READERS:
        name = word.strip() if word.strip() in slots else unknown(word.strip(), flag, slots)
    given = [value.strip() for value in rest.split("||" if "||" in rest else ",")]
    if not equals or not all(given):
        fix = f'Write it as {flag} "{name}=one,two".'
        raise InputError(
            f"the axis {name!r} has {'an empty value' if any(given) else 'no values'}", where=flag, fix=fix
        )
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name", where=flag)
    values = tuple(value for each in given for value in spread(name, each, flag))
    refuse_repeats(name, values, flag)
    if name == "replace" and len(values) < 2:
        raise InputError("nothing to replace it with", where=flag, fix=f'Write {flag} "replace=fridge,car,cup".')
    return Axis(flag, name, values, tuple(heading(name, value) for value in values))


def spread(name: str, text: str, flag: str) -> list[Any]:
    """One value as it is meant; `1..4` is four of them. Raises InputError."""
    found = RANGE.fullmatch(text) if name in ("seed", "steps") else None
    if found:
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + MOST_VALUES:
            raise InputError(f"{text!r} is no range of at most {MOST_VALUES} numbers", where=flag)
        return [value for number in range(first, last + 1) for value in spread(name, str(number), flag)]
    try:
        return [READERS.get(name, str)(text)]
    except InputError as error:
        raise InputError(error.what, where=flag, allowed=error.allowed) from None
    except ValueError as error:
        allowed = "a number" if "could not convert" in str(error) or "invalid literal" in str(error) else str(error)
        raise InputError(f"{name} {text!r} is not allowed", where=flag, allowed=allowed) from None


def refuse_repeats(name: str, values: Sequence[Any], flag: str) -> None:
    twice = next((value for value in values if list(values).count(value) > 1), None)
    if twice is not None:
        raise InputError(f"the {name} {heading(name, twice)!r} is named twice", where=flag, fix="Name each once.")


def unknown(name: str, flag: str, slots: Iterable[str]) -> str:
    there = [*READERS, *sorted(slots)]
    fix = f'A word of the prompt in braces is an axis too: --prompt "a {{{name}}} fridge".' if name else None
    raise InputError(f"unknown axis {name!r}{suggest(name, there)}", where=flag, allowed=", ".join(there), fix=fix)


def slots_of(prompts: Sequence[str]) -> list[str]:
    """The names in braces in prompts, in the order they come."""
    return list(dict.fromkeys(name for prompt in prompts for name in SLOT.findall(prompt)))


def heading(name: str, value: Any) -> str:
    """A value over its column."""
    if name == "trigger":
        return "with trigger" if value else "without trigger"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if name in BARE else f"{LABELS.get(name, name)} {text}"


def refuse_clashes(axes: Sequence[Axis]) -> None:
    """Raise InputError when two axes turn the same thing."""
    for number, axis in enumerate(axes):
        first = next((other for other in axes[:number] if other.name == axis.name), None)
        if first is not None:
            raise InputError(f"the axis {axis.name!r} is on {first.flag} already", where=axis.flag)
