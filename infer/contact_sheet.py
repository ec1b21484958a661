"""Words on sheets: one font for nearly all of them, and an installed one for what it lacks.

DejaVu Sans comes with matplotlib, so a sheet looks the same everywhere; it has no Chinese, Japanese or Korean. Those
are written with the first installed font that has them; what no font has is said, once, and shown as LACKING.
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

MISSING_GLYPH = "\N{REPLACEMENT CHARACTER}"
MAX_NAMED = 8  # characters that are named in full
PREFERRED_FONTS = ("cjk", "unicode", "sans")  # parts of file names, first choice first: many scripts in one hand
VARIATION_SELECTORS = range(0xFE00, 0xFE10)  # variation selectors: they have no shape of their own


@cache
def load_font(size: int, path: Path | None = None) -> ImageFont.FreeTypeFont:
    """A font in pixels, by default DejaVu Sans out of matplotlib; Pillow's own lacks the é of Pokémon."""
    return ImageFont.truetype(path or dejavu_path(), size)


@cache
def dejavu_path() -> Path:
    found = find_spec("matplotlib")
    assert found
    assert found.origin
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def text_width(text: str, size: int) -> float:
    """Pixels from the beginning of a text to its end."""
    return sum(load_font(size, path).getlength(part) for path, part in split_by_font(text))


def draw_text(pen: ImageDraw.ImageDraw, left: float, top: float, text: str, ink: str, size: int) -> None:
    """One line of text. The fonts stand on one line, DejaVu's."""
    base = top + load_font(size).getmetrics()[0]
    for path, part in split_by_font(text):
        pen.text((left, base), part, fill=ink, font=load_font(size, path), anchor="ls")
        left += load_font(size, path).getlength(part)


def split_by_font(text: str) -> Iterator[tuple[Path | None, str]]:
    """A text in pieces of one font each; None is DejaVu. What no font has is one LACKING a character."""
    if text.isascii():
        yield None, text
        return
    for path, letters in groupby(text, font_for):
        part = "".join(letters)
        yield (None, MISSING_GLYPH * len(part)) if path == Path() else (path, part)


@cache
def font_for(letter: str) -> Path | None:
    """The file of a font that has a character: None for DejaVu, an empty path where no font has it."""
    if letter.isascii() or ord(letter) in VARIATION_SELECTORS or has_glyph(dejavu_path(), letter):
        return None
    return next((path for path in installed_fonts() if has_glyph(path, letter)), Path())


def has_glyph(path: Path, letter: str) -> bool:
    return ord(letter) in glyphs_of(path)


@cache
def glyphs_of(path: Path) -> frozenset[int]:
    """The characters of a font that can be drawn at any size; none for a file that is damaged or made of bitmaps."""
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
    """One line on stderr for characters that no font of this machine has, each said once."""
    found = {letter for text in texts if not text.isascii() for letter in text if letter.isprintable()}
    lacking = sorted(letter for letter in found - reported_characters if font_for(letter) == Path())
    if not lacking:
        return
    reported_characters.update(lacking)
    named = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in lacking[:MAX_NAMED])
    more = f" and {len(lacking) - MAX_NAMED} more" if len(lacking) > MAX_NAMED else ""
    what = (
        f"no font here has {named}{more}: sheets show {MISSING_GLYPH}; the pictures and their metadata are not touched"
    )
    print(f"warning: {what}. Install one, such as fonts-noto-cjk.", file=sys.stderr)


MIN_READABLE_SIDE = 256  # pixels; a smaller side is enlarged by a whole factor until it is at least this
GAP = 12  # pixels between cells
INK, FAINT, PAPER = "#1a1a1a", "#666666", "#ffffff"
TEXT_SIZE, HEAD_SIZE = 13, 16
MAX_LINES = 6  # of a label; a novel of a prompt is cut with an ellipsis, the PNG beside it has all of it
MAX_CELLS = 100  # of a sheet that is made unasked


@dataclass(frozen=True)
class SheetCell:
    """A picture and the words under it."""

    picture: Image.Image
    label: str = ""


@dataclass(frozen=True)
class SheetRow:
    """Cells side by side, and the words over them."""

    cells: Sequence[SheetCell]
    label: str = ""


