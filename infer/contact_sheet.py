"""Labelled contact sheets: images in rows with captions. Small images are enlarged; the sheet says so.

DejaVu Sans comes with matplotlib, so a sheet looks the same everywhere. It has no Chinese, Japanese or Korean: those
are written with the first installed font that has them; what no font has is reported once and shown as MISSING_GLYPH.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MIN_READABLE_SIDE = 256  # pixels; a smaller side is enlarged by a whole factor until it is at least this
GAP = 12  # pixels between cells
INK, FAINT, PAPER = "#1a1a1a", "#666666", "#ffffff"
TEXT_SIZE, HEAD_SIZE = 13, 16
MAX_LINES = 6  # of a label; the PNG beside the sheet has the whole prompt
MAX_CELLS = 100
MISSING_GLYPH = "\N{REPLACEMENT CHARACTER}"
MAX_NAMED = 8  # missing characters that are named
PREFERRED_FONTS = ("cjk", "unicode", "sans")  # parts of file names, first choice first: many scripts in one style
VARIATION_SELECTORS = range(0xFE00, 0xFE10)  # they have no glyph of their own


@dataclass(frozen=True)
class SheetCell:
    """An image and the caption under it."""

    image: Image.Image
    label: str = ""


@dataclass(frozen=True)
class SheetRow:
    """Cells side by side, and the heading over them."""

    cells: Sequence[SheetCell]
    label: str = ""


@dataclass(frozen=True)
class TextBlock:
    """Lines of wrapped text, with their height in pixels."""

    lines: tuple[str, ...]
    size: int = TEXT_SIZE

    @property
    def height(self) -> int:
        return len(self.lines) * line_height(self.size) + (GAP // 2 if self.lines else 0)


# ---- layout


def build_grid(cells: Sequence[SheetCell], per_row: int, *, footer: str = "") -> Image.Image:
    """Cells in reading order, at most MAX_CELLS of them; the footer says if there were more."""
    shown = cells[:MAX_CELLS]
    more = f"the first {len(shown)} of {len(cells)} images" if len(cells) > len(shown) else ""
    rows = [SheetRow(shown[start : start + per_row]) for start in range(0, len(shown), per_row)]
    return build_sheet(rows, footer="; ".join(filter(None, [footer, more])))


def build_sheet(rows: Sequence[SheetRow], *, columns: Sequence[str] = (), footer: str = "") -> Image.Image:
    """Rows of images of one size on white paper. columns: headings. footer: what all have in common."""
    width, height = rows[0].cells[0].image.size
    scale = max(1, math.ceil(MIN_READABLE_SIDE / max(width, height)))
    cell_width, cell_height = width * scale, height * scale
    inner_width = max(len(row.cells) for row in rows) * (cell_width + GAP) - GAP
    note = f"{width} x {height} pixels" + (f", shown enlarged {scale} times" if scale > 1 else "")
    foot = wrap_text(f"{footer}; {note}" if footer else note, inner_width)
    heads = [wrap_text(name, cell_width, HEAD_SIZE) for name in columns]
    labels = [wrap_text(row.label, inner_width) for row in rows]
    captions = [[wrap_text(cell.label, cell_width) for cell in row.cells] for row in rows]
    heights = [label.height + cell_height + max_height(row) for label, row in zip(labels, captions, strict=True)]
    total = GAP + max_height(heads) + sum(heights) + GAP * len(rows) + foot.height + GAP
    paper = Image.new("RGB", (inner_width + 2 * GAP, total), PAPER)
    pen, top = ImageDraw.Draw(paper), GAP
    for number, head in enumerate(heads):
        draw_block(pen, GAP + number * (cell_width + GAP), top, head)
    top += max_height(heads)
    for row, label, under, room in zip(rows, labels, captions, heights, strict=True):
        draw_block(pen, GAP, top, label)
        for number, (cell, caption) in enumerate(zip(row.cells, under, strict=True)):
            left = GAP + number * (cell_width + GAP)
            paper.paste(enlarge(cell.image, cell_width, cell_height), (left, top + label.height))
            draw_block(pen, left, top + label.height + cell_height + GAP // 2, caption)
        top += room + GAP
    draw_block(pen, GAP, top, foot, FAINT)
    return paper


def choose_columns(count: int, per_prompt: int) -> int:
    """One row for each prompt while that fits a screen, else about as many columns as rows."""
    return per_prompt if 1 < per_prompt <= 8 else math.ceil(math.sqrt(count))


def max_height(blocks: Sequence[TextBlock]) -> int:
    return max((block.height for block in blocks), default=0)


def enlarge(image: Image.Image, width: int, height: int) -> Image.Image:
    image = image.convert("RGB")
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def placeholder_image(width: int, height: int, words: str = "NaN") -> Image.Image:
    """What stands for an image whose numbers broke down: grey, crossed out and labelled, so nobody takes it for one."""
    image = Image.new("RGB", (width, height), "#b0b0b0")
    pen = ImageDraw.Draw(image)
    pen.line([(0, 0), (width, height)], fill="#c03030", width=2)
    pen.line([(0, height), (width, 0)], fill="#c03030", width=2)
    pen.text((width // 2, height // 2), words, fill=INK, font=load_font(max(10, width // 6)), anchor="mm")
    return image


# ---- text


def draw_block(pen: ImageDraw.ImageDraw, left: int, top: int, block: TextBlock, ink: str = INK) -> None:
    for number, line in enumerate(block.lines):
        draw_text(pen, left, top + number * line_height(block.size), line, ink, block.size)


def line_height(size: int) -> int:
    return math.ceil(size * 1.3)


def wrap_text(text: str, width: int, size: int = TEXT_SIZE) -> TextBlock:
    """Text broken at spaces, and inside words wider than `width` pixels; control characters become spaces."""
    if not text.strip():
        return TextBlock((), size)
    warn_missing_glyphs([text])
    lines = [""]
    for word in split_words("".join(char if char.isprintable() else " " for char in text).split(), width, size):
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
        if len(lines) > MAX_LINES:
            return TextBlock((*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1]} ..."), size)
    return TextBlock(tuple(lines), size)


def split_words(words: Sequence[str], width: int, size: int) -> Iterator[str]:
    """Words, those wider than `width` cut into parts that fit."""
    for word in words:
        rest = word
        while text_width(rest, size) > width and len(rest) > 1:
            fits = max(1, next(end for end in range(1, len(rest) + 1) if text_width(rest[:end], size) > width) - 1)
            yield rest[:fits]
            rest = rest[fits:]
        yield rest


def text_width(text: str, size: int) -> float:
    return sum(load_font(size, path).getlength(part) for path, part in split_by_font(text))


def draw_text(pen: ImageDraw.ImageDraw, left: float, top: float, text: str, ink: str, size: int) -> None:
    """One line of text; all fonts share DejaVu's baseline."""
    base = top + load_font(size).getmetrics()[0]
    for path, part in split_by_font(text):
        pen.text((left, base), part, fill=ink, font=load_font(size, path), anchor="ls")
        left += load_font(size, path).getlength(part)


