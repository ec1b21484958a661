"""Transparent pictures of nouns: the colour emoji, the code drawings, and Symbola's line drawings."""

from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data.errors import InputError
from tools.pocket.drawn import DRAWINGS, draw
from tools.pocket.nouns import emoji_nouns

FONTS = Path("/usr/share/fonts/truetype")
COLOUR_FONT = FONTS / "noto" / "NotoColorEmoji.ttf"  # Debian: fonts-noto-color-emoji
LINE_FONT = FONTS / "ancient-scripts" / "Symbola_hint.ttf"  # Debian: fonts-symbola
BITMAP = 109  # the only size, in points, of the colour font's 136x128 bitmaps
VARIATIONS = 12  # of each drawn noun


def have_fonts() -> bool:
    """Whether both fonts are installed."""
    return COLOUR_FONT.exists() and LINE_FONT.exists()


@cache
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """An opened font; InputError names the package when it is missing."""
    if not path.exists():
        raise InputError("a font is missing", where=path, fix="apt install fonts-noto-color-emoji fonts-symbola.")
    return ImageFont.truetype(path, size)


def cropped(picture: Image.Image) -> Image.Image:
    """The picture cut to its visible pixels."""
    box = picture.getchannel("A").getbbox()
    assert box is not None, "an empty glyph"
    return picture.crop(box)


@cache
def emoji(characters: str) -> Image.Image:
    """The colour glyph, RGBA, cut to its box."""
    picture = Image.new("RGBA", (180, 180), (0, 0, 0, 0))
    ImageDraw.Draw(picture).text((12, 12), characters, font=font(COLOUR_FONT, BITMAP), embedded_color=True)
    return cropped(picture)


def inked(pen_font: ImageFont.FreeTypeFont, character: str) -> bytes:
    """A character's black and white pixels, to tell a drawing from the font's empty box."""
    picture = Image.new("1", (320, 320))
    ImageDraw.Draw(picture).text((60, 60), character, font=pen_font, fill=1)
    return picture.tobytes()


@cache
def line_drawing(noun: str) -> Image.Image | None:
    """Symbola's black drawing of a noun, RGBA; None where the font has none (it would draw its empty box)."""
    character = emoji_nouns().get(noun, "").replace("\ufe0f", "")
    if len(character) != 1:
        return None
    pen_font = font(LINE_FONT, 140)
    if inked(pen_font, character) == inked(pen_font, "\U0010fffd"):
        return None
    picture = Image.new("RGBA", (320, 320), (0, 0, 0, 0))
    ImageDraw.Draw(picture).text((60, 60), character, font=pen_font, fill=(25, 25, 25, 255))
    return cropped(picture) if picture.getchannel("A").getbbox() else None


def glyph(noun: str, variation: int) -> Image.Image:
    """The noun's picture, RGBA; code-drawn nouns come in VARIATIONS."""
    if noun in DRAWINGS:
        return drawn(noun, variation % VARIATIONS)
    return emoji(emoji_nouns()[noun])


@cache
def drawn(noun: str, variation: int) -> Image.Image:
    return draw(noun, variation)
