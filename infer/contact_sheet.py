"""Labelled contact sheets: images in rows and columns with headings and captions. Small images are enlarged, and the
sheet says so.

DejaVu Sans comes with matplotlib, so a sheet looks the same everywhere. It has no Chinese, Japanese or Korean: those
are written with the first installed font that has them; what no font has is reported once and shown as MISSING_GLYPH.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

MIN_READABLE_SIDE = 256  # pixels; a smaller side is enlarged by a whole factor until it is at least this
MAX_WIDTH = 2400  # pixels that a sheet may reach by enlarging its images
SIDE_WIDTH = 190  # pixels of the row headings, at most
GAP = 12  # pixels between cells
INK, FAINT, PAPER = "#1a1a1a", "#666666", "#ffffff"
TEXT_SIZE, HEAD_SIZE, TITLE_SIZE = 13, 15, 20
MAX_LINES = 6  # of a label; the PNG beside the sheet has the whole prompt
MISSING_GLYPH = "\N{REPLACEMENT CHARACTER}"
MAX_NAMED = 8  # missing characters that are named
PREFERRED_FONTS = ("cjk", "unicode", "sans")  # parts of file names, first choice first: many scripts in one style
VARIATION_SELECTORS = range(0xFE00, 0xFE10)  # they have no glyph of their own
Place = tuple[int, int]  # column, row
Value = TypeVar("Value")


@dataclass(frozen=True)
class Sheet:
    """Headings over the columns and beside the rows. cells, notes (small text under an image): by column and row."""

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Mapping[Place, Image.Image]
    title: str = ""
    footer: str = ""
    notes: Mapping[Place, str] = field(default_factory=dict)


def grid_sheet(images: Sequence[Image.Image], notes: Sequence[str], per_row: int, **texts: str) -> Sheet:
    """Images in reading order. texts: title and footer."""
    rows = [""] * math.ceil(len(images) / per_row)
    return Sheet([""] * per_row, rows, by_place(images, per_row), notes=by_place(notes, per_row), **texts)


def by_place(values: Sequence[Value], per_row: int) -> dict[Place, Value]:
    return {(index % per_row, index // per_row): value for index, value in enumerate(values)}


def choose_columns(count: int, per_prompt: int) -> int:
    """One row for each prompt while that fits a screen, else about as many columns as rows."""
    return per_prompt if 1 < per_prompt <= 8 else math.ceil(math.sqrt(count))


# ---- layout


@dataclass(frozen=True)
class Layout:
    """In pixels. side: width of the row headings with the gap behind them. width, height: of a cell."""

    side: int
    width: int
    height: int
    scale: int

    def left(self, column: int) -> int:
        return GAP + self.side + column * (self.width + GAP)


def layout_of(sheet: Sheet) -> Layout:
    """Cells as large as the largest image, small ones enlarged while the sheet still fits a screen."""
    width = max(image.width for image in sheet.cells.values())
    height = max(image.height for image in sheet.cells.values())
    fits = (MAX_WIDTH - SIDE_WIDTH) // (len(sheet.columns) * max(width, height))
    scale = max(1, min(math.ceil(MIN_READABLE_SIDE / max(width, height)), fits))
    longest = max((text_width(text, HEAD_SIZE) for text in sheet.rows), default=0)
    side = min(SIDE_WIDTH, math.ceil(longest)) + GAP if longest else 0
    least = 96 if len(sheet.columns) > 1 else 220  # room for a heading
    return Layout(side, max(width * scale, least), height * scale, scale)


def render_sheet(sheet: Sheet) -> Image.Image:
    layout = layout_of(sheet)
    width = layout.left(len(sheet.columns))
    enlarged = f"shown enlarged {layout.scale} times" if layout.scale > 1 else ""
    title = wrap_text(sheet.title, width - 2 * GAP, TITLE_SIZE)
    footer = wrap_text("; ".join(filter(None, [sheet.footer, enlarged])), width - 2 * GAP)
    heads = [wrap_text(text, layout.width, HEAD_SIZE) for text in sheet.columns]
    sides = [wrap_text(text, layout.side - GAP, HEAD_SIZE) for text in sheet.rows]
    notes = {at: wrap_text(text, layout.width) for at, text in sheet.notes.items()}
    heights = [
        max(layout.height + max_height(note for at, note in notes.items() if at[1] == row), side.height)
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


def placeholder_image(width: int, height: int, words: str = "NaN") -> Image.Image:
    """What stands for an image whose numbers broke down: grey, crossed out and labelled, so nobody takes it for one."""
    image = Image.new("RGB", (width, height), "#b0b0b0")
    pen = ImageDraw.Draw(image)
    pen.line([(0, 0), (width, height)], fill="#c03030", width=2)
    pen.line([(0, height), (width, 0)], fill="#c03030", width=2)
    pen.text((width // 2, height // 2), words, fill=INK, font=load_font(max(10, width // 6)), anchor="mm")
    return image


# ---- text


@dataclass(frozen=True)
class TextBlock:
    """Lines of wrapped text, with their height in pixels."""

    lines: tuple[str, ...]
    size: int = TEXT_SIZE

    @property
    def height(self) -> int:
        return len(self.lines) * line_height(self.size) + (GAP // 2 if self.lines else 0)


def max_height(blocks: Iterable[TextBlock]) -> int:
    return max((block.height for block in blocks), default=0)


def draw_block(pen: ImageDraw.ImageDraw, left: int, top: int, block: TextBlock, ink: str = INK) -> None:
    for number, line in enumerate(block.lines):
        draw_text(pen, left, top + number * line_height(block.size), line, ink, block.size)


def line_height(size: int) -> int:
    return math.ceil(size * 1.3)


def wrap_text(text: str, width: int, size: int = TEXT_SIZE) -> TextBlock:
    """Text broken at spaces, and inside words wider than `width` pixels; control characters become spaces."""
    if not text.strip():
        return TextBlock((), size)
    warn_missing_glyphs(text)
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


def warn_missing_glyphs(text: str) -> None:
    """One line on stderr for characters that no font of this machine has, each named once."""
    missing = sorted(
        letter for letter in {*text} - reported_characters if letter.isprintable() and font_for(letter) == Path()
    )
    if missing:
        reported_characters.update(missing)
        named = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in missing[:MAX_NAMED])
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        effect = f"sheets show {MISSING_GLYPH}; images and metadata are not affected"
        print(f"warning: no font has {named}{more}: {effect}. Install one, such as fonts-noto-cjk.", file=sys.stderr)
