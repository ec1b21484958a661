"""Prompts from a file (--from-file): txt with a prompt a line, csv with a header, or jsonl; each may have settings.

a water type fridge --n blurry --s 30 --l 5 --d 7 --w 64 --h 64      kohya's gen_img
--prompt "a fire type fridge" --negative_prompt "blurry" --steps 30   A1111's prompts-from-file script
# a comment, and an empty line, say nothing
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.errors import InputError, raise_all, suggest
from infer.config import HIGHEST_SEED

NAMES = {  # of the line's options, in kohya's, A1111's and diffusers' words
    **dict.fromkeys(("prompt", "text"), "prompt"),
    **dict.fromkeys(("n", "negative_prompt"), "negative_prompt"),
    **dict.fromkeys(("w", "width"), "width"),
    **dict.fromkeys(("h", "height"), "height"),
    **dict.fromkeys(("s", "steps", "num_inference_steps"), "steps"),
    **dict.fromkeys(("l", "cfg_scale", "guidance_scale", "scale", "cfg"), "guidance_scale"),
    **dict.fromkeys(("d", "seed"), "seed"),
    **dict.fromkeys(("num_images", "n_iter", "num_images_per_prompt"), "num_images"),
}
FOR_ALL = {"sampler_name": "--scheduler", "scheduler": "--scheduler", "sd_model": "--model", "model": "--model"}
OPTION = re.compile(r"(?:^|\s)--(?=[a-z])")


class Line(BaseModel):
    """A prompt of a file with the settings that it has of its own; what it does not say holds for all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(min_length=1)
    negative_prompt: str | None = None
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, le=HIGHEST_SEED - 1_000_000)
    num_images: int | None = Field(default=None, ge=1, le=1_000_000)

    @property
    def settings(self) -> dict[str, Any]:
        """What changes how a picture of it is drawn."""
        return self.model_dump(exclude={"prompt", "seed", "num_images"}, exclude_none=True)


def read(path: Path) -> list[Line]:
    """Every prompt of the file, in order. Raises InputError, all problems of the file at once, each with its line."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path.suffix or 'no suffix'} is no prompt file", where=path, allowed=", ".join(READERS))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot be read ({why})", where=path) from None
    lines, problems = [], []
    for number, given in reader(text):
        try:
            lines.append(checked(given, f"{path}:{number}"))
        except InputError as error:
            problems.append(error)
    raise_all(problems)
    if not lines:
        raise InputError("has no prompts", where=path, fix="Write one on each line.")
    return lines


def checked(given: Mapping[str, Any] | InputError, where: str) -> Line:
    """One line's words as settings. Raises InputError."""
    if isinstance(given, InputError):
        raise InputError(given.what, where=where)
    known: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).strip().lower().replace("-", "_")
        if name in FOR_ALL:
            raise InputError(f"{key!r} is for all prompts", where=where, fix=f"Give it as {FOR_ALL[name]}.")
        if name not in NAMES:
            allowed = ", ".join(sorted(NAMES, key=lambda word: (len(word) == 1, word)))
            raise InputError(f"unknown setting {key!r}{suggest(name, NAMES)}", where=where, allowed=allowed)
        if NAMES[name] in known:
            raise InputError(f"{NAMES[name]} is said twice", where=where)
        known[NAMES[name]] = value.strip() if isinstance(value, str) else value
    try:
        return Line.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        what = "has no prompt" if name == "prompt" else f"{name} {first['input']!r}: {first['msg'].lower()}"
        raise InputError(what, where=where) from None


def of_txt(text: str) -> Iterator[tuple[int, Mapping[str, str] | InputError]]:
    """A prompt a line, with options after it, or in quotes after --prompt."""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, quoted(line) if line.startswith("--") else unquoted(line)


def unquoted(line: str) -> dict[str, str] | InputError:
    """`a prompt --s 30 --n what not`: each value goes on to the next option."""
    prompt, *options = OPTION.split(line)
    return paired([("prompt", prompt), *((name, value) for name, _, value in (o.partition(" ") for o in options))])


def quoted(line: str) -> dict[str, str] | InputError:
    """`--prompt "a prompt" --steps 30`, as a shell reads it."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        return InputError(f"a quotation mark is missing ({error})")
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        return InputError("is not a row of --name value pairs; quote values of several words")
    return paired([(name[2:], value) for name, value in zip(names, values, strict=True)])


def paired(pairs: list[tuple[str, str]]) -> dict[str, str] | InputError:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    return InputError(f"--{twice} is said twice") if twice else dict(pairs)


def of_csv(text: str) -> Iterator[tuple[int, Mapping[str, Any] | InputError]]:
    """A header, then a prompt a row; empty cells say nothing."""
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    for row in rows:
        if None in row:
            yield rows.line_num, InputError("has more cells than the header; quote texts that have commas")
        else:
            yield rows.line_num, {name: value for name, value in row.items() if value}


def of_jsonl(text: str) -> Iterator[tuple[int, Mapping[str, Any] | InputError]]:
    """An object a line, or a text alone."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            found = InputError(f"is not JSON ({error})")
        found = {"prompt": found} if isinstance(found, str) else found
        yield number, found if isinstance(found, Mapping | InputError) else InputError("is neither object nor text")


READERS = {".txt": of_txt, ".csv": of_csv, ".jsonl": of_jsonl}
