"""From what a page or a client asks for to the options of generate.py, with the bounds of what a stranger may ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from data.errors import InputError, raise_all
from data.options import explain
from infer.config import GenerateOptions
from infer.source import POCKET
from infer.studios.weights import refuse_paths

MOST_PICTURES = 16  # of an order
MOST_STEPS = 150
MOST_LETTERS = 4000  # of a prompt
HIGHEST_GUIDANCE = 30.0
MOST_AREA = 4  # times the number of pixels that the model was trained at
POCKET_GUIDANCE = 4.0  # the embedded base's pictures are clearest there (LOG.md)
GUIDANCE = 7.5
LABELS = {
    "--prompt": "Prompt", "--negative-prompt": "Negative prompt", "--style": "Style", "--model": "Model",
    "--lora": "LoRA", "--seed": "Seed", "--steps": "Steps", "--guidance-scale": "Guidance", "--scheduler": "Sampler",
    "--height": "Height", "--width": "Width", "--aspect": "Shape", "--scribble": "Scribble", "--search": "Search",
    "--num-images": "Pictures", "--strength": "Freedom", "--compare-base": "Compare", "--grid": "Prompt",
}  # fmt: skip


def options_of(values: Mapping[str, Any]) -> GenerateOptions:
    """Fields of GenerateOptions, checked and bounded. Raises InputError, everything that is wrong at once."""
    prompt = str(values.get("prompt", ""))
    refuse_paths(prompt)
    raise_all(too_much(values))
    given = {**values, "prompt": (prompt,)}
    try:
        return GenerateOptions.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise_all([explain(GenerateOptions, detail, set(), {}) for detail in error.errors()])
        raise AssertionError("a validation error has at least one detail") from error


def too_much(values: Mapping[str, Any]) -> list[InputError]:
    """What is more than anybody needs, and would keep everybody else waiting."""
    most = {"steps": MOST_STEPS, "num_images": MOST_PICTURES, "guidance_scale": HIGHEST_GUIDANCE}
    found = [
        InputError(f"{values[name]} is too much", where=f"--{name.replace('_', '-')}", allowed=f"up to {limit:g}")
        for name, limit in most.items()
        if (values.get(name) or 0) > limit
    ]
    long = [name for name in ("prompt", "negative_prompt") if len(str(values.get(name) or "")) > MOST_LETTERS]
    return found + [
        InputError("is too long", where=f"--{name.replace('_', '-')}", allowed=f"{MOST_LETTERS} letters")
        for name in long
    ]


def check_size(width: int, height: int, side: int) -> None:
    """Raises InputError for a picture far larger than the model's own (side x side): it would take the machine."""
    if width * height > MOST_AREA * side**2:
        what = f"{width} x {height} is more than {MOST_AREA} times the {side} x {side} that this model draws"
        raise InputError(what, where="--width", fix=f"Take {2 * side} x {2 * side} or less.")


def check_count(count: int) -> None:
    """Raises InputError for a prompt that stands for too many pictures."""
    if count > MOST_PICTURES:
        fix = "Ask for fewer, or use generate.py."
        raise InputError(f"this stands for {count} pictures", where="--prompt", allowed=str(MOST_PICTURES), fix=fix)


def guidance_for(model: str) -> float:
    """What a picture is steered with unless somebody says otherwise."""
    return POCKET_GUIDANCE if model == POCKET else GUIDANCE


def told(error: InputError) -> str:
    """An error for a page: by the name of the field there, instead of a flag."""
    lines = []
    for line in str(error).splitlines():
        flag, colon, rest = line.partition(": ")
        word = flag.split(" ")[0]
        lines.append(f"{LABELS[word]}: {rest}" if colon and word in LABELS else line)
    return "\n".join(lines)
