"""The page of a comparison: one file, with tabs for z, filters, settings on hover, a zoom, all by keyboard too."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from data.page import Page, escape
from infer.comparing.axes import LABELS, Axis
from infer.comparing.cells import Cell
from infer.comparing.page_style import SCRIPT, STYLE
from infer.comparing.wishes import Table
from infer.metadata import Recipe

HEAVY = 120 << 10  # bytes; a larger PNG is shown as WebP, the PNG lies in cells/
QUALITY = 90
SHOWN = 200  # CSS pixels of a cell, to begin with
At = tuple[int, ...]
HINT = (
    "Hover or tab to a picture for its settings; <kbd>Enter</kbd> enlarges, arrows move, <kbd>P</kbd> pins a picture "
    "beside the next ones, <kbd>S</kbd> shows hard pixels, <kbd>[</kbd> <kbd>]</kbd> or <kbd>1</kbd>–<kbd>9</kbd> "
    "change the sheet, <kbd>Esc</kbd> closes."
)
ZOOM = """<div id="card" hidden></div>
<dialog id="zoom" aria-label="One picture"><div class="inside">
<div class="pictures"><figure id="zoom-pin" hidden><img alt="pinned"><figcaption></figcaption></figure>
<figure id="zoom-now"><img alt=""><figcaption></figcaption></figure></div>
<aside><div class="tools"><button class="chip" id="zoom-close">close</button>
<button class="chip" id="zoom-pin-it">pin beside</button>
<button class="chip" id="zoom-sharp">hard pixels</button></div><div id="zoom-about"></div></aside></div></dialog>"""


@dataclass(frozen=True)
class Panel:
    """One sheet of the page. cells by (x, y)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Mapping[tuple[int, int], Cell]
    notes: Mapping[tuple[int, int], str] = field(default_factory=dict)


def html(
    table: Table, cells: Mapping[At, Cell], title: str, told: Callable[[Page], object], notes: Mapping[At, str]
) -> str:
    """The page of a table of cells. told: puts what is to be said first onto the page. notes: under the pictures."""
    x, y, z = table.axes
    panels = [
        Panel(shown, x.shown, y.shown, layer(cells, index), layer(notes, index)) for index, shown in enumerate(z.shown)
    ]
    named = " × ".join(f"{len(axis)} {plural(axis)}" for axis in table.axes if axis.name)
    page = begin(title, f"{named}, {len(cells)} pictures")
    told(page)
    return page.add(controls(table.axes)).add(sheets(panels)).html()


def layer(values: Mapping[At, Any], index: int) -> dict[tuple[int, int], Any]:
    """What lies at one z, by (x, y)."""
    return {(at[0], at[1]): value for at, value in values.items() if at[2] == index}


def begin(title: str, subtitle: str) -> Page:
    """A page with this file's looks and its script."""
    return Page(title, subtitle, STYLE, SCRIPT)


def bare(axis: Axis) -> list[str]:
    """The headings of an axis beside its name, which they need not repeat."""
    return [text.removeprefix(f"{LABELS.get(axis.name, axis.name)} ") for text in axis.shown]


def plural(axis: Axis) -> str:
    return axis.name if len(axis) == 1 or axis.name.endswith("s") else f"{axis.name}s"


def controls(axes: Sequence[Axis]) -> str:
    """Tabs for z, chips that take columns and rows away, and the size of the pictures."""
    x, y, z = axes
    parts = [tabs(z.name, bare(z))] if len(z) > 1 else []
    parts += [chips(letter, axis) for letter, axis in (("x", x), ("y", y)) if len(axis) > 1]
    return bar(parts)


def bar(parts: Sequence[str]) -> str:
    """The controls that stay in sight, and what the keys do."""
    size = f'<label class="size">size <input id="size" type="range" min="64" max="640" value="{SHOWN}"></label>'
    return f'<div class="bar">{"".join(parts)}{size}</div><p class="hint">{HINT}</p>'


def tabs(name: str, shown: Sequence[str]) -> str:
    buttons = "".join(
        f'<button class="chip" role="tab" data-tab="{index}" aria-selected="false">{escape(text)}</button>'
        for index, text in enumerate(shown)
    )
    return f'<div class="axis" role="tablist"><span class="name">{escape(name)}</span>{buttons}</div>'