@dataclass(frozen=True)
class TextBlock:
    """Lines of text that were wrapped to a width, with the room they take in pixels."""

    lines: tuple[str, ...]
    size: int = TEXT_SIZE

    @property
    def height(self) -> int:
        return len(self.lines) * line_height(self.size) + (GAP // 2 if self.lines else 0)


def draw_block(pen: ImageDraw.ImageDraw, left: int, top: int, block: TextBlock, ink: str = INK) -> None:
    """The lines of a block, one under the other."""
    for number, line in enumerate(block.lines):
        draw_text(pen, left, top + number * line_height(block.size), line, ink, block.size)


def line_height(size: int) -> int:
    return math.ceil(size * 1.3)


def enlargement(width: int, height: int) -> int:
    """The whole factor that makes the longer side at least READABLE pixels."""
    return max(1, math.ceil(MIN_READABLE_SIDE / max(width, height)))


def wrap_text(text: str, width: int, size: int = TEXT_SIZE) -> TextBlock:
    """Text broken at spaces, and inside words that are wider than `width` pixels; control characters become spaces."""
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

    def measure(text: str) -> float:
        return text_width(text, size)

    for word in words:
        rest = word
        while measure(rest) > width and len(rest) > 1:
            fits = max(1, next(end for end in range(1, len(rest) + 1) if measure(rest[:end]) > width) - 1)
            yield rest[:fits]
            rest = rest[fits:]
        yield rest


def build_sheet(rows: Sequence[SheetRow], *, columns: Sequence[str] = (), footer: str = "") -> Image.Image:
    """Lay rows of equally large pictures on white paper. columns: a heading for each column. footer: what all share."""
    assert rows
    assert rows[0].cells
    width, height = rows[0].cells[0].picture.size
    scale = enlargement(width, height)
    note = f"{width} x {height} pixels" + (f", shown enlarged {scale} times" if scale > 1 else "")
    page = SheetCanvas(width * scale, height * scale, max(len(row.cells) for row in rows))
    heads = [wrap_text(name, page.cell_width, HEAD_SIZE) for name in columns]
    foot = wrap_text(f"{footer}; {note}" if footer else note, page.inner_width)
    labels = [wrap_text(row.label, page.inner_width) for row in rows]
    captions = [[wrap_text(cell.label, page.cell_width) for cell in row.cells] for row in rows]
    heights = [label.height + page.cell_height + max_height(row) for label, row in zip(labels, captions, strict=True)]
    total = GAP + max_height(heads) + sum(heights) + GAP * len(rows) + foot.height + GAP
    draw = page.begin(total)
    top = GAP
    for number, head in enumerate(heads):
        draw_block(draw, page.left(number), top, head)
    top += max_height(heads)
    for row, label, under, room in zip(rows, labels, captions, heights, strict=True):
        page.row(draw, top, row, label, under)
        top += room + GAP
    draw_block(draw, GAP, top, foot, FAINT)
    return page.paper


def max_height(blocks: Sequence[TextBlock]) -> int:
    return max((block.height for block in blocks), default=0)


class SheetCanvas:
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

    def row(
        self, draw: ImageDraw.ImageDraw, top: int, row: SheetRow, label: TextBlock, under: Sequence[TextBlock]
    ) -> None:
        draw_block(draw, GAP, top, label)
        top += label.height
        for number, (cell, caption) in enumerate(zip(row.cells, under, strict=True)):
            self.paper.paste(enlarge(cell.picture, self.cell_width, self.cell_height), (self.left(number), top))
            draw_block(draw, self.left(number), top + self.cell_height + GAP // 2, caption)


def enlarge(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture as it is, or blown up by a whole factor with its pixels kept sharp enough to judge."""
    picture = picture.convert("RGB")
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def build_grid(cells: Sequence[SheetCell], per_row: int, *, footer: str = "") -> Image.Image:
    """Cells in reading order, at most MOST_CELLS of them; the footer says if there were more."""
    shown = cells[:MAX_CELLS]
    more = f"the first {len(shown)} of {len(cells)} pictures" if len(cells) > len(shown) else ""
    rows = [SheetRow(shown[start : start + per_row]) for start in range(0, len(shown), per_row)]
    return build_sheet(rows, footer="; ".join(filter(None, [footer, more])))


def choose_columns(count: int, per_prompt: int) -> int:
    """One row for each prompt while that stays on a screen, else about as many columns as rows."""
    return per_prompt if 1 < per_prompt <= 8 else math.ceil(math.sqrt(count))


def placeholder_image(width: int, height: int, words: str = "NaN") -> Image.Image:
    """What stands for a picture whose numbers broke down: grey, crossed out and named: nobody takes it for one."""
    picture = Image.new("RGB", (width, height), "#b0b0b0")
    draw = ImageDraw.Draw(picture)
    draw.line([(0, 0), (width, height)], fill="#c03030", width=2)
    draw.line([(0, height), (width, 0)], fill="#c03030", width=2)
    draw.text((width // 2, height // 2), words, fill=INK, font=load_font(max(10, width // 6)), anchor="mm")
    return picture
