"""A labelled sheet: headings over the columns and beside the rows, the shared settings at the foot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from infer import lettering
from infer.sheets import FAINT, GAP, PAPER, READABLE, Block, tallest, wrap, write

SIDE_WIDTH = 190  # pixels of the row headings at most
TITLE_SIZE, HEAD_SIZE = 20, 15
WIDEST = 2400  # pixels that a sheet may reach by enlarging its pictures
At = tuple[int, int]  # column, row


@dataclass(frozen=True)
class Sheet:
    """What stands on one sheet. cells and notes (small words under a picture) by (column, row)."""

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Mapping[At, Image.Image]
    title: str = ""
    footer: str = ""
    notes: Mapping[At, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Where things stand, in pixels."""

    side: int  # width of the row headings, with the gap behind them
    width: int  # of a cell
    height: int

    def left(self, column: int) -> int:
        return GAP + self.side + column * (self.width + GAP)

    def full(self, columns: int) -> int:
        return self.left(columns)


def draw(sheet: Sheet) -> Image.Image:
    """The sheet on white paper; small pictures enlarged by a whole factor, larger ones as they are."""
    page = layout(sheet)
    inner = page.full(len(sheet.columns)) - 2 * GAP
    title, footer = wrap(sheet.title, inner, TITLE_SIZE), wrap(sheet.footer, inner)
    heads = [wrap(text, page.width, HEAD_SIZE) for text in sheet.columns]
    sides = [wrap(text, page.side - GAP, HEAD_SIZE) if page.side else Block(()) for text in sheet.rows]
    notes = {at: wrap(text, page.width) for at, text in sheet.notes.items()}
    rooms = [room(page, sides[row], [note for at, note in notes.items() if at[1] == row]) for row in range(len(sides))]
    top = GAP + title.height + (GAP // 2 if title.lines else 0)
    total = top + tallest(heads) + sum(rooms) + GAP * len(rooms) + footer.height + GAP // 2
    paper = Image.new("RGB", (page.full(len(sheet.columns)), total), PAPER)
    pen = ImageDraw.Draw(paper)
    write(pen, GAP, GAP, title)
    for column, head in enumerate(heads):  # bottom-aligned: a heading stands on its pictures
        write(pen, page.left(column), top + tallest(heads) - head.height, head)
    top += tallest(heads)
    for row, height in enumerate(rooms):
        write(pen, GAP, top + max(0, min(height, page.height) - sides[row].height) // 2, sides[row])
        for column in range(len(sheet.columns)):
            place(paper, pen, sheet, page, (column, row), top, notes)
        top += height + GAP
    write(pen, GAP, top, footer, FAINT)
    return paper


def layout(sheet: Sheet) -> Layout:
    """Cells as large as the largest picture, enlarged while the sheet stays on a screen."""
    width = max(picture.width for picture in sheet.cells.values())
    height = max(picture.height for picture in sheet.cells.values())
    fits = (WIDEST - SIDE_WIDTH) // (len(sheet.columns) * max(width, height) or 1)
    wanted = math.ceil(READABLE / max(width, height))
    scale = max(1, min(wanted, fits))
    longest = max((lettering.length(text, HEAD_SIZE) for text in sheet.rows), default=0)
    side = min(SIDE_WIDTH, math.ceil(longest)) + GAP if longest else 0
    least = 96 if len(sheet.columns) > 1 else 220  # room for a heading
    return Layout(side, max(width * scale, least), height * scale)


def room(page: Layout, side: Block, notes: Sequence[Block]) -> int:
    """The height of a row."""
    return max(page.height + tallest(notes), side.height)


def place(
    paper: Image.Image,
    pen: ImageDraw.ImageDraw,
    sheet: Sheet,
    page: Layout,
    at: At,
    top: int,
    notes: Mapping[At, Block],
) -> None:
    """One picture and its note; a place without a picture stays white."""
    picture = sheet.cells.get(at)
    if picture is None:
        return
    scale = min(page.width / picture.width, page.height / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    shown = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
    paper.paste(shown.convert("RGB"), (page.left(at[0]), top))
    if at in notes:
        write(pen, page.left(at[0]), top + page.height + GAP // 3, notes[at], FAINT)
