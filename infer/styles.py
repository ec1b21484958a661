"""Style presets: words laid around a prompt. The file of presets is YAML, ours or one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.errors import InputError, choose

SHIPPED = Path(__file__).parent / "styles.yaml"
PLACE = "{prompt}"
LIST = "list"


@dataclass(frozen=True)
class Style:
    """prompt: with {prompt} where the person's words go. negative: put behind the person's."""

    name: str
    prompt: str
    negative: str = ""

    def around(self, prompt: str) -> str:
        return self.prompt.replace(PLACE, prompt)

    def behind(self, negative: str) -> str:
        return ", ".join(filter(None, [negative, self.negative]))


PLAIN = Style("", PLACE)


def chosen(name: str | None, file: Path | None) -> Style:
    """The style asked for. Raises InputError naming those there are."""
    if name is None:
        return PLAIN
    found = read(file or SHIPPED)
    return found[choose(name, found, what="style", where="--style")]


def read(file: Path) -> dict[str, Style]:
    """Every style of a file. Raises InputError with the style that is wrong."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"cannot be read as YAML ({why})", where=f"--styles {file}") from None
    if not isinstance(found, dict) or not found:
        raise InputError("holds no styles", where=f"--styles {file}", allowed=SHAPE)
    return {str(name): style(str(name), about, file) for name, about in found.items()}


SHAPE = 'NAME: {prompt: "... {prompt} ...", negative: "..."}'


def style(name: str, about: Any, file: Path) -> Style:
    """One style; text alone is its prompt. Raises InputError."""
    about = {"prompt": about} if isinstance(about, str) else about
    texts = about if isinstance(about, dict) else {}
    prompt, negative = texts.get("prompt"), texts.get("negative", texts.get("negative_prompt", ""))
    if not isinstance(prompt, str) or PLACE not in prompt or not isinstance(negative, str):
        raise InputError(f"the style {name!r} has no prompt with {PLACE}", where=f"--styles {file}", allowed=SHAPE)
    return Style(name, prompt, negative)


def listed(file: Path | None) -> str:
    """What there is to choose from, a line each."""
    return "\n".join(f"{each.name:14s} {each.prompt}" for each in read(file or SHIPPED).values())
