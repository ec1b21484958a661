"""A labeled sheet: headings over the columns and beside the rows, the shared settings at the foot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from infer import contact_sheet
from infer.contact_sheet import FAINT, GAP, MIN_READABLE_SIDE, PAPER, TextBlock, draw_block, max_height, wrap_text

SIDE_WIDTH = 190  # pixels of the row headings, at most
TITLE_SIZE, HEAD_SIZE = 20, 15
MAX_WIDTH = 2400  # pixels that a sheet may reach by enlarging its images
Place = tuple[int, int]  # column, row


@dataclass(frozen=True)
class Sheet:
    """cells, notes (small text under an image): by column and row."""

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Mapping[Place, Image.Image]
    title: str = ""
    footer: str = ""
    notes: Mapping[Place, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """In pixels. side: width of the row headings with the gap behind them. width, height: of a cell."""

    side: int
    width: int
    height: int

    def left(self, column: int) -> int:
        return GAP + self.side + column * (self.width + GAP)


def layout_of(sheet: Sheet) -> Layout:
    """Cells as large as the largest image, small ones enlarged while the sheet still fits a screen."""
    width = max(image.width for image in sheet.cells.values())
    height = max(image.height for image in sheet.cells.values())
    fits = (MAX_WIDTH - SIDE_WIDTH) // (len(sheet.columns) * max(width, height) or 1)
    scale = max(1, min(math.ceil(MIN_READABLE_SIDE / max(width, height)), fits))
    longest = max((contact_sheet.text_width(text, HEAD_SIZE) for text in sheet.rows), default=0)
    side = min(SIDE_WIDTH, math.ceil(longest)) + GAP if longest else 0
    least = 96 if len(sheet.columns) > 1 else 220  # room for a heading
    return Layout(side, max(width * scale, least), height * scale)


def render_sheet(sheet: Sheet) -> Image.Image:
    layout = layout_of(sheet)
    width = layout.left(len(sheet.columns))
    title, footer = wrap_text(sheet.title, width - 2 * GAP, TITLE_SIZE), wrap_text(sheet.footer, width - 2 * GAP)
    heads = [wrap_text(text, layout.width, HEAD_SIZE) for text in sheet.columns]
    sides = [wrap_text(text, layout.side - GAP, HEAD_SIZE) if layout.side else TextBlock(()) for text in sheet.rows]
    notes = {at: wrap_text(text, layout.width) for at, text in sheet.notes.items()}
    heights = [
        max(layout.height + max_height([note for at, note in notes.items() if at[1] == row]), side.height)
        for row, side in enumerate(sides)
    ]
    top = GAP + title.height + (GAP // 2 if title.lines else 0)
    total = top + max_height(heads) + sum(heights) + GAP * len(heights) + footer.height + GAP // 2
    canvas = Image.new("RGB", (width, total), PAPER)
    pen = ImageDraw.Draw(canvas)
    draw_block(pen, GAP, GAP, title)
    for column, head in enumerate(heads):  # bottom-aligned
        draw_block(pen, layout.left(column), top + max_height(heads) - head.height, head)
    top += max_height(heads)
    for row, height in enumerate(heights):
        draw_block(pen, GAP, top + max(0, min(height, layout.height) - sides[row].height) // 2, sides[row])
        for column in range(len(sheet.columns)):
            at, left = (column, row), layout.left(column)
            if at in sheet.cells:
                canvas.paste(fit_cell(sheet.cells[at], layout), (left, top))
                draw_block(pen, left, top + layout.height + GAP // 3, notes.get(at, TextBlock(())), FAINT)
        top += height + GAP
    draw_block(pen, GAP, top, footer, FAINT)
    return canvas


def fit_cell(image: Image.Image, layout: Layout) -> Image.Image:
    scale = min(layout.width / image.width, layout.height / image.height)
    size = (round(image.width * scale), round(image.height * scale))
    return (image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)).convert("RGB")
