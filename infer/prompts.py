"""What is to be drawn: one Picture for each prompt and seed."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from infer import templates
from infer.config import LoraFile
from infer.prompt_files import Line

DRAWN_SEEDS = 2**32  # below this, a random seed fits every tool that reads it back


@dataclass(frozen=True)
class Picture:
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


def plan(
    prompts: Sequence[str],
    seed: int,
    num_images: int,
    axes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    wildcards: Path = Path("wildcards"),
    seeds: Sequence[int] = (),
) -> list[Picture]:
    """`num_images` pictures of each prompt; its seeds are seed, seed + 1 ..., alike for all, so that rows compare.

    seeds: others in their place, if any are named.
    Prompts are templates, see infer/templates.py, that axes and wildcards fill in. Raises InputError.
    """
    asked: list[tuple[str, int, str]] = []
    for template in prompts:
        own = seeds or range(seed, seed + num_images)
        found = [templates.expand(template, axes, wildcards, number) for number in own]
        # prompt by prompt, its seeds in a row; a prompt that only some seeds choose has fewer
        for texts in itertools.zip_longest(*found):
            asked += [(text, number, template) for number, text in zip(own, texts, strict=True) if text is not None]
    return [
        Picture(index, text, number, template if template not in (text, templates.literal(text)) else "")
        for index, (text, number, template) in enumerate(asked)
    ]


def planned(
    lines: Sequence[Line],
    seed: int,
    num_images: int,
    axes: Mapping[str, Sequence[str]],
    wildcards: Path,
    seeds: Sequence[int] = (),
) -> list[Picture]:
    """The pictures of the lines of a prompt file; a line without seed or number of its own takes the job's."""
    found: list[Picture] = []
    for line in lines:
        first = seed if line.seed is None else line.seed
        named = () if line.seed is not None or line.num_images is not None else seeds
        own = plan([line.prompt], first, line.num_images or num_images, axes, wildcards, named)
        found += [replace(picture, own=line.settings) for picture in own]
    return [replace(picture, index=index) for index, picture in enumerate(found)]


def random_seed() -> int:
    """A seed from the operating system, for --seed -1; printed, so that the picture can be made again."""
    return secrets.randbelow(DRAWN_SEEDS)


def shorten(text: str, length: int = 40) -> str:
    """A text that fits a line."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
