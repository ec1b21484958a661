"""Transparent pictures of nouns, from fonts and from code, and what can be done to one: colours, outlines, shading."""

import random
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from data.errors import InputError
from tools.pocket.drawn import DRAWINGS, draw

FONTS = Path("/usr/share/fonts/truetype")
COLOUR_FONT = FONTS / "noto" / "NotoColorEmoji.ttf"  # Debian: fonts-noto-color-emoji
LINE_FONT = FONTS / "ancient-scripts" / "Symbola_hint.ttf"  # Debian: fonts-symbola
BITMAP = 109  # the only size, in points, of the colour font's 136x128 bitmaps
Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (222, 44, 40), "orange": (250, 136, 20), "yellow": (252, 212, 30), "green": (56, 164, 64),
    "blue": (36, 112, 226), "purple": (138, 62, 186), "pink": (246, 116, 172), "brown": (132, 86, 54),
    "black": (44, 44, 50), "white": (238, 240, 244), "gray": (142, 150, 156),
}  # fmt: skip


@cache
def nouns() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Noun -> its emoji ("" where code draws it) and its names: the noun itself, then others."""
    rows = {name: ("", (name, "refrigerator") if name == "fridge" else (name,)) for name in DRAWINGS}
    for line in (Path(__file__).parent / "nouns.txt").read_text(encoding="utf-8").splitlines():
        characters, names = line.split(" ", 1)
        spoken = tuple(names.split(" / "))
        rows[spoken[0]] = (characters, spoken)
    return dict(sorted(rows.items()))


@cache
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """An opened font. Raises InputError that names the package when it is missing."""
    if not path.exists():
        raise InputError("a font is missing", where=path, fix="apt install fonts-noto-color-emoji fonts-symbola.")
    return ImageFont.truetype(path, size)


def cropped(picture: Image.Image) -> Image.Image:
    """The picture cut to its visible pixels."""
    return picture.crop(picture.getchannel("A").getbbox())


@cache
def emoji(characters: str) -> Image.Image:
    """The colour glyph, RGBA, cut to its box."""
    picture = Image.new("RGBA", (180, 180), (0, 0, 0, 0))
    ImageDraw.Draw(picture).text((12, 12), characters, font=font(COLOUR_FONT, BITMAP), embedded_color=True)
    return cropped(picture)


@lru_cache(maxsize=4096)
def figure(noun: str, variation: int, colour: str = "") -> Image.Image:
    """The noun in its own colours or in one of COLOURS: RGBA, cut to its box. Code-drawn nouns come in variations."""
    if noun in DRAWINGS:
        body = COLOURS[colour] if colour and noun in ("fridge", "calculator") else None
        drawing = draw(noun, variation % 20, body)
        return recoloured(drawing, COLOURS[colour]) if colour and not body else drawing
    glyph = emoji(nouns()[noun][0])
    return recoloured(glyph, COLOURS[colour]) if colour else glyph


@cache
def line_drawing(noun: str) -> Image.Image:
    """A black drawing, RGBA: Symbola's, or the contours of the figure where that font has only an empty box."""
    character = nouns()[noun][0].replace("\ufe0f", "")
    pen_font = font(LINE_FONT, 140)

    def inked(text: str) -> Image.Image:
        picture = Image.new("RGBA", (320, 320), (0, 0, 0, 0))
        ImageDraw.Draw(picture).text((60, 60), text, font=pen_font, fill=(25, 25, 25, 255))
        return picture

    if len(character) == 1 and (drawing := inked(character)).tobytes() != inked("\U0010fffd").tobytes():
        return cropped(drawing)
    return contours(figure(noun, 0))


def recoloured(picture: Image.Image, colour: Colour) -> Image.Image:
    """A duotone of the picture from dark through `colour` to white; its lightness structure stays."""
    pixels = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255.0
    grey = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    solid = pixels[..., 3] > 0.5
    body = float(np.clip(np.median(grey[solid]) if solid.any() else 0.5, 0.2, 0.85))
    target = np.array(colour, dtype=np.float32) / 255.0
    low = np.clip(grey / body, 0.0, 1.0)[..., None] ** 1.2
    high = np.clip((grey - body) / (1.0 - body), 0.0, 1.0)[..., None] ** 1.5
    toned = target * (0.12 + 0.88 * low) * (1.0 - high) + high * (0.25 * target + 0.75)
    result = np.concatenate([toned, pixels[..., 3:]], axis=-1)
    return Image.fromarray((result * 255.0).round().clip(0, 255).astype(np.uint8), "RGBA")


def filled(picture: Image.Image, colour: Colour) -> Image.Image:
    """The picture's silhouette in one colour."""
    flat = Image.new("RGBA", picture.size, (*colour, 255))
    flat.putalpha(picture.getchannel("A"))
    return flat


def bordered(picture: Image.Image, colour: Colour, width: int) -> Image.Image:
    """The picture with a border of `width` pixels around it."""
    room = Image.new("RGBA", (picture.width + 2 * width, picture.height + 2 * width), (0, 0, 0, 0))
    room.paste(picture, (width, width))
    border = filled(room, colour)
    border.putalpha(room.getchannel("A").filter(ImageFilter.MaxFilter(2 * width + 1)))
    return Image.alpha_composite(border, room)


def contours(picture: Image.Image) -> Image.Image:
    """A pen drawing of a colour picture: its outline and its inner edges, black on transparent."""
    grey = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("L")
    edges = ImageChops.difference(grey.filter(ImageFilter.MaxFilter(5)), grey.filter(ImageFilter.MinFilter(5)))
    ink = Image.new("RGBA", picture.size, (25, 25, 25, 255))
    ink.putalpha(edges.point([min(255, max(0, (level - 40) * 4)) for level in range(256)]))
    return ink if ink.getchannel("A").getbbox() else bordered(picture, (25, 25, 25), 3)


def shaded(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture with a light from above on one side and a soft shadow on the other."""
    x = np.linspace(-1, 1, picture.width)[None, :] * rng.choice((-1, 1))
    y = np.linspace(-1, 1, picture.height)[:, None]
    light = (1.0 - 0.36 * (0.7 * x + y)).clip(0.55, 1.25)[..., None]
    pixels = np.asarray(picture, dtype=np.float32).copy()
    pixels[..., :3] = (pixels[..., :3] * light).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8), "RGBA")


def flattened(picture: Image.Image) -> Image.Image:
    """The picture in four flat colours."""
    colours = (
        picture.convert("RGB").quantize(5, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGBA")
    )
    colours.putalpha(picture.getchannel("A"))
    return colours
