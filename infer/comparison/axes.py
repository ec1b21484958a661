"""The axes of a comparison as typed: `steps=10,20,50`, `seed=1..4`, `model=base,runs/0003`, `type=water,fire`.

Values are separated by commas, or by `||` if they contain commas. A name that is not a setting fills in the `{name}` of
the prompt.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import InputError, suggest
from infer import schedulers
from infer.config import MAX_SEED, MAX_WEIGHT, SLOT_NAME

RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_VALUES = 1000  # of one axis
SLOT = re.compile(r"\{\s*([A-Za-z][\w-]*)\s*\}")
NO_LORA = "none"  # a value of the axis `lora`
SWITCH = {"on": True, "yes": True, "with": True, "off": False, "no": False, "without": False}


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


def check_clashes(axes: Sequence[Axis]) -> None:
    """Raise InputError when two axes change the same setting."""
    for number, axis in enumerate(axes):
        first = next((other for other in axes[:number] if other.name == axis.name), None)
        if first is not None:
            raise InputError(f"the axis {axis.name!r} is already on {first.flag}", where=axis.flag)
