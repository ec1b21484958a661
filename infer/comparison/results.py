"""The folder of a comparison: labelled sheets, one page, the images with their recipes, and a log line for each.

The page is one self-contained file with tabs for z, filters, settings on hover and a zoom.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from data.atomic_io import atomic_folder, write_atomic
from data.errors import printable
from data.reports import render
from data.reports.page import Page
from infer import generation, output
from infer.comparison.grid import Axis, Grid, Position
from infer.comparison.image_cache import CachedImage
from infer.config import CompareOptions
from infer.contact_sheet import Place, Sheet, render_sheet
from infer.metadata import ImageMetadata

HERE = Path(__file__).parent
PAGE, MARK, IMAGES = "index.html", "compare.json", "cells"
MAX_PNG = 120 << 10  # bytes; a larger image is shown as WebP, its PNG is in cells/
QUALITY = 90


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
    (x, y, z), recipes = grid.axes, [cached.recipe for cached in images.values()]
    panels = [
        Panel(title, x.headings, y.headings, layer(images, index), layer(report.notes, index))
        for index, title in enumerate(z.headings)
    ]
    varies = {"prompt", "replace", "trigger"} & {axis.name for axis in grid.axes}
    title = recipes[0].prompt if len({recipe.prompt for recipe in recipes}) == 1 and not varies else ""
    for index, panel in enumerate(panels):
        sheet = panel.sheet(shared_settings(recipes), title)
        output.save_png(render_sheet(sheet), folder / sheet_name(index, len(panels)))
    words = [f"{len(axis)} {axis.name}".removesuffix("s") for axis in grid.axes if axis.name]
    sizes = " × ".join(word if word.startswith("1 ") else f"{word}s" for word in words)
    write_atomic(folder / PAGE, render_page(report, f"{sizes}, {len(images)} images", panels, grid.axes))


def layer(values: Mapping[Position, Any], z: int) -> dict[Place, Any]:
    return {(at[0], at[1]): value for at, value in values.items() if at[2] == z}


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


# ---- the page


@dataclass(frozen=True)
class Report:
    """What a study adds: a verdict, charts and a table above the images, notes under them, numbers for programs.

    charts: keyword arguments of a line chart each. table: head and rows. numbers: go into compare.json.
    """

    title: str = "Comparison"
    verdict: str = ""
    notes: Mapping[Position, str] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    charts: Sequence[Mapping[str, Any]] = ()
    table: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None
    text: str = ""


@dataclass(frozen=True)
class Panel:
    """One sheet of the page. cells, notes: by (x, y)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Mapping[Place, CachedImage]
    notes: Mapping[Place, str] = field(default_factory=dict)

    def sheet(self, footer: str, title: str = "") -> Sheet:
        """title: unless the panel has its own."""
        images = {at: cached.image for at, cached in self.cells.items()}
        return Sheet(self.columns, self.rows, images, self.title or title, footer, self.notes)


def render_page(report: Report, subtitle: str, panels: Sequence[Panel], axes: Sequence[Axis]) -> str:
    css, script = ((HERE / name).read_text(encoding="utf-8") for name in ("comparison.css", "comparison.js"))
    page = Page(report.title, subtitle, css, script)
    if report.verdict:
        page.section("Verdict").note(report.verdict)
        if report.table:
            page.table(*report.table)
        for chart in report.charts:
            page.curve(*chart["series"], **{name: value for name, value in chart.items() if name != "series"})
        page.text(report.text).section("Images")
    body = render(
        HERE / "comparison.html", panels=panels, axes=dict(zip("xyz", axes, strict=True)), data_url=data_url,
        settings=settings,
    )  # fmt: skip
    return page.add(body).html()


def data_url(path: Path) -> str:
    """The PNG itself, with its recipe, while it is small."""
    content, kind = path.read_bytes(), "png"
    if len(content) > MAX_PNG:
        smaller = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(smaller, "WEBP", quality=QUALITY)
        content, kind = smaller.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def settings(recipe: ImageMetadata) -> Iterable[tuple[str, str]]:
    """What decides an image, as names and texts."""
    loras = ", ".join(f"{lora.name} at {lora.weight:g} ({lora.share:.2%} of its layers)" for lora in recipe.loras)
    texts = {
        "prompt": recipe.prompt, "not": recipe.negative_prompt, "seed": str(recipe.seed), "model": recipe.model.name,
        "LoRA": loras, "steps": str(recipe.steps), "guidance": f"{recipe.guidance_scale:g}",
        "scheduler": recipe.sampler, "size": f"{recipe.width} × {recipe.height}",
        "precision": f"{recipe.dtype}, {recipe.device}", "tokens": f"{recipe.tokens.count} of {recipe.tokens.limit}",
        "not read": recipe.tokens.lost, "verdict": "failed: NaN values" if recipe.verdict == "nan" else "",
    }  # fmt: skip
    return [(name, text) for name, text in texts.items() if text]
