"""Prompts from a file (--from-file): txt with a prompt a line, csv with a header, or jsonl; each may have settings.

a water type fridge --n blurry --s 30 --l 5 --d 7 --w 64 --h 64      kohya's gen_img
--prompt "a fire type fridge" --negative_prompt "blurry" --steps 30   A1111's prompts-from-file script
# a comment, and an empty line, say nothing
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
from infer.config import MAX_SEED, MAX_WEIGHT, LoraFile

PROMPT_OPTIONS = {  # of the line's options, in kohya's, A1111's and diffusers' words
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


class PromptLine(BaseModel):
    """A prompt of a file with the settings that it has of its own; what it does not say holds for all."""

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
        """What changes how a picture of it is drawn."""
        return self.model_dump(exclude={"prompt", "seed", "num_images"}, exclude_none=True)


def read_prompt_file(path: Path) -> list[PromptLine]:
    """Every prompt of the file, in order. Raises InputError, all problems of the file at once, each with its line."""
    reader = PROMPT_FILE_PARSERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path.suffix or 'no suffix'} is no prompt file", where=path, allowed=", ".join(PROMPT_FILE_PARSERS)
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot be read ({why})", where=path) from None
    lines, problems = [], []
    for number, given in reader(text):
        try:
            lines.append(parse_prompt_line(given, f"{path}:{number}"))
        except InputError as error:
            problems.append(error)
    raise_all(problems)
    if not lines:
        raise InputError("has no prompts", where=path, fix="Write one on each line.")
    return lines


def parse_prompt_line(given: Mapping[str, Any] | InputError, where: str) -> PromptLine:
    """One line's words as settings. Raises InputError."""
    if isinstance(given, InputError):
        raise InputError(given.what, where=where)
    known: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).strip().lower().replace("-", "_")
        if name in GLOBAL_OPTIONS:
            raise InputError(f"{key!r} is for all prompts", where=where, fix=f"Give it as {GLOBAL_OPTIONS[name]}.")
        if name not in PROMPT_OPTIONS:
            allowed = ", ".join(sorted(PROMPT_OPTIONS, key=lambda word: (len(word) == 1, word)))
            raise InputError(f"unknown setting {key!r}{suggest(name, PROMPT_OPTIONS)}", where=where, allowed=allowed)
        if PROMPT_OPTIONS[name] in known:
            raise InputError(f"{PROMPT_OPTIONS[name]} is said twice", where=where)
        known[PROMPT_OPTIONS[name]] = value.strip() if isinstance(value, str) else value
    try:
        return PromptLine.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        what = "has no prompt" if name == "prompt" else f"{name} {first['input']!r}: {first['msg'].lower()}"
        raise InputError(what, where=where) from None


def parse_txt(text: str) -> Iterator[tuple[int, Mapping[str, str] | InputError]]:
    """A prompt a line, with options after it, or in quotes after --prompt."""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, parse_a1111_line(line) if line.startswith("--") else parse_kohya_line(line)


def parse_kohya_line(line: str) -> dict[str, str] | InputError:
    """`a prompt --s 30 --n what not`: each value goes on to the next option."""
    prompt, *options = OPTION_START.split(line)
    return to_mapping([("prompt", prompt), *((name, value) for name, _, value in (o.partition(" ") for o in options))])


