"""What the attributes of the world are drawn with: flames, drops, leaves and so on, faces, wings and hats, by code.

Everything is drawn large and scaled down. Symbols are RGBA and cut to their box; layers are RGBA of a picture's size.
"""

import math
import random
from collections.abc import Callable, Sequence
from functools import cache

from PIL import Image, ImageDraw

SIDE = 192  # pixels of a symbol before it is scaled
Colour = tuple[int, int, int]
Point = tuple[float, float]
Pen = ImageDraw.ImageDraw
INKS: tuple[Colour, ...] = ((30, 26, 40), (24, 22, 34), (44, 28, 32), (20, 30, 50))


def smooth(points: Sequence[Point], closed: bool = True, parts: int = 8) -> list[Point]:
    """A Catmull-Rom curve through the points."""
    count, curve = len(points), []
    for index in range(count if closed else count - 1):
        p0, p1, p2, p3 = (
            points[(index + k) % count] if closed else points[min(count - 1, max(0, index + k))] for k in (-1, 0, 1, 2)
        )
        for part in range(parts):
            t = part / parts
            curve.append(tuple(
                0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t * t + (3 * b - a - 3 * c + d) * t**3)
                for a, b, c, d in zip(p0, p1, p2, p3, strict=True)
            ))  # fmt: skip
    return curve


def around(points: Sequence[Point], scale: float, x: float = 96, y: float = 96) -> list[Point]:
    """The points scaled about (x, y)."""
    return [(x + (a - x) * scale, y + (b - y) * scale) for a, b in points]


def flame(pen: Pen, rng: random.Random) -> None:
    """Three tongues in one outline, red to yellow from outside in."""
    lean = rng.uniform(-10, 10)
    outline = [
        (96, 188), (44, 172), (22, 126), (34, 86), (52, 104), (56, 58), (92 + lean, 6), (100, 52), (128, 76),
        (140, 50), (162, 96), (170, 134), (146, 174),
    ]  # fmt: skip
    palette = rng.choice(
        (((214, 48, 22), (250, 130, 24), (255, 216, 74)), ((236, 84, 20), (255, 164, 36), (255, 236, 130)))
    )
    for colour, scale in zip(palette, (1.0, 0.7, 0.4), strict=True):
        pen.polygon(smooth(around(outline, scale, 96, 182)), fill=colour)


def drop(pen: Pen, rng: random.Random) -> None:
    """A falling drop with a light."""
    outline = [(96, 4), (128, 66), (154, 118), (142, 164), (96, 186), (50, 164), (38, 118), (64, 66)]
    pen.polygon(smooth(outline), fill=(22, 92, 200))
    pen.polygon(smooth(around(outline, 0.86, 96, 112)), fill=rng.choice(((64, 152, 244), (84, 172, 250))))
    pen.ellipse((62, 100, 88, 144), fill=(206, 234, 255))


def leaf(pen: Pen, rng: random.Random) -> None:
    """A pointed leaf with its ribs."""
    outline = [(96, 4), (140, 48), (156, 100), (132, 150), (96, 176), (60, 150), (36, 100), (52, 48)]
    dark, light = rng.choice(
        (((28, 108, 44), (76, 178, 72)), ((44, 128, 36), (124, 200, 62)), ((20, 96, 60), (52, 160, 90)))
    )
    pen.polygon(smooth(outline), fill=dark)
    pen.polygon(smooth(around(outline, 0.87, 96, 92)), fill=light)
    pen.line((96, 26, 96, 190), fill=dark, width=9)
    for y in (66, 98, 130):
        pen.line((96, y + 18, 60, y - 6), fill=dark, width=6)
        pen.line((96, y + 18, 132, y - 6), fill=dark, width=6)


def bolt(pen: Pen, rng: random.Random) -> None:
    """A zigzag with a dark edge."""
    outline = [(112, 4), (34, 108), (82, 108), (58, 188), (160, 74), (106, 74), (146, 4)]
    pen.polygon(outline, fill=rng.choice(((206, 124, 0), (190, 100, 8))))
    pen.polygon(around(outline, 0.8, 98, 94), fill=rng.choice(((255, 214, 30), (255, 232, 70))))


