"""Words on sheets: one font for nearly all of them, and an installed one for what it lacks.

DejaVu Sans comes with matplotlib, so a sheet looks the same everywhere; it has no Chinese, Japanese or Korean. Those
are written with the first installed font that has them; what no font has is said, once, and shown as LACKING.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

LACKING = "\N{REPLACEMENT CHARACTER}"
NAMED = 8  # characters that are named in full
PREFERRED = ("cjk", "unicode", "sans")  # parts of file names, first choice first: many scripts in one hand
JOINERS = range(0xFE00, 0xFE10)  # variation selectors: they have no shape of their own


@cache
def font(size: int, path: Path | None = None) -> ImageFont.FreeTypeFont:
    """A font in pixels, by default DejaVu Sans out of matplotlib; Pillow's own lacks the é of Pokémon."""
    return ImageFont.truetype(path or own_file(), size)


@cache
def own_file() -> Path:
    found = find_spec("matplotlib")
    assert found
    assert found.origin
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def length(text: str, size: int) -> float:
    """Pixels from the beginning of a text to its end."""
    return sum(font(size, path).getlength(part) for path, part in parts(text))


def write(pen: ImageDraw.ImageDraw, left: float, top: float, text: str, ink: str, size: int) -> None:
    """One line of text. The fonts stand on one line, DejaVu's."""
    base = top + font(size).getmetrics()[0]
    for path, part in parts(text):
        pen.text((left, base), part, fill=ink, font=font(size, path), anchor="ls")
        left += font(size, path).getlength(part)


def parts(text: str) -> Iterator[tuple[Path | None, str]]:
    """A text in pieces of one font each; None is DejaVu. What no font has is one LACKING a character."""
    if text.isascii():
        yield None, text
        return
    for path, letters in groupby(text, font_of):
        part = "".join(letters)
        yield (None, LACKING * len(part)) if path == Path() else (path, part)


@cache
def font_of(letter: str) -> Path | None:
    """The file of a font that has a character: None for DejaVu, an empty path where no font has it."""
    if letter.isascii() or ord(letter) in JOINERS or has(own_file(), letter):
        return None
    return next((path for path in installed() if has(path, letter)), Path())


def has(path: Path, letter: str) -> bool:
    return ord(letter) in letters_of(path)


@cache
def letters_of(path: Path) -> frozenset[int]:
    """The characters of a font that can be drawn at any size; none for a file that is damaged or made of bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        font(16, path)
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def installed() -> tuple[Path, ...]:
    """Every font of this machine, those for many scripts first, then by name: the same choice each time."""
    from matplotlib import font_manager

    def rank(path: Path) -> tuple[int, str]:
        name = path.name.lower()
        return next((place for place, word in enumerate(PREFERRED) if word in name), len(PREFERRED)), name

    return tuple(sorted(map(Path, font_manager.findSystemFonts()), key=rank))


said: set[str] = set()


def say_what_is_lacking(texts: Sequence[str]) -> None:
    """One line on stderr for characters that no font of this machine has, each said once."""
    found = {letter for text in texts if not text.isascii() for letter in text if letter.isprintable()}
    lacking = sorted(letter for letter in found - said if font_of(letter) == Path())
    if not lacking:
        return
    said.update(lacking)
    named = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in lacking[:NAMED])
    more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
    what = f"no font here has {named}{more}: sheets show {LACKING}; the pictures and their metadata are not touched"
    print(f"warning: {what}. Install one, such as fonts-noto-cjk.", file=sys.stderr)