def parse_a1111_line(line: str) -> dict[str, str] | InputError:
    """`--prompt "a prompt" --steps 30`, as a shell reads it."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        return InputError(f"a quotation mark is missing ({error})")
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        return InputError("is not a row of --name value pairs; quote values of several words")
    return to_mapping([(name[2:], value) for name, value in zip(names, values, strict=True)])


def to_mapping(pairs: list[tuple[str, str]]) -> dict[str, str] | InputError:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    return InputError(f"--{twice} is said twice") if twice else dict(pairs)


def parse_csv(text: str) -> Iterator[tuple[int, Mapping[str, Any] | InputError]]:
    """A header, then a prompt a row; empty cells say nothing."""
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    for row in rows:
        if None in row:
            yield rows.line_num, InputError("has more cells than the header; quote texts that have commas")
        else:
            yield rows.line_num, {name: value for name, value in row.items() if value}


def parse_jsonl(text: str) -> Iterator[tuple[int, Mapping[str, Any] | InputError]]:
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


PROMPT_FILE_PARSERS = {".txt": parse_txt, ".csv": parse_csv, ".jsonl": parse_jsonl}


RANDOM_SEED_LIMIT = 2**32  # below this, a random seed fits every tool that reads it back


@dataclass(frozen=True)
class ImageRequest:
    """One picture to draw. Its pixels depend on its own seed and prompt, never on its index."""

    index: int
    prompt: str
    seed: int
    template: str = ""  # that the prompt was made from, if it was
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)  # settings of pipeline.Settings for it alone
    loras: tuple[LoraFile, ...] = ()  # that it is drawn with
    unstyled: str = ""  # the prompt before a style was laid around it, if one was

    @property
    def file_name(self) -> str:
        return f"{self.index:05d}-{self.seed}.png"


def expand_prompts(
    prompts: Sequence[str],
    seed: int,
    num_images: int,
    axes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    wildcards: Path = Path("wildcards"),
    seeds: Sequence[int] = (),
) -> list[ImageRequest]:
    """`num_images` pictures of each prompt; its seeds are seed, seed + 1 ..., alike for all, so that rows compare.

    seeds: others in their place, if any are named.
    Prompts are templates, see infer/templates.py, that axes and wildcards fill in. Raises InputError.
    """
    asked: list[tuple[str, int, str]] = []
    for template in prompts:
        own = seeds or range(seed, seed + num_images)
        found = [templates.expand_template(template, axes, wildcards, number) for number in own]
        # prompt by prompt, its seeds in a row; a prompt that only some seeds choose has fewer
        for texts in itertools.zip_longest(*found):
            asked += [(text, number, template) for number, text in zip(own, texts, strict=True) if text is not None]
    return [
        ImageRequest(index, text, number, template if template not in (text, templates.escape_template(text)) else "")
        for index, (text, number, template) in enumerate(asked)
    ]


def expand_lines(
    lines: Sequence[PromptLine],
    seed: int,
    num_images: int,
    axes: Mapping[str, Sequence[str]],
    wildcards: Path,
    seeds: Sequence[int] = (),
) -> list[ImageRequest]:
    """The pictures of the lines of a prompt file; a line without seed or number of its own takes the job's."""
    found: list[ImageRequest] = []
    for line in lines:
        first = seed if line.seed is None else line.seed
        named = () if line.seed is not None or line.num_images is not None else seeds
        own = expand_prompts([line.prompt], first, line.num_images or num_images, axes, wildcards, named)
        found += [replace(picture, own=line.settings) for picture in own]
    return [replace(picture, index=index) for index, picture in enumerate(found)]


def random_seed() -> int:
    """A seed from the operating system, for --seed -1; printed, so that the picture can be made again."""
    return secrets.randbelow(RANDOM_SEED_LIMIT)


def shorten(text: str, length: int = 40) -> str:
    """A text that fits a line."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


STYLES_FILE = Path(__file__).parent / "styles.yaml"
PROMPT_PLACEHOLDER = "{prompt}"
LIST_STYLES = "list"


@dataclass(frozen=True)
class Style:
    """prompt: with {prompt} where the person's words go. negative: put behind the person's."""

    name: str
    prompt: str
    negative: str = ""

    def around(self, prompt: str) -> str:
        return self.prompt.replace(PROMPT_PLACEHOLDER, prompt)

    def behind(self, negative: str) -> str:
        return ", ".join(filter(None, [negative, self.negative]))


NO_STYLE = Style("", PROMPT_PLACEHOLDER)


def choose_style(name: str | None, file: Path | None) -> Style:
    """The style asked for. Raises InputError naming those there are."""
    if name is None:
        return NO_STYLE
    found = read_styles(file or STYLES_FILE)
    return found[check_choice(name, found, what="style", where="--style")]


def read_styles(file: Path) -> dict[str, Style]:
    """Every style of a file. Raises InputError with the style that is wrong."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"cannot be read as YAML ({why})", where=f"--styles {file}") from None
    if not isinstance(found, dict) or not found:
        raise InputError("holds no styles", where=f"--styles {file}", allowed=STYLE_FORMAT)
    return {str(name): parse_style(str(name), about, file) for name, about in found.items()}


