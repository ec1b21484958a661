"""Which images are requested: prompts and their templates, styles, `<lora:...>` tags, seeds.

In a template `{a|b}` and `__name__` are chosen at random, `{name}` is filled in from --grid.

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
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from data import rng
from data.errors import InputError, check_choice, raise_all, suggest
from infer import config
from infer.config import GenerateOptions, LoraFile

RANDOM_SEED_LIMIT = 2**32  # below it, a random seed suits every tool that reads it back
LORA_TAG = re.compile(r"\s*<lora:(?P<name>[^:<>]+)(?::(?P<weight>[^<>]*))?>", flags=re.IGNORECASE)
STYLES_FILE = Path(__file__).parent / "styles.yaml"
PROMPT_PLACEHOLDER = "{prompt}"
LIST_STYLES = "list"
STYLE_FORMAT = 'NAME: {prompt: "... {prompt} ...", negative: "..."}'
ESCAPES = {"{": "\ue000", "}": "\ue001", "|": "\ue002", "_": "\ue003", "\\": "\ue004"}  # private use area
TOKEN = re.compile(r"__(?P<wildcard>[^\s_](?:[^_]|_(?!_))*?)__|(?P<brace>[{}|])")
COUNT = re.compile(r"(?P<count>e|\d+)\$\$(?:(?P<joint>[^$]*)\$\$)?")
WEIGHT = re.compile(r"\s*(?P<weight>\d+(?:\.\d+)?)::")
MAX_PROMPTS = 100_000  # of one template


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


class PromptLine(BaseModel):
    """A prompt of a file with its own settings; the others are those of the command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(min_length=1)
    negative_prompt: str | None = None
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, le=config.MAX_SEED - 1_000_000)
    num_images: int | None = Field(default=None, ge=1, le=1_000_000)

    @property
    def settings(self) -> dict[str, Any]:
        """Its own values of SamplingSettings."""
        return self.model_dump(exclude={"prompt", "seed", "num_images"}, exclude_none=True)


def requested_images(options: GenerateOptions, lines: Sequence[PromptLine] = ()) -> list[ImageRequest]:
    """Every image that prompts and the lines of a file ask for; the built-in prompts only if there are no others."""
    if "prompt" in options.model_fields_set or not lines:
        lines = [*(PromptLine(prompt=prompt) for prompt in options.prompt), *lines]
    axes, requests = config.parse_grid(options.grid), []
    for line in lines:
        seed = options.seed if line.seed is None else line.seed
        has_own_seeds = line.seed is not None or line.num_images is not None
        seeds = () if has_own_seeds else config.parse_seeds(options.seeds) or ()
        number = line.num_images or options.num_images
        expanded = expand_prompts([line.prompt], seed, number, axes, options.wildcards, seeds)
        requests += [replace(request, own=line.settings) for request in expanded]
    return [replace(request, index=index) for index, request in enumerate(requests)]


def expand_prompts(
    prompts: Sequence[str], seed: int, num_images: int, axes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    wildcards: Path = Path("wildcards"), seeds: Sequence[int] = (),
) -> list[ImageRequest]:  # fmt: skip
    """`num_images` of each prompt, at seed, seed + 1 ... for every prompt alike; or at `seeds`, if there are any.

    Prompts are templates. Raises InputError.
    """
    expanded: list[tuple[str, int, str]] = []
    for template in prompts:
        own = seeds or range(seed, seed + num_images)
        texts_by_seed = [expand_template(template, axes, wildcards, number) for number in own]
        # prompt by prompt, its seeds in a row; a prompt that only some seeds choose has fewer
        for texts in itertools.zip_longest(*texts_by_seed):
            expanded += [(text, number, template) for number, text in zip(own, texts, strict=True) if text is not None]
    return [
        ImageRequest(index, text, number, template if template not in (text, escape_template(text)) else "")
        for index, (text, number, template) in enumerate(expanded)
    ]


def random_seed() -> int:
    """A seed from the operating system, for --seed -1."""
    return secrets.randbelow(RANDOM_SEED_LIMIT)


def shorten(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


# ---- templates


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


@dataclass(frozen=True)
class Renderer:
    """Texts of a template's parts; the choices are counted in the order in which they are made."""

    template: str
    seed: int
    values: Mapping[str, str]
    choices: Iterator[int] = field(default_factory=itertools.count)

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
        if config.SLOT_NAME.fullmatch(name):
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
    if not abs(weight) <= config.MAX_WEIGHT:
        raise InputError(f"its weight is not between -{config.MAX_WEIGHT:g} and {config.MAX_WEIGHT:g}", where=where)
    return LoraFile(find_lora(match["name"].strip(), where), weight)


def find_lora(name: str, where: str) -> Path:
    """A LoRA by its file, its name in loras/, or the name or number of a run that exported one. Raises InputError."""
    exported = "export/lora.safetensors"  # of a run
    places = [Path(name), config.LORAS / name, config.LORAS / f"{name}.safetensors", config.RUNS / name / exported]
    places += sorted(config.RUNS.glob(f"{int(name):04d}-*/{exported}")) if name.isdecimal() else []
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return found
    known = sorted(path.stem for path in config.LORAS.glob("*.safetensors"))
    known += sorted(path.parent.parent.name for path in config.RUNS.glob(f"*/{exported}"))
    allowed = ", ".join(known[:20]) or f"nothing yet: put the file into {config.LORAS}/"
    raise InputError(f"there is no LoRA {name!r}{suggest(name, known)}", where=where, allowed=allowed)
