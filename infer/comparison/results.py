"""The folder of a comparison: labeled sheets, one page, the images with their recipes, and a log line for each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.atomic_io import atomic_folder, write_atomic
from data.errors import printable
from infer import generation, output
from infer.comparison.grid import Grid, Position
from infer.comparison.image_cache import CachedImage
from infer.comparison.page import Report, comparison_page
from infer.config import CompareOptions
from infer.contact_sheet import Sheet, render_sheet
from infer.metadata import ImageMetadata

PAGE, MARK, IMAGES = "index.html", "compare.json", "cells"


def output_folder(outdir: Path | None) -> Path:
    """--outdir: new, empty or of an earlier comparison; default: the next free number in outputs/."""
    if outdir is not None and (outdir / MARK).is_file():
        return outdir
    return output.open_output_folder(outdir)


def write_comparison(
    folder: Path, options: CompareOptions, grid: Grid, images: Mapping[Position, CachedImage], report: Report
) -> None:
    """Write everything, replacing what an earlier comparison left under the same names."""
    write_mark(folder, options, report.numbers)
    names = copy_images(folder, list(images.values()))
    lines = [
        {"file": name, "place": grid.place(at), **cached.recipe.model_dump(mode="json")}
        for name, (at, cached) in zip(names, images.items(), strict=True)
    ]
    write_log(folder, lines)
    for index, sheet in enumerate(sheets_of(grid, images, report.notes)):
        output.save_png(render_sheet(sheet), folder / sheet_name(index, len(grid.axes[2])))
    write_atomic(folder / PAGE, comparison_page(grid, images, report))


def write_mark(folder: Path, options: CompareOptions, numbers: Mapping[str, Any] = MappingProxyType({})) -> None:
    """compare.json: the options given, and what a study measured."""
    asked = options.model_dump(mode="json", exclude_unset=True)
    write_atomic(folder / MARK, json.dumps({"asked": asked, **numbers}, indent=1) + "\n")


def write_log(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(folder / output.LOG_FILE, "".join(json.dumps(line) + "\n" for line in lines))


def copy_images(folder: Path, images: Sequence[CachedImage]) -> list[str]:
    """Copy all images into folder/cells, numbered; returns their paths relative to `folder`."""
    names = [f"{index:05d}-{cached.recipe.seed}.png" for index, cached in enumerate(images)]
    with atomic_folder(folder / IMAGES) as temporary:
        for cached, name in zip(images, names, strict=True):
            shutil.copyfile(cached.path, temporary / name)
    return [f"{IMAGES}/{name}" for name in names]


def sheets_of(grid: Grid, images: Mapping[Position, CachedImage], notes: Mapping[Position, str]) -> list[Sheet]:
    """A sheet for each value of z."""
    x, y, z = grid.axes
    recipes = [cached.recipe for cached in images.values()]
    varies = {"prompt", "replace", "trigger"} & {axis.name for axis in grid.axes}
    one_prompt = len({request.prompt for request in grid.requests.values()}) == 1 and not varies
    return [
        Sheet(
            x.headings, y.headings,
            {(at[0], at[1]): cached.image for at, cached in images.items() if at[2] == index},
            title or (recipes[0].prompt if one_prompt else ""), shared_settings(recipes),
            {(at[0], at[1]): note for at, note in notes.items() if at[2] == index},
        )
        for index, title in enumerate(z.headings)
    ]  # fmt: skip


SHARED: Sequence[Callable[[ImageMetadata], str]] = (
    lambda r: r.model.name + "".join(f" + {e.name}{'' if e.weight == 1 else f':{e.weight:g}'}" for e in r.loras),
    lambda r: f"seed {r.seed}",
    lambda r: f"{r.steps} steps",
    lambda r: f"guidance {r.guidance_scale:g}",
    lambda r: r.sampler,
    lambda r: f"{r.width} x {r.height} pixels",
    lambda r: f"not: {r.negative_prompt}" if r.negative_prompt else "",
)


def shared_settings(recipes: Sequence[ImageMetadata]) -> str:
    """The settings that all images share, in one line."""
    texts = [{describe(recipe) for recipe in recipes} for describe in SHARED]
    return ", ".join(text for each in texts if len(each) == 1 for text in each if text)


def sheet_name(index: int, count: int) -> str:
    return "sheet.png" if count == 1 else f"sheet-{index + 1:02d}.png"


def exit_code(folder: Path, images: Sequence[CachedImage]) -> int:
    """Warn about failed images; returns the exit code."""
    count = sum(cached.recipe.verdict == "nan" for cached in images)
    if count:
        generation.warn(f"{printable(folder)}: {count} of {len(images)} images failed with NaN values")
    return generation.EXIT_NAN if count else 0
