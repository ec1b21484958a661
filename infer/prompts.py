"""Which images are requested: prompts, prompt files (--from-file), styles, `<lora:...>` tags, seeds.

A prompt file is .csv with a header, .jsonl, or .txt with a prompt on each line, in either of two syntaxes:

    a water type fridge --n blurry --s 30 --l 5 --d 7 --w 64 --h 64      kohya's gen_img
    --prompt "a fire type fridge" --negative_prompt "blurry" --steps 30   A1111's prompts-from-file script
    # a comment
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.errors import InputError, check_choice, raise_all, suggest
from infer import templates
from infer.config import LORAS, MAX_SEED, MAX_WEIGHT, RUNS, GenerateOptions, LoraFile, parse_grid, parse_seeds

RANDOM_SEED_LIMIT = 2**32  # below it, a random seed suits every tool that reads it back
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
LORA_TAG = re.compile(r"\s*<lora:(?P<name>[^:<>]+)(?::(?P<weight>[^<>]*))?>", flags=re.IGNORECASE)
STYLES_FILE = Path(__file__).parent / "styles.yaml"
PROMPT_PLACEHOLDER = "{prompt}"
LIST_STYLES = "list"
STYLE_FORMAT = 'NAME: {prompt: "... {prompt} ...", negative: "..."}'


@dataclass(frozen=True)
class ImageRequest:
    """One image to generate. Its pixels depend on its own seed and prompt, never on its index.

    template: the prompt's. own: its own values of SamplingSettings. unstyled: the prompt before a style was applied.
    """

    index: int
    prompt: str
    seed: int
    template: str = ""
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)
    loras: tuple[LoraFile, ...] = ()
    unstyled: str = ""

    @property
    def file_name(self) -> str:
        return f"{self.index:05d}-{self.seed}.png"


def requested_images(options: GenerateOptions) -> list[ImageRequest]:
    """Every image that prompts and prompt files ask for; the built-in prompts only if there are no others."""
    lines = [] if options.from_file is None else read_prompt_file(options.from_file)
    if "prompt" in options.model_fields_set or not lines:
        lines = [*(PromptLine(prompt=prompt) for prompt in options.prompt), *lines]
    axes, requests = parse_grid(options.grid), []
    for line in lines:
        seed = options.seed if line.seed is None else line.seed
        has_own_seeds = line.seed is not None or line.num_images is not None
        seeds = () if has_own_seeds else parse_seeds(options.seeds) or ()
        number = line.num_images or options.num_images
        expanded = expand_prompts([line.prompt], seed, number, axes, options.wildcards, seeds)
        requests += [replace(request, own=line.settings) for request in expanded]
    return [replace(request, index=index) for index, request in enumerate(requests)]


def expand_prompts(
    prompts: Sequence[str],
    seed: int,
    num_images: int,
    axes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    wildcards: Path = Path("wildcards"),
    seeds: Sequence[int] = (),
) -> list[ImageRequest]:
    """`num_images` of each prompt, at seed, seed + 1 ... for every prompt alike; or at `seeds`, if there are any.

    Prompts are templates, see infer/templates.py. Raises InputError.
    """
    expanded: list[tuple[str, int, str]] = []
    for template in prompts:
        own = seeds or range(seed, seed + num_images)
        texts_by_seed = [templates.expand_template(template, axes, wildcards, number) for number in own]
        # prompt by prompt, its seeds in a row; a prompt that only some seeds choose has fewer
        for texts in itertools.zip_longest(*texts_by_seed):
            expanded += [(text, number, template) for number, text in zip(own, texts, strict=True) if text is not None]
    return [
        ImageRequest(index, text, number, template if template not in (text, templates.escape_template(text)) else "")
        for index, (text, number, template) in enumerate(expanded)
    ]


def random_seed() -> int:
    """A seed from the operating system, for --seed -1."""
    return secrets.randbelow(RANDOM_SEED_LIMIT)


def shorten(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


# ---- prompt files


class PromptLine(BaseModel):
    """A prompt of a file with its own settings; the others are those of the command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(min_length=1)
    negative_prompt: str | None = None
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED - 1_000_000)
    num_images: int | None = Field(default=None, ge=1, le=1_000_000)

    @property
    def settings(self) -> dict[str, Any]:
        """Its own values of SamplingSettings."""
        return self.model_dump(exclude={"prompt", "seed", "num_images"}, exclude_none=True)


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
            yield number, parse_a1111_line(line) if line.startswith("--") else parse_kohya_line(line)


def parse_kohya_line(line: str) -> dict[str, str] | InputError:
    """`a prompt --s 30 --n what not`: each value extends to the next option."""
    prompt, *options = OPTION_START.split(line)
    return to_mapping([("prompt", prompt), *(tuple(option.split(" ", 1)) for option in options)])


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


# ---- styles


