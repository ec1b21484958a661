"""Labelled sheets: pictures in rows, with the words that made them. Small pictures are enlarged; the sheet says so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from infer import lettering
from infer.lettering import font

READABLE = 256  # pixels; a smaller side is enlarged by a whole factor until it is at least this
GAP = 12  # pixels between cells
INK, FAINT, PAPER = "#1a1a1a", "#666666", "#ffffff"
TEXT_SIZE, HEAD_SIZE = 13, 16
MOST_LINES = 6  # of a label; a novel of a prompt is cut with an ellipsis, the PNG beside it has all of it
MOST_CELLS = 100  # of a sheet that is made unasked


@dataclass(frozen=True)
class Cell:
    """A picture and the words under it."""

    picture: Image.Image
    label: str = ""


@dataclass(frozen=True)
class Row:
    """Cells side by side, and the words over them."""

    cells: Sequence[Cell]
    label: str = ""


@dataclass(frozen=True)
class Block:
    """Lines of text that were wrapped to a width, with the room they take in pixels."""

    lines: tuple[str, ...]
    size: int = TEXT_SIZE

    @property
    def height(self) -> int:
        return len(self.lines) * line_height(self.size) + (GAP // 2 if self.lines else 0)


def write(pen: ImageDraw.ImageDraw, left: int, top: int, block: Block, ink: str = INK) -> None:
    """The lines of a block, one under the other."""
    for number, line in enumerate(block.lines):
        lettering.write(pen, left, top + number * line_height(block.size), line, ink, block.size)


def line_height(size: int) -> int:
    return math.ceil(size * 1.3)


def enlargement(width: int, height: int) -> int:
    """The whole factor that makes the longer side at least READABLE pixels."""
    return max(1, math.ceil(READABLE / max(width, height)))


def wrap(text: str, width: int, size: int = TEXT_SIZE) -> Block:
    """Text broken at spaces, and inside words that are wider than `width` pixels; control characters become spaces."""
    if not text.strip():
        return Block((), size)
    lettering.say_what_is_lacking([text])
    lines = [""]
    for word in pieces("".join(char if char.isprintable() else " " for char in text).split(), width, size):
        longer = f"{lines[-1]} {word}".strip()
        if lettering.length(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
        if len(lines) > MOST_LINES:
            return Block((*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} ..."), size)
    return Block(tuple(lines), size)


def pieces(words: Sequence[str], width: int, size: int) -> Iterator[str]:
    """Words, those wider than `width` cut into parts that fit."""

    def measure(text: str) -> float:
        return lettering.length(text, size)

    for word in words:
        rest = word
        while measure(rest) > width and len(rest) > 1:
            fits = max(1, next(end for end in range(1, len(rest) + 1) if measure(rest[:end]) > width) - 1)
            yield rest[:fits]
            rest = rest[fits:]
        yield rest


def sheet(rows: Sequence[Row], *, columns: Sequence[str] = (), footer: str = "") -> Image.Image:
    """Lay rows of equally large pictures on white paper. columns: a heading for each column. footer: what all share."""
    assert rows
    assert rows[0].cells
    width, height = rows[0].cells[0].picture.size
    scale = enlargement(width, height)
    note = f"{width} x {height} pixels" + (f", shown enlarged {scale} times" if scale > 1 else "")
    page = Page(width * scale, height * scale, max(len(row.cells) for row in rows))
    heads = [wrap(name, page.cell_width, HEAD_SIZE) for name in columns]
    foot = wrap(f"{footer}; {note}" if footer else note, page.inner_width)
    labels = [wrap(row.label, page.inner_width) for row in rows]
    captions = [[wrap(cell.label, page.cell_width) for cell in row.cells] for row in rows]
    heights = [label.height + page.cell_height + tallest(row) for label, row in zip(labels, captions, strict=True)]
    total = GAP + tallest(heads) + sum(heights) + GAP * len(rows) + foot.height + GAP
    draw = page.begin(total)
    top = GAP
    for number, head in enumerate(heads):
        write(draw, page.left(number), top, head)
    top += tallest(heads)
    for row, label, under, room in zip(rows, labels, captions, heights, strict=True):
        page.row(draw, top, row, label, under)
        top += room + GAP
    write(draw, GAP, top, foot, FAINT)
    return page.paper


def tallest(blocks: Sequence[Block]) -> int:
    return max((block.height for block in blocks), default=0)


class Page:
    """The paper of one sheet and where things stand on it, in pixels."""

    def __init__(self, cell_width: int, cell_height: int, columns: int) -> None:
        self.cell_width, self.cell_height = cell_width, cell_height
        self.inner_width = columns * (cell_width + GAP) - GAP
        self.paper = Image.new("RGB", (1, 1))

    def begin(self, height: int) -> ImageDraw.ImageDraw:
        self.paper = Image.new("RGB", (self.inner_width + 2 * GAP, height), PAPER)
        return ImageDraw.Draw(self.paper)

    def left(self, column: int) -> int:
        return GAP + column * (self.cell_width + GAP)

    def row(self, draw: ImageDraw.ImageDraw, top: int, row: Row, label: Block, under: Sequence[Block]) -> None:
        write(draw, GAP, top, label)
        top += label.height
        for number, (cell, caption) in enumerate(zip(row.cells, under, strict=True)):
            self.paper.paste(enlarged(cell.picture, self.cell_width, self.cell_height), (self.left(number), top))
            write(draw, self.left(number), top + self.cell_height + GAP // 2, caption)


def enlarged(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture as it is, or blown up by a whole factor with its pixels kept sharp enough to judge."""
    picture = picture.convert("RGB")
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def grid(cells: Sequence[Cell], per_row: int, *, footer: str = "") -> Image.Image:
    """Cells in reading order, at most MOST_CELLS of them; the footer says if there were more."""
    shown = cells[:MOST_CELLS]
    more = f"the first {len(shown)} of {len(cells)} pictures" if len(cells) > len(shown) else ""
    rows = [Row(shown[start : start + per_row]) for start in range(0, len(shown), per_row)]
    return sheet(rows, footer="; ".join(filter(None, [footer, more])))


def columns_for(count: int, per_prompt: int) -> int:
    """One row for each prompt while that stays on a screen, else about as many columns as rows."""
    return per_prompt if 1 < per_prompt <= 8 else math.ceil(math.sqrt(count))


def broken(width: int, height: int, words: str = "NaN") -> Image.Image:
    """What stands for a picture whose numbers broke down: grey, crossed out and named: nobody takes it for one."""
    picture = Image.new("RGB", (width, height), "#b0b0b0")
    draw = ImageDraw.Draw(picture)
    draw.line([(0, 0), (width, height)], fill="#c03030", width=2)
    draw.line([(0, height), (width, 0)], fill="#c03030", width=2)
    draw.text((width // 2, height // 2), words, fill=INK, font=font(max(10, width // 6)), anchor="mm")
    return picture