# ---- fonts


def split_by_font(text: str) -> Iterator[tuple[Path | None, str]]:
    """A text in pieces of one font each; None is DejaVu. Characters that no font has become MISSING_GLYPH."""
    for path, letters in groupby(text, font_for):
        part = "".join(letters)
        yield (None, MISSING_GLYPH * len(part)) if path == Path() else (path, part)


@cache
def font_for(letter: str) -> Path | None:
    """The file of a font that has a character: None for DejaVu, an empty path where no font has it."""
    if letter.isascii() or ord(letter) in VARIATION_SELECTORS or ord(letter) in glyphs_of(dejavu_path()):
        return None
    return next((path for path in installed_fonts() if ord(letter) in glyphs_of(path)), Path())


@cache
def load_font(size: int, path: Path | None = None) -> ImageFont.FreeTypeFont:
    """A font in pixels, by default DejaVu Sans; Pillow's own lacks the é of Pokémon."""
    return ImageFont.truetype(path or dejavu_path(), size)


@cache
def dejavu_path() -> Path:
    spec = find_spec("matplotlib")
    assert spec and spec.origin
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def glyphs_of(path: Path) -> frozenset[int]:
    """The characters of a scalable font; none for a file that is damaged or made of bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        load_font(16, path)
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def installed_fonts() -> tuple[Path, ...]:
    """Every font of this machine, those for many scripts first, then by name: the same choice each time."""
    from matplotlib import font_manager

    def rank(path: Path) -> tuple[int, str]:
        name = path.name.lower()
        return next((place for place, word in enumerate(PREFERRED_FONTS) if word in name), len(PREFERRED_FONTS)), name

    return tuple(sorted(map(Path, font_manager.findSystemFonts()), key=rank))


reported_characters: set[str] = set()


def warn_missing_glyphs(texts: Sequence[str]) -> None:
    """One line on stderr for characters that no font of this machine has, each named once."""
    letters = {letter for text in texts if not text.isascii() for letter in text if letter.isprintable()}
    missing = sorted(letter for letter in letters - reported_characters if font_for(letter) == Path())
    if missing:
        reported_characters.update(missing)
        named = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in missing[:MAX_NAMED])
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        effect = f"sheets show {MISSING_GLYPH}; images and metadata are not affected"
        print(f"warning: no font has {named}{more}: {effect}. Install one, such as fonts-noto-cjk.", file=sys.stderr)