@dataclass(frozen=True)
class Style:
    """prompt: with {prompt} where the user's words go. negative: appended to the negative prompt."""

    name: str
    prompt: str
    negative: str = ""

    def apply(self, prompt: str) -> str:
        return self.prompt.replace(PROMPT_PLACEHOLDER, prompt)

    def extend_negative(self, negative: str) -> str:
        return ", ".join(filter(None, [negative, self.negative]))


NO_STYLE = Style("", PROMPT_PLACEHOLDER)


def choose_style(name: str | None, file: Path | None) -> Style:
    """Raises InputError naming the styles there are."""
    if name is None:
        return NO_STYLE
    styles = read_styles(file or STYLES_FILE)
    return styles[check_choice(name, styles, what="style", where="--style")]


def read_styles(file: Path) -> dict[str, Style]:
    """Every style of a file. Raises InputError naming the style that is wrong."""
    where = f"--styles {file}"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"cannot be read as YAML ({why})", where=where) from None
    if not isinstance(content, dict) or not content:
        raise InputError("has no styles", where=where, allowed=STYLE_FORMAT)
    styles: dict[str, Style] = {}
    for name, value in content.items():
        value = {"prompt": value} if isinstance(value, str) else value if isinstance(value, dict) else {}
        prompt, negative = value.get("prompt"), value.get("negative", value.get("negative_prompt", ""))
        if not isinstance(prompt, str) or PROMPT_PLACEHOLDER not in prompt or not isinstance(negative, str):
            what = f"the style {str(name)!r} has no prompt with {PROMPT_PLACEHOLDER}"
            raise InputError(what, where=where, allowed=STYLE_FORMAT)
        styles[str(name)] = Style(str(name), prompt, negative)
    return styles


def list_styles(file: Path | None) -> str:
    return "\n".join(f"{style.name:14s} {style.prompt}" for style in read_styles(file or STYLES_FILE).values())


def apply_style(requests: Sequence[ImageRequest], style: Style) -> list[ImageRequest]:
    """The requests with a style; a line's own negative prompt is extended as well."""
    if style is NO_STYLE:
        return list(requests)
    styled = []
    for request in requests:
        own = dict(request.own)
        if "negative_prompt" in own:
            own["negative_prompt"] = style.extend_negative(own["negative_prompt"])
        styled.append(replace(request, prompt=style.apply(request.prompt), unstyled=request.prompt, own=own))
    return styled


# ---- <lora:NAME:WEIGHT> tags, as A1111 has them


def apply_lora_tags(requests: Sequence[ImageRequest], everywhere: tuple[LoraFile, ...]) -> list[ImageRequest]:
    """The requests without their tags, each with its LoRAs after those of all. Raises InputError, all at once."""
    tags = list(dict.fromkeys(tag.group() for request in requests for tag in LORA_TAG.finditer(request.prompt)))
    files: dict[str, LoraFile] = {}
    problems: list[InputError] = []
    for tag in tags:
        try:
            files[tag] = parse_lora_tag(tag)
        except InputError as error:
            problems.append(error)
    raise_all(problems)
    tagged = []
    for request in requests:
        prompt, own = split_lora_tags(request.prompt, files)
        tagged.append(replace(request, prompt=prompt, loras=(*everywhere, *own)))
    return tagged


def split_lora_tags(
    prompt: str, files: Mapping[str, LoraFile] = MappingProxyType({})
) -> tuple[str, tuple[LoraFile, ...]]:
    """A prompt without its tags, and the LoRAs that they name. Raises InputError."""
    tags = [tag.group() for tag in LORA_TAG.finditer(prompt)]
    loras = tuple(files.get(tag) or parse_lora_tag(tag) for tag in tags)
    return (LORA_TAG.sub("", prompt).strip() if tags else prompt), loras


def parse_lora_tag(tag: str) -> LoraFile:
    """Raises InputError."""
    match = LORA_TAG.fullmatch(tag)
    assert match is not None
    where = tag.strip()
    try:
        weight = float(match["weight"].split(":")[0]) if match["weight"] else 1.0
    except ValueError:
        raise InputError(f"its weight {match['weight']!r} is not a number", where=where) from None
    if not abs(weight) <= MAX_WEIGHT:
        raise InputError(f"its weight is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}", where=where)
    return LoraFile(find_lora(match["name"].strip(), where), weight)


def find_lora(name: str, where: str) -> Path:
    """A LoRA by its file, its name in loras/, or the name or number of a run that exported one. Raises InputError."""
    places = [Path(name), LORAS / name, LORAS / f"{name}.safetensors", RUNS / name / "export" / "lora.safetensors"]
    places += sorted(RUNS.glob(f"{int(name):04d}-*/export/lora.safetensors")) if name.isdecimal() else []
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return found
    known = sorted(path.stem for path in LORAS.glob("*.safetensors"))
    known += sorted(path.parent.parent.name for path in RUNS.glob("*/export/lora.safetensors"))
    allowed = ", ".join(known[:20]) or f"nothing yet: put the file into {LORAS}/"
    raise InputError(f"there is no LoRA {name!r}{suggest(name, known)}", where=where, allowed=allowed)
