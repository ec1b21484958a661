"""Prompt files (--from-file): .csv with a header, .jsonl, or .txt with a prompt a line, in either of two syntaxes:

a water type fridge --n blurry --s 30 --l 5 --d 7 --w 64 --h 64      kohya's gen_img
--prompt "a fire type fridge" --negative_prompt "blurry" --steps 30   A1111's prompts-from-file script
# a comment
"""

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.errors import InputError, raise_all, suggest
from infer.prompts import PromptLine

PROMPT_OPTIONS = {  # of a line, in kohya's, A1111's and diffusers' words
    **dict.fromkeys(("prompt", "text"), "prompt"),
    **dict.fromkeys(("n", "negative_prompt"), "negative_prompt"),
    **dict.fromkeys(("w", "width"), "width"),
    **dict.fromkeys(("h", "height"), "height"),
    **dict.fromkeys(("s", "steps", "num_inference_steps"), "steps"),
    **dict.fromkeys(("l", "cfg_scale", "guidance_scale", "scale", "cfg"), "guidance_scale"),
    **dict.fromkeys(("d", "seed"), "seed"),
    **dict.fromkeys(("num_images", "n_iter", "num_images_per_prompt"), "num_images"),
}
GLOBAL_OPTIONS = {"sampler_name": "--scheduler", "scheduler": "--scheduler", "sd_model": "--model", "model": "--model"}
OPTION_START = re.compile(r"(?:^|\s)--(?=[a-z])")


def read_prompt_file(path: Path) -> list[PromptLine]:
    """Every prompt of the file, in order. Raises InputError, all problems of the file at once, each with its line."""
    parse = PROMPT_FILE_PARSERS.get(path.suffix.lower())
    if parse is None:
        what = f"cannot read prompts from a {path.suffix or 'file without suffix'}"
        raise InputError(what, where=path, allowed=", ".join(PROMPT_FILE_PARSERS))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot be read ({why})", where=path) from None
    lines, problems = [], []
    for number, values in parse(text):
        try:
            lines.append(parse_prompt_line(values, f"{path}:{number}"))
        except InputError as error:
            problems.append(error)
    raise_all(problems)
    if not lines:
        raise InputError("has no prompts", where=path, fix="Write one on each line.")
    return lines


def parse_prompt_line(given: Mapping[str, Any] | InputError, where: str) -> PromptLine:
    """Raises InputError."""
    if isinstance(given, InputError):
        raise InputError(given.what, where=where)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).strip().lower().replace("-", "_")
        if name in GLOBAL_OPTIONS:
            raise InputError(f"{key!r} applies to all prompts", where=where, fix=f"Use {GLOBAL_OPTIONS[name]}.")
        if name not in PROMPT_OPTIONS:
            allowed = ", ".join(sorted(PROMPT_OPTIONS, key=lambda word: (len(word) == 1, word)))
            raise InputError(f"unknown setting {key!r}{suggest(name, PROMPT_OPTIONS)}", where=where, allowed=allowed)
        if PROMPT_OPTIONS[name] in values:
            raise InputError(f"{PROMPT_OPTIONS[name]} is given twice", where=where)
        values[PROMPT_OPTIONS[name]] = value.strip() if isinstance(value, str) else value
    try:
        return PromptLine.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        what = "has no prompt" if name == "prompt" else f"{name} {first['input']!r}: {first['msg'].lower()}"
        raise InputError(what, where=where) from None


def parse_txt(text: str) -> Iterator[tuple[int, Mapping[str, str] | InputError]]:
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            if line.startswith("--"):
                yield number, parse_a1111_line(line)
            else:  # kohya's `a prompt --s 30 --n what not`: each value extends to the next option
                prompt, *given = OPTION_START.split(line)
                yield number, to_mapping([("prompt", prompt), *(tuple(each.split(" ", 1)) for each in given)])


def parse_a1111_line(line: str) -> dict[str, str] | InputError:
    """`--prompt "a prompt" --steps 30`, as a shell reads it."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        return InputError(f"a quotation mark is missing ({error})")
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        return InputError("is not a list of --name value pairs; put values of several words in quotes")
    return to_mapping([(name[2:], value) for name, value in zip(names, values, strict=True)])


def to_mapping(pairs: list[tuple[str, ...]]) -> dict[str, str] | InputError:
    names = [name for name, *_ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    return InputError(f"--{twice} is given twice") if twice else {name: "".join(value) for name, *value in pairs}


def parse_csv(text: str) -> Iterator[tuple[int, Mapping[str, Any] | InputError]]:
    """A header, then a prompt a row; empty cells are ignored."""
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    for row in rows:
        if None in row:
            yield rows.line_num, InputError("has more cells than the header; put texts with commas in quotes")
        else:
            yield rows.line_num, {name: value for name, value in row.items() if value}


def parse_jsonl(text: str) -> Iterator[tuple[int, Mapping[str, Any] | InputError]]:
    """An object a line, or a string alone."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            value = InputError(f"is not JSON ({error})")
        value = {"prompt": value} if isinstance(value, str) else value
        yield number, value if isinstance(value, Mapping | InputError) else InputError("is neither object nor string")


PROMPT_FILE_PARSERS = {".txt": parse_txt, ".csv": parse_csv, ".jsonl": parse_jsonl}
