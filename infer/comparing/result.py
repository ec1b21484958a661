"""The folder of a comparison: labelled sheets, one page, the cells with their recipes, and a line for each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from data.errors import show
from data.files import replaced_file, replaced_folder, write_atomic
from data.page import Page
from infer import drawing, outputs
from infer.comparing import page, paper
from infer.comparing.cells import Cell
from infer.comparing.options import CompareOptions
from infer.comparing.wishes import Table
from infer.metadata import Recipe

PAGE, MARK, CELLS = "index.html", "compare.json", "cells"
At = tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """What a study adds: words and curves over the pictures, small words under them, numbers for programs."""

    title: str
    told: Callable[[Page], object] = lambda page: page
    notes: Mapping[At, str] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)


COMPARISON = Report("Comparison")


def folder_for(asked: Path | None) -> Path:
    """The folder asked for: new, empty or an earlier comparison's; or the next free number in outputs/."""
    if asked is not None and (asked / MARK).is_file():
        return asked
    return outputs.folder_for(asked)


def write(
    folder: Path, options: CompareOptions, table: Table, cells: Mapping[At, Cell], report: Report = COMPARISON
) -> None:
    """Everything that a comparison leaves; what an earlier one left there under the same names is replaced."""
    mark(folder, options, report.numbers)
    names = keep_cells(folder, list(cells.values()))
    lines = [{"file": name, "place": place_of(table, at)} for at, name in zip(cells, names, strict=True)]
    rows = zip(lines, cells.values(), strict=True)
    write_atomic(
        folder / outputs.LOG, "".join(json.dumps(line | c.recipe.model_dump(mode="json")) + "\n" for line, c in rows)
    )
    for index, sheet in enumerate(sheets(table, cells, report.notes)):
        save(paper.draw(sheet), folder / sheet_name(index, len(table.axes[2])))
    write_atomic(folder / PAGE, page.html(table, cells, report.title, report.told, report.notes))


def mark(folder: Path, options: CompareOptions, numbers: Mapping[str, Any] = MappingProxyType({})) -> None:
    """compare.json: what was asked, and what a study measured."""
    asked = options.model_dump(mode="json", exclude_unset=True)
    write_atomic(folder / MARK, json.dumps({"asked": asked, **numbers}, indent=1) + "\n")


def place_of(table: Table, at: At) -> dict[str, str]:
    named = zip(table.axes, table.place(at).shown, strict=True)
    return {axis.name: shown for axis, shown in named if axis.name}


def keep_cells(folder: Path, cells: Sequence[Cell], name: str = CELLS) -> list[str]:
    """Copy every cell into folder/cells, numbered in reading order; returns their names from `folder`."""
    names = [f"{index:05d}-{cell.recipe.seed}.png" for index, cell in enumerate(cells)]
    with replaced_folder(folder / name) as beside:
        for cell, own in zip(cells, names, strict=True):
            shutil.copyfile(cell.path, beside / own)
    return [f"{name}/{own}" for own in names]


def sheets(table: Table, cells: Mapping[At, Cell], notes: Mapping[At, str]) -> list[paper.Sheet]:
    """A sheet for each value of z."""
    x, y, z = table.axes
    foot = footer([cell.recipe for cell in cells.values()])
    found = []
    for index, title in enumerate(z.shown):
        pictures = {(at[0], at[1]): cell.picture for at, cell in cells.items() if at[2] == index}
        title = title or own_title(table, next(iter(cells.values())).recipe)
        under = {(at[0], at[1]): note for at, note in notes.items() if at[2] == index}
        found.append(paper.Sheet(x.shown, y.shown, pictures, title, foot, under))
    return found


def own_title(table: Table, recipe: Recipe) -> str:
    """The prompt, where every cell has the same."""
    said = {"prompt", "replace", "trigger"} & {axis.name for axis in table.axes}
    prompts = {wish.prompt for wish in table.wishes.values()}
    return recipe.prompt if len(prompts) == 1 and not said else ""


def footer(recipes: Sequence[Recipe]) -> str:
    """The settings that all cells share, in a line."""
    first = recipes[0]
    shared = {
        "model": model_line(first) if len({model_line(recipe) for recipe in recipes}) == 1 else "",
        "seed": f"seed {first.seed}" if len({recipe.seed for recipe in recipes}) == 1 else "",
        "steps": f"{first.steps} steps" if len({recipe.steps for recipe in recipes}) == 1 else "",
        "guidance": f"guidance {first.guidance_scale:g}" if len({r.guidance_scale for r in recipes}) == 1 else "",
        "sampler": first.sampler if len({recipe.sampler for recipe in recipes}) == 1 else "",
        "size": f"{first.width} x {first.height} pixels" if len({(r.width, r.height) for r in recipes}) == 1 else "",
    }
    negative = f"not: {first.negative_prompt}" if len({recipe.negative_prompt for recipe in recipes}) == 1 else ""
    return ", ".join(filter(None, [*shared.values(), negative if first.negative_prompt else ""]))


def model_line(recipe: Recipe) -> str:
    """The weights in a few words: pocket + 0003-lora-r16.safetensors:0.5."""
    loras = "".join(f" + {lora.name}{'' if lora.weight == 1 else f':{lora.weight:g}'}" for lora in recipe.loras)
    return f"{recipe.model.name}{loras}"


def sheet_name(index: int, count: int) -> str:
    return "sheet.png" if count == 1 else f"sheet-{index + 1:02d}.png"


def save(picture: Image.Image, path: Path) -> None:
    with replaced_file(path) as beside:
        picture.save(beside, "PNG")


def broken(folder: Path, verdicts: Sequence[str]) -> int:
    """Say how many cells are no pictures; the exit code."""
    count = list(verdicts).count("nan")
    if count:
        drawing.warn(f"{show(folder)}: {count} of {len(verdicts)} cells are no picture, the numbers broke down (NaN)")
    return drawing.BROKEN if count else 0