def snowflake(pen: Pen, rng: random.Random) -> None:
    """Six arms with side branches."""
    colour = rng.choice(((72, 158, 232), (110, 188, 244), (54, 140, 214)))
    for arm in range(6):
        angle = arm * math.pi / 3
        x, y = math.sin(angle), -math.cos(angle)
        pen.line((96, 96, 96 + 90 * x, 96 + 90 * y), fill=colour, width=17)
        for turn in (-0.9, 0.9):
            p, q = math.sin(angle + turn), -math.cos(angle + turn)
            pen.line((96 + 50 * x, 96 + 50 * y, 96 + 50 * x + 34 * p, 96 + 50 * y + 34 * q), fill=colour, width=13)


def rock(pen: Pen, rng: random.Random) -> None:
    """An angular boulder of three faces."""
    base = rng.choice(((132, 124, 118), (150, 132, 110), (112, 112, 122)))
    light, dark = (tuple(round(part * factor) for part in base) for factor in (1.28, 0.62))
    pen.polygon([(14, 160), (30, 78), (84, 28), (146, 46), (182, 116), (170, 170), (40, 178)], fill=dark)
    pen.polygon([(26, 154), (40, 84), (86, 40), (120, 90), (96, 164)], fill=base)
    pen.polygon([(86, 40), (140, 54), (168, 112), (120, 90)], fill=light)


def bubble(pen: Pen, rng: random.Random) -> None:
    """A bubble of poison."""
    dark, light = rng.choice(
        (((96, 30, 140), (172, 92, 220)), ((64, 120, 20), (164, 214, 50)), ((86, 24, 120), (148, 66, 200)))
    )
    pen.ellipse((8, 8, 184, 184), fill=dark)
    pen.ellipse((26, 26, 166, 166), fill=light)
    pen.ellipse((48, 44, 92, 84), fill=(244, 236, 250))


def star(pen: Pen, rng: random.Random) -> None:
    """A star of five points, or a sparkle of four."""
    count, inner = rng.choice(((5, 0.45), (5, 0.45), (4, 0.3)))
    dark, light = rng.choice((((206, 70, 140), (255, 150, 200)), ((214, 150, 10), (255, 222, 90))))
    outline = []
    for tip in range(2 * count):
        reach, angle = (92 if tip % 2 == 0 else 92 * inner), tip * math.pi / count
        outline.append((96 + reach * math.sin(angle), 96 - reach * math.cos(angle)))
    pen.polygon(outline, fill=dark)
    pen.polygon(around(outline, 0.74), fill=light)


def heart(pen: Pen, rng: random.Random) -> None:
    """A pink or red heart."""
    dark, light = rng.choice((((190, 30, 90), (250, 110, 160)), ((170, 20, 40), (240, 70, 80))))
    outline = [(96, 184), (20, 104), (12, 52), (50, 16), (96, 46), (142, 16), (180, 52), (172, 104)]
    pen.polygon(smooth(outline), fill=dark)
    pen.polygon(smooth(around(outline, 0.8)), fill=light)


def wisp(pen: Pen, rng: random.Random) -> None:
    """A pale, curling flame of a ghost."""
    dark, light = rng.choice((((120, 96, 190), (206, 190, 246)), ((70, 150, 170), (180, 236, 236))))
    outline = [(96, 186), (44, 160), (34, 112), (60, 62), (120, 8), (112, 56), (150, 100), (150, 156)]
    pen.polygon(smooth(outline), fill=dark)
    pen.polygon(smooth(around(outline, 0.74, 96, 130)), fill=light)


def gear(pen: Pen, rng: random.Random) -> None:
    """A gear wheel of steel."""
    dark, light = rng.choice((((74, 84, 96), (150, 164, 178)), ((60, 66, 80), (176, 186, 196))))
    for tooth in range(8):
        x, y = math.cos(tooth * math.pi / 4), math.sin(tooth * math.pi / 4)
        pen.line((96, 96, 96 + 90 * x, 96 + 90 * y), fill=dark, width=34)
    pen.ellipse((28, 28, 164, 164), fill=dark)
    pen.ellipse((42, 42, 150, 150), fill=light)
    pen.ellipse((70, 70, 122, 122), fill=dark)


