"""The page of a comparison: one self-contained file with tabs for z, filters, settings on hover and a zoom."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from data.reports import render
from data.reports.page import Page
from infer.comparison.axes import Axis
from infer.comparison.grid import Grid, Position
from infer.comparison.image_cache import CachedImage
from infer.metadata import ImageMetadata

HERE = Path(__file__).parent
MAX_PNG = 120 << 10  # bytes; a larger image is shown as WebP, its PNG is in cells/
QUALITY = 90


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
    cells: Mapping[tuple[int, int], CachedImage]
    notes: Mapping[tuple[int, int], str] = field(default_factory=dict)


def comparison_page(grid: Grid, images: Mapping[Position, CachedImage], report: Report) -> str:
    x, y, z = grid.axes
    panels = [
        Panel(title, x.headings, y.headings, layer(images, index), layer(report.notes, index))
        for index, title in enumerate(z.headings)
    ]
    sizes = " × ".join(f"{len(axis)} {plural(axis)}" for axis in grid.axes if axis.name)
    return render_page(report, f"{sizes}, {len(images)} images", panels, grid.axes)


def layer(values: Mapping[Position, Any], z: int) -> dict[tuple[int, int], Any]:
    return {(at[0], at[1]): value for at, value in values.items() if at[2] == z}


def plural(axis: Axis) -> str:
    return axis.name if len(axis) == 1 or axis.name.endswith("s") else f"{axis.name}s"


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
