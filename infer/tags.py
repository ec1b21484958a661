"""`<lora:NAME:WEIGHT>` in a prompt: a LoRA for that prompt, as A1111 has it. NAME is a file, a run, or in loras/."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.errors import InputError, raise_all, suggest
from infer.config import HIGHEST_WEIGHT, LoraFile
from infer.prompts import Picture

TAG = re.compile(r"\s*<lora:(?P<name>[^:<>]+)(?::(?P<weight>[^<>]*))?>", flags=re.IGNORECASE)
FOLDER, RUNS = Path("loras"), Path("runs")


def dressed(pictures: Sequence[Picture], everywhere: tuple[LoraFile, ...]) -> list[Picture]:
    """The pictures with their tags taken out of the words, and every LoRA that each is drawn with.

    Raises InputError, all at once, for tags that name no LoRA.
    """
    tags = list(dict.fromkeys(tag.group() for picture in pictures for tag in TAG.finditer(picture.prompt)))
    files: dict[str, LoraFile] = {}
    problems: list[InputError] = []
    for tag in tags:
        try:
            files[tag] = meant(tag)
        except InputError as error:
            problems.append(error)
    raise_all(problems)
    return [dress(picture, files, everywhere) for picture in pictures]


def parted(prompt: str) -> tuple[str, tuple[LoraFile, ...]]:
    """A prompt without its tags, and the LoRAs that they name. Raises InputError."""
    found = tuple(meant(tag.group()) for tag in TAG.finditer(prompt))
    return (TAG.sub("", prompt).strip() if found else prompt), found


def dress(picture: Picture, files: dict[str, LoraFile], everywhere: tuple[LoraFile, ...]) -> Picture:
    own = tuple(files[tag.group()] for tag in TAG.finditer(picture.prompt))
    words = TAG.sub("", picture.prompt).strip() if own else picture.prompt
    return replace(picture, prompt=words, loras=(*everywhere, *own))


def meant(tag: str) -> LoraFile:
    """The file and weight of a tag. Raises InputError."""
    found = TAG.fullmatch(tag)
    assert found is not None
    name, where = found["name"].strip(), tag.strip()
    try:
        weight = float(found["weight"].split(":")[0]) if found["weight"] else 1.0
    except ValueError:
        raise InputError(f"its weight {found['weight']!r} is no number", where=where) from None
    if not abs(weight) <= HIGHEST_WEIGHT:
        raise InputError(f"its weight is not between -{HIGHEST_WEIGHT:g} and {HIGHEST_WEIGHT:g}", where=where)
    return LoraFile(file_of(name, where), weight)


def file_of(name: str, where: str) -> Path:
    """A LoRA by its file, its name in loras/, or the name or number of a run that exported one. Raises InputError."""
    places = [Path(name), FOLDER / name, FOLDER / f"{name}.safetensors", RUNS / name / "export" / "lora.safetensors"]
    places += sorted(RUNS.glob(f"{int(name):04d}-*/export/lora.safetensors")) if name.isdecimal() else []
    there = [place for place in places if place.is_file()]
    if there:
        return there[0]
    known = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
    known += sorted(path.parent.parent.name for path in RUNS.glob("*/export/lora.safetensors"))
    allowed = ", ".join(known[:20]) or f"nothing yet: put the file into {FOLDER}/"
    raise InputError(f"there is no LoRA {name!r}{suggest(name, known)}", where=where, allowed=allowed)