def chips(letter: str, axis: Axis) -> str:
    buttons = "".join(
        f'<button class="chip" data-axis="{letter}" data-value="{index}" aria-pressed="true" '
        f'title="{escape(text)}">{escape(text)}</button>'
        for index, text in enumerate(bare(axis))
    )
    return f'<div class="axis" role="group"><span class="name">{escape(axis.name)}</span>{buttons}</div>'


def sheets(panels: Sequence[Panel]) -> str:
    """Every panel as a table of pictures, and the zoom that they share."""
    return "\n".join(sheet(index, panel) for index, panel in enumerate(panels)) + ZOOM


def sheet(index: int, panel: Panel) -> str:
    heads = "".join(
        f'<th scope="col" data-x="{column}">{escape(text)}</th>' for column, text in enumerate(panel.columns)
    )
    rows = "".join(row_html(index, row, panel) for row in range(len(panel.rows)))
    title = f"<h2>{escape(panel.title)}</h2>" if panel.title else ""
    corner = "<td></td>" if any(panel.rows) else ""
    head = f"<thead><tr>{corner}{heads}</tr></thead>" if any(panel.columns) else ""
    return (
        f'<div class="sheet">{title}<div class="scroll"><table class="matrix">{head}'
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def row_html(index: int, row: int, panel: Panel) -> str:
    side = f'<th scope="row">{escape(panel.rows[row])}</th>' if any(panel.rows) else ""
    cells = "".join(
        f'<td data-x="{column}">{cell_html((column, row, index), panel)}</td>' for column in range(len(panel.columns))
    )
    return f'<tr data-y="{row}">{side}{cells}</tr>'


def cell_html(at: tuple[int, int, int], panel: Panel) -> str:
    column, row, _ = at
    cell = panel.cells.get((column, row))
    if cell is None:
        return ""
    words = [text for text in (panel.columns[column], panel.rows[row], panel.title) if text]
    label = escape(", ".join(words) or cell.recipe.prompt)
    note = panel.notes.get((column, row), "")
    under = f'<span class="note">{escape(note)}</span>' if note else ""
    place = ",".join(map(str, at))
    return (
        f'<button class="cell" data-at="{place}" data-label="{label}" data-verdict="{cell.recipe.verdict}">'
        f'<img loading="lazy" decoding="async" {picture_source(cell)} alt="{escape(cell.recipe.prompt)}: {label}">'
        f'{under}</button><div class="about">{settings_html(cell.recipe)}</div>'
    )


def picture_source(cell: Cell) -> str:
    """The picture's size and bytes: the PNG itself, whose recipe goes with it, while it is light."""
    content, kind = cell.path.read_bytes(), "png"
    if len(content) > HEAVY:
        smaller = io.BytesIO()
        with Image.open(cell.path) as picture:
            picture.convert("RGB").save(smaller, "WEBP", quality=QUALITY)
        content, kind = smaller.getvalue(), "webp"
    data = base64.b64encode(content).decode()
    return f'width="{cell.recipe.width}" height="{cell.recipe.height}" src="data:image/{kind};base64,{data}"'


def settings_html(recipe: Recipe) -> str:
    """What decides the picture, as a list."""
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts(recipe))
    return f'<dl class="settings">{rows}</dl>'


def facts(recipe: Recipe) -> Iterable[tuple[str, str]]:
    loras = ", ".join(f"{lora.name} at {lora.weight:g} ({lora.share:.2%} of its layers)" for lora in recipe.loras)
    said = {
        "prompt": recipe.prompt,
        "not": recipe.negative_prompt,
        "seed": str(recipe.seed),
        "model": recipe.model.name,
        "LoRA": loras,
        "steps": str(recipe.steps),
        "guidance": f"{recipe.guidance_scale:g}",
        "scheduler": recipe.sampler,
        "size": f"{recipe.width} × {recipe.height}",
        "precision": f"{recipe.dtype}, {recipe.device}",
        "tokens": f"{recipe.tokens.count} of {recipe.tokens.limit}",
        "not read": recipe.tokens.lost,
        "verdict": "" if recipe.verdict == "ok" else "no picture: the numbers broke down (NaN)",
    }
    return [(name, text) for name, text in said.items() if text]