STYLE_FORMAT = 'NAME: {prompt: "... {prompt} ...", negative: "..."}'


def parse_style(name: str, about: Any, file: Path) -> Style:
    """One style; text alone is its prompt. Raises InputError."""
    about = {"prompt": about} if isinstance(about, str) else about
    texts = about if isinstance(about, dict) else {}
    prompt, negative = texts.get("prompt"), texts.get("negative", texts.get("negative_prompt", ""))
    if not isinstance(prompt, str) or PROMPT_PLACEHOLDER not in prompt or not isinstance(negative, str):
        raise InputError(
            f"the style {name!r} has no prompt with {PROMPT_PLACEHOLDER}",
            where=f"--styles {file}",
            allowed=STYLE_FORMAT,
        )
    return Style(name, prompt, negative)


def list_styles(file: Path | None) -> str:
    """What there is to choose from, a line each."""
    return "\n".join(f"{each.name:14s} {each.prompt}" for each in read_styles(file or STYLES_FILE).values())


LORA_TAG = re.compile(r"\s*<lora:(?P<name>[^:<>]+)(?::(?P<weight>[^<>]*))?>", flags=re.IGNORECASE)
LORAS, RUNS = Path("loras"), Path("runs")


def apply_lora_tags(pictures: Sequence[ImageRequest], everywhere: tuple[LoraFile, ...]) -> list[ImageRequest]:
    """The pictures with their tags taken out of the words, and every LoRA that each is drawn with.

    Raises InputError, all at once, for tags that name no LoRA.
    """
    tags = list(dict.fromkeys(tag.group() for picture in pictures for tag in LORA_TAG.finditer(picture.prompt)))
    files: dict[str, LoraFile] = {}
    problems: list[InputError] = []
    for tag in tags:
        try:
            files[tag] = parse_lora_tag(tag)
        except InputError as error:
            problems.append(error)
    raise_all(problems)
    return [apply_tags(picture, files, everywhere) for picture in pictures]


def split_lora_tags(prompt: str) -> tuple[str, tuple[LoraFile, ...]]:
    """A prompt without its tags, and the LoRAs that they name. Raises InputError."""
    found = tuple(parse_lora_tag(tag.group()) for tag in LORA_TAG.finditer(prompt))
    return (LORA_TAG.sub("", prompt).strip() if found else prompt), found


def apply_tags(picture: ImageRequest, files: dict[str, LoraFile], everywhere: tuple[LoraFile, ...]) -> ImageRequest:
    own = tuple(files[tag.group()] for tag in LORA_TAG.finditer(picture.prompt))
    words = LORA_TAG.sub("", picture.prompt).strip() if own else picture.prompt
    return replace(picture, prompt=words, loras=(*everywhere, *own))


def parse_lora_tag(tag: str) -> LoraFile:
    """The file and weight of a tag. Raises InputError."""
    found = LORA_TAG.fullmatch(tag)
    assert found is not None
    name, where = found["name"].strip(), tag.strip()
    try:
        weight = float(found["weight"].split(":")[0]) if found["weight"] else 1.0
    except ValueError:
        raise InputError(f"its weight {found['weight']!r} is no number", where=where) from None
    if not abs(weight) <= MAX_WEIGHT:
        raise InputError(f"its weight is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}", where=where)
    return LoraFile(find_lora(name, where), weight)


def find_lora(name: str, where: str) -> Path:
    """A LoRA by its file, its name in loras/, or the name or number of a run that exported one. Raises InputError."""
    places = [Path(name), LORAS / name, LORAS / f"{name}.safetensors", RUNS / name / "export" / "lora.safetensors"]
    places += sorted(RUNS.glob(f"{int(name):04d}-*/export/lora.safetensors")) if name.isdecimal() else []
    there = [place for place in places if place.is_file()]
    if there:
        return there[0]
    known = sorted(path.stem for path in LORAS.glob("*.safetensors"))
    known += sorted(path.parent.parent.name for path in RUNS.glob("*/export/lora.safetensors"))
    allowed = ", ".join(known[:20]) or f"nothing yet: put the file into {LORAS}/"
    raise InputError(f"there is no LoRA {name!r}{suggest(name, known)}", where=where, allowed=allowed)
