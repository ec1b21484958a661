"""Limits on what a client may request, and its fields as options of generate.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from data.cli import explain_error
from data.errors import InputError, raise_all
from infer.config import GenerateOptions
from infer.web.models import check_lora_tags

MAX_IMAGES = 16  # per job
MAX_STEPS = 150
MAX_PROMPT = 4000  # characters
MAX_GUIDANCE = 30.0
MAX_AREA = 4  # times the number of pixels that the model was trained at
LIMITS = {"steps": MAX_STEPS, "num_images": MAX_IMAGES, "guidance_scale": MAX_GUIDANCE}
LABELS = {
    "--prompt": "Prompt", "--negative-prompt": "Negative prompt", "--style": "Style", "--model": "Model",
    "--lora": "LoRA", "--seed": "Seed", "--steps": "Steps", "--guidance-scale": "Guidance", "--scheduler": "Sampler",
    "--height": "Height", "--width": "Width", "--aspect": "Shape", "--scribble": "Scribble", "--search": "Search",
    "--num-images": "Images", "--strength": "Freedom", "--compare-base": "Compare", "--grid": "Prompt",
}  # fmt: skip


def parse_request(fields: Mapping[str, Any]) -> GenerateOptions:
    """Fields of GenerateOptions, validated. Raises InputError, all problems at once."""
    prompt = str(fields.get("prompt", ""))
    check_lora_tags(prompt)
    check_limits(fields)
    values = {name: value for name, value in {**fields, "prompt": (prompt,)}.items() if value is not None}
    try:
        return GenerateOptions.model_validate(values)
    except ValidationError as error:
        raise_all([explain_error(GenerateOptions, detail, set(), {}) for detail in error.errors()])
        raise


def check_limits(fields: Mapping[str, Any]) -> None:
    """Raise InputError for requests that would keep everybody else waiting."""
    problems = [
        InputError(f"{fields[name]} is too much", where=f"--{name.replace('_', '-')}", allowed=f"up to {limit:g}")
        for name, limit in LIMITS.items()
        if (fields.get(name) or 0) > limit
    ]
    problems += [
        InputError("is too long", where=f"--{name.replace('_', '-')}", allowed=f"{MAX_PROMPT} characters")
        for name in ("prompt", "negative_prompt")
        if len(str(fields.get(name) or "")) > MAX_PROMPT
    ]
    raise_all(problems)


def check_size(width: int, height: int, side: int) -> None:
    """Raise InputError for an image far larger than the model's own side x side pixels."""
    if width * height > MAX_AREA * side**2:
        what = f"{width} x {height} is more than {MAX_AREA} times this model's {side} x {side} pixels"
        raise InputError(what, where="--width", fix=f"Use {2 * side} x {2 * side} or less.")


def check_count(count: int) -> None:
    """Raise InputError for a prompt that expands to too many images."""
    if count > MAX_IMAGES:
        fix = "Request fewer, or use generate.py."
        raise InputError(f"the prompt expands to {count} images", where="--prompt", allowed=str(MAX_IMAGES), fix=fix)


def page_message(error: InputError) -> str:
    """An error with the page's field names in place of flags."""
    lines = []
    for line in str(error).splitlines():
        flag, colon, rest = line.partition(": ")
        label = LABELS.get(flag.split(" ")[0])
        lines.append(f"{label}: {rest}" if colon and label else line)
    return "\n".join(lines)