SYMBOLS: dict[str, Callable[[Pen, random.Random], None]] = {
    "flame": flame, "drop": drop, "leaf": leaf, "bolt": bolt, "snowflake": snowflake, "rock": rock, "bubble": bubble,
    "star": star, "heart": heart, "wisp": wisp, "gear": gear,
}  # fmt: skip
VARIANTS = 6


@cache
def symbol(name: str, variant: int, longest: int, turn: int = 0) -> Image.Image:
    """A symbol of so many pixels, turned by degrees. RGBA, cut to its box."""
    picture = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    SYMBOLS[name](ImageDraw.Draw(picture), random.Random(f"{name} {variant}"))
    if turn:
        picture = picture.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    picture = picture.crop(picture.getbbox())
    factor = longest / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor < 1) or lighter (factor > 1)."""
    return tuple(min(255, round(part * factor)) for part in colour)  # pyright: ignore[reportReturnType]


def eye(pen: Pen, x: float, y: float, w: float, h: float, kind: str, inks: tuple[Colour, Colour], side: int) -> None:
    """One eye of half width w and half height h; inks: of the line and of the iris; side: -1 left, 1 right."""
    ink, iris = inks
    line = max(3, round(w * 0.3))
    if kind in ("happy", "sleepy"):
        box, span = (
            ((x - w, y - h * 0.6, x + w, y + h), (190, 350))
            if kind == "happy"
            else ((x - w, y - h, x + w, y + h * 0.5), (10, 170))
        )
        pen.arc(box, *span, fill=ink, width=line)
        return
    dark = kind in ("dark", "iris")
    pen.ellipse((x - w, y - h, x + w, y + h), fill=ink if dark else "white", outline=ink, width=line)
    if kind == "iris":
        pen.ellipse((x - w * 0.75, y - h * 0.2, x + w * 0.75, y + h * 0.88), fill=iris)
        pen.ellipse((x - w * 0.35, y - h * 0.2, x + w * 0.35, y + h * 0.5), fill=ink)
    if not dark:
        pen.ellipse((x - w * 0.5, y - h * 0.4, x + w * 0.5, y + h * 0.6), fill=ink)
    pen.ellipse((x - w * 0.6, y - h * 0.72, x + w * 0.1, y - h * 0.08), fill="white")
    if kind == "angry":
        outer, inner = (y - h * 1.5, y - h * 1.1), (y - h * 0.9, y - h * 0.2)
        left, right = (outer, inner) if side < 0 else (inner, outer)
        pen.polygon(
            [(x - w * 1.3, left[0]), (x + w * 1.3, right[0]), (x + w * 1.3, right[1]), (x - w * 1.3, left[1])], fill=ink
        )


def mouth(pen: Pen, x: float, y: float, w: float, kind: int, ink: Colour) -> None:
    """A mouth of half width w: a smile, an open one, a round one, a line, or a beak."""
    line = max(3, round(w * 0.28))
    if kind == 0:
        pen.arc((x - w, y - w, x + w, y + w * 0.9), 15, 165, fill=ink, width=line)
    elif kind == 1:
        pen.chord((x - w, y - w, x + w, y + w), 0, 180, fill=(120, 30, 40), outline=ink, width=3)
        pen.chord((x - w * 0.6, y + w * 0.3, x + w * 0.6, y + w * 1.1), 180, 360, fill=(240, 110, 110))
    elif kind == 2:
        pen.ellipse((x - w * 0.5, y - w * 0.2, x + w * 0.5, y + w * 0.9), fill=(90, 30, 40), outline=ink, width=3)
    elif kind == 3:
        pen.line((x - w, y + w * 0.3, x + w, y + w * 0.3), fill=ink, width=line)
    else:
        pen.polygon([(x - w * 0.8, y), (x + w * 0.8, y), (x, y + w * 0.9)], fill=(250, 176, 46), outline=ink)


EYES = ("dark", "dark", "white", "white", "iris", "happy", "sleepy", "angry")
Box = tuple[float, float, float, float]


def face(
    pen: Pen, x: float, y: float, apart: float, rng: random.Random, kind: str = "", smile: int | None = None
) -> Box:
    """Two eyes `apart` to each side of (x, y), and a mouth; returns the box around them."""
    ink = rng.choice(INKS)
    iris = rng.randrange(256), rng.randrange(256), rng.randrange(256)
    kind = kind or rng.choice(EYES)
    w = apart * rng.uniform(0.45, 0.72)
    h = w * rng.uniform(0.95, 1.4)
    for side in (-1, 1):
        eye(pen, x + side * apart, y, w, h, kind, (ink, iris), side)
    if rng.random() < 0.4:
        for side in (-1, 1):
            cheek = x + side * apart * 1.5
            pen.ellipse((cheek - w * 0.55, y + h * 1.1, cheek + w * 0.55, y + h * 1.75), fill=(250, 140, 150))
    wide = apart * rng.uniform(0.4, 0.7)
    mouth(pen, x, y + h * 1.3, wide, rng.randrange(5) if smile is None else smile, ink)
    return x - apart * 1.9, y - h * 1.6, x + apart * 1.9, y + h * 1.3 + wide * 1.2


def wing(kind: str, colour: Colour) -> Image.Image:
    """A right wing: of feathers, of a bat, or of a butterfly; RGBA, its root at the left edge."""
    picture = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    pen, edge = ImageDraw.Draw(picture), shade(colour, 0.55)
    if kind == "bat":
        outline = [
            (4, 112), (40, 52), (116, 10), (188, 36), (168, 74), (178, 124), (142, 104), (126, 156), (96, 120),
            (68, 166), (46, 130), (6, 146),
        ]  # fmt: skip
        pen.polygon(outline, fill=colour, outline=edge, width=8)
        for tip in ((168, 74), (142, 104), (96, 120)):
            pen.line((60, 56, *tip), fill=edge, width=6)
    elif kind == "butterfly":
        pen.ellipse((6, 4, 178, 112), fill=colour, outline=edge, width=9)
        pen.ellipse((6, 92, 132, 188), fill=colour, outline=edge, width=9)
        pen.ellipse((84, 32, 146, 84), fill=shade(colour, 1.4))
        pen.ellipse((48, 120, 92, 160), fill=shade(colour, 1.4))
    else:
        for reach, top in ((120, 118), (156, 84), (184, 44)):
            upper = [(4, 110), (reach * 0.5, top - 34), (reach, top - 30)]
            lower = [(reach - 6, top + 14), (reach * 0.55, top + 40), (10, 150)]
            pen.polygon(smooth([*upper, *lower]), fill=colour, outline=edge, width=8)
    return picture


def hat(kind: str, rng: random.Random) -> Image.Image:
    """A top hat, a party hat, a crown or a cap; RGBA, cut to its box, its brim at the lower edge."""
    picture = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    if kind == "top hat":
        pen.rounded_rectangle((4, 140, 188, 172), 14, fill=(40, 38, 48))
        pen.rectangle((44, 24, 148, 150), fill=(52, 50, 62))
        pen.rectangle((44, 110, 148, 140), fill=rng.choice(((206, 40, 50), (60, 110, 210), (230, 180, 40))))
    elif kind == "party hat":
        colour = rng.choice(((236, 64, 122), (60, 140, 240), (120, 80, 210)))
        pen.polygon([(96, 16), (30, 176), (162, 176)], fill=colour)
        for x, y in ((96, 80), (70, 130), (122, 130), (60, 168), (100, 160)):
            pen.ellipse((x - 11, y - 11, x + 11, y + 11), fill=(255, 226, 80))
        pen.ellipse((76, 0, 116, 40), fill=(255, 214, 60))
    elif kind == "crown":
        points = [(16, 170), (8, 52), (56, 104), (96, 28), (136, 104), (184, 52), (176, 170)]
        pen.polygon(points, fill=(255, 204, 40), outline=(176, 116, 0), width=8)
        for x in (56, 96, 136):
            pen.ellipse((x - 12, 128, x + 12, 152), fill=rng.choice(((220, 40, 60), (50, 120, 230))))
    else:
        colour = rng.choice(((206, 44, 44), (44, 96, 200), (50, 150, 80)))
        pen.pieslice((20, 40, 160, 220), 180, 360, fill=colour)
        pen.rounded_rectangle((84, 116, 190, 142), 12, fill=shade(colour, 0.66))
    return picture.crop(picture.getbbox())
