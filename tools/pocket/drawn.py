"""Nouns that Unicode lacks, drawn in the same flat style: fridge, calculator, toucan, capybara, each in variations."""

import random
from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageDraw

from data.rng import seed_for
from tools.pocket.symbols import Colour, shade

SIZE = 512  # drawn large and scaled down, which anti-aliases the edges
METALS: tuple[Colour, ...] = ((190, 202, 208), (207, 216, 220), (160, 176, 186), (240, 243, 245), (226, 232, 236))
RETRO: tuple[Colour, ...] = ((176, 224, 230), (168, 218, 190), (246, 226, 190), (240, 243, 245))
BROWNS: tuple[Colour, ...] = ((141, 96, 64), (160, 110, 70), (121, 85, 61), (176, 124, 82))
BODIES: tuple[Colour, ...] = ((55, 71, 79), (69, 90, 100), (96, 125, 139), (78, 84, 98))
FOODS: tuple[Colour, ...] = (
    (229, 57, 53), (67, 160, 71), (255, 179, 0), (126, 87, 194), (244, 143, 177), (141, 110, 99), (41, 182, 246),
)  # fmt: skip
CABINETS: tuple[str, ...] = (  # of each variation, over and over
    "top", "open left", "bottom", "two doors", "open right", "top", "retro", "open left", "single", "two doors",
    "open two", "top", "open right", "bottom", "retro", "open left", "top", "open two", "single", "open right",
)  # fmt: skip


def bar(pen: ImageDraw.ImageDraw, x: float, top: float, bottom: float, colour: Colour) -> None:
    """A door's handle."""
    pen.rounded_rectangle((x - 10, top, x + 10, bottom), 10, fill=colour)


def shelves(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], rng: random.Random) -> None:
    """The lit inside of a fridge: four shelves of food."""
    left, top, right, bottom = box
    pen.rounded_rectangle(box, 14, fill=(226, 244, 252), outline=(120, 144, 156), width=9)
    high = (bottom - top) / 4
    for row in range(4):
        floor = top + (row + 1) * high - (6 if row < 3 else 12)
        x = left + 20.0
        while x < right - 52:
            wide, tall, food = rng.uniform(32, 58), rng.uniform(0.4, 0.76) * high, rng.choice(FOODS)
            form = rng.choice(("box", "round", "bottle"))
            end = min(x + wide, right - 16)
            if form == "box":
                pen.rectangle((x, floor - tall * 0.8, end, floor), fill=food)
            elif form == "round":
                side = min(end - x, tall)
                pen.ellipse((x, floor - side, x + side, floor), fill=food)
            else:
                pen.rounded_rectangle((x, floor - tall * 0.7, end - 8, floor), 8, fill=food)
                pen.rectangle(
                    (x + (end - x) * 0.25, floor - tall, end - 8 - (end - x) * 0.25, floor - tall * 0.6),
                    fill=shade(food, 0.75),
                )
            x = end + rng.uniform(8, 20)
        if row < 3:
            pen.rectangle((left + 6, floor, right - 6, floor + 9), fill=(144, 164, 174))


def swung_door(
    pen: ImageDraw.ImageDraw, hinge: float, reach: float, top: float, bottom: float, body: Colour, rng: random.Random
) -> None:
    """An open door in perspective, its inside with bottles towards us."""
    edge, drop = shade(body, 0.45), 26
    outer = hinge + reach
    pen.polygon(
        [(hinge, top), (outer, top + drop), (outer, bottom + drop), (hinge, bottom)], fill=body, outline=edge, width=9
    )
    inset = 0.16 * reach
    for row in range(3):
        y = top + drop + (row + 0.95) * (bottom - top) / 3.2
        for place in (0.3, 0.62):
            x = hinge + inset + place * (reach - 2 * inset)
            pen.rounded_rectangle((x - 13, y - 62, x + 13, y), 8, fill=rng.choice(FOODS))
        low, high = sorted((hinge + inset, outer - inset))
        pen.rectangle((low, y - 22, high, y + 8), fill=(176, 200, 212), outline=edge, width=4)


def open_fridge(pen: ImageDraw.ImageDraw, kind: str, body: Colour, rng: random.Random) -> None:
    """The cabinet with its door or doors swung open and food inside."""
    half, top, edge = (92 if kind == "open two" else 118), rng.randint(24, 44), shade(body, 0.45)
    shift = {"open left": 44, "open right": -44}.get(kind, 0)
    left, right, split = 256 + shift - half, 256 + shift + half, 156 if kind != "open two" else top
    pen.rounded_rectangle((left, top, right, 470), 26, fill=body, outline=edge, width=10)
    if kind != "open two":  # the freezer above stays closed
        pen.rectangle((left, split - 6, right, split + 6), fill=edge)
        bar(pen, right - 30 if kind == "open left" else left + 30, top + 34, split - 26, edge)
    shelves(pen, (left + 16, split + 18, right - 16, 452), rng)
    reach = rng.randint(88, 118)
    if kind in ("open left", "open two"):
        swung_door(pen, left, -reach, split, 464, body, rng)
    if kind in ("open right", "open two"):
        swung_door(pen, right, reach, split, 464, body, rng)


def closed_fridge(pen: ImageDraw.ImageDraw, kind: str, body: Colour, rng: random.Random) -> None:
    """The doors with their handles; sometimes magnets, a note, or a dispenser of water."""
    half = {"two doors": rng.randint(140, 160), "single": rng.randint(124, 140)}.get(kind, rng.randint(112, 134))
    left, right, top, edge = 256 - half, 256 + half, rng.randint(22, 44), shade(body, 0.42)
    if kind == "single":
        top = rng.randint(110, 140)
    for x in (left + 22, right - 56):
        pen.rectangle((x, 462, x + 34, 492), fill=edge)
    pen.rounded_rectangle((left, top, right, 472), 70 if kind == "retro" else 30, fill=body, outline=edge, width=11)
    pen.rounded_rectangle((right - 48, top + 11, right - 11, 461), 22, fill=shade(body, 0.86))
    split = {"bottom": rng.randint(300, 330), "single": top + 70}.get(kind, rng.randint(160, 200))
    handle = left + 36
    if kind == "two doors":
        pen.rectangle((251, top, 261, 472), fill=edge)
        for x in (226, 286):
            bar(pen, x, 190, 330, edge)
        if rng.random() < 0.6:
            pen.rounded_rectangle((left + 30, 150, left + 86, 240), 10, fill=(69, 90, 100))
            pen.rectangle((left + 42, 190, left + 74, 228), fill=(129, 212, 250))
        return
    pen.rectangle((left + 4, split - 6, right - 4, split + 6), fill=edge)
    bar(pen, handle, max(top + 24, split - 88), split - 24, edge)
    bar(pen, handle, split + 24, split + (124 if kind != "bottom" else 84), edge)
    if kind == "retro":
        pen.rounded_rectangle((236, top + 40, right - 60, top + 62), 10, fill=(236, 239, 241), outline=edge, width=4)
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        x, y = (
            rng.randint(256, right - 90),
            rng.randint(split + 30, 400) if kind != "bottom" else rng.randint(top + 40, split - 80),
        )
        pen.rectangle((x, y, x + rng.randint(26, 50), y + rng.randint(28, 54)), fill=rng.choice(FOODS))


def fridge(pen: ImageDraw.ImageDraw, rng: random.Random, variation: int, body: Colour | None) -> None:
    """A fridge of twenty: freezer above or below, two doors, retro, small, and doors open on shelves of food."""
    kind = CABINETS[variation % len(CABINETS)]
    paints = RETRO if kind == "retro" else METALS
    body = body or rng.choice(paints)
    (open_fridge if kind.startswith("open") else closed_fridge)(pen, kind, body, rng)


def calculator(pen: ImageDraw.ImageDraw, rng: random.Random, variation: int, body: Colour | None) -> None:
    """A dark body, a pale green screen with digits, a grid of keys with one coloured column."""
    body, half = body or rng.choice(BODIES), rng.randint(128, 165)
    left, right = 256 - half, 256 + half
    pen.rounded_rectangle((left, 26, right, 486), 36, fill=body)
    screen = rng.choice(((197, 225, 165), (178, 223, 219), (220, 237, 200)))
    pen.rounded_rectangle((left + 26, 54, right - 26, 152), 14, fill=screen)
    for digit in range(rng.randint(2, 4)):
        x = right - 62 - 38 * digit
        pen.rectangle((x, 78, x + 20, 130), outline=shade(screen, 0.35), width=7)
    columns, rows = rng.choice(((4, 4), (3, 4), (4, 5)))
    wide, high = (2 * half - 52) / columns, 296 / rows
    accent = rng.choice(((255, 152, 0), (239, 83, 80), (66, 165, 245)))
    for column in range(columns):
        for row in range(rows):
            x, y = left + 26 + column * wide, 172 + row * high
            fill = accent if column == columns - 1 else (236, 239, 241)
            pen.rounded_rectangle((x + 5, y + 5, x + wide - 5, y + high - 5), 12, fill=fill)


def toucan(pen: ImageDraw.ImageDraw, rng: random.Random, variation: int, body: Colour | None) -> None:
    """A black bird with a white throat, a huge orange beak with a dark tip, on a branch."""
    black = rng.choice(((38, 50, 56), (33, 33, 40), (45, 45, 58)))
    beak = rng.choice(((255, 152, 0), (255, 179, 0), (251, 140, 0)))
    lean = rng.randint(-14, 14)
    pen.polygon([(330, 330), (420, 478), (372, 496), (280, 390)], fill=shade(black, 0.8))  # tail
    pen.ellipse((170, 190, 390, 440), fill=black)
    pen.ellipse((180 + lean, 70, 360 + lean, 250), fill=black)
    pen.ellipse((186 + lean, 130, 296 + lean, 290), fill=(250, 250, 245))
    pen.pieslice((14 + lean, 84, 400 + lean, 300), 180, 273, fill=beak)
    pen.pieslice((14 + lean, 170, 330 + lean, 236), 90, 185, fill=shade(beak, 0.85))
    pen.pieslice((10 + lean, 96, 130 + lean, 300), 180, 262, fill=(62, 39, 35))
    pen.ellipse((228 + lean, 108, 286 + lean, 166), fill=(79, 195, 247))
    pen.ellipse((243 + lean, 123, 271 + lean, 151), fill=(20, 20, 25))
    pen.ellipse((250, 235, 392, 420), fill=shade(black, 1.5))  # wing
    for x in (240, 290):
        pen.rectangle((x, 425, x + 16, 462), fill=(96, 125, 139))
    if rng.random() < 0.7:
        pen.rounded_rectangle((130, 452, 420, 482), 14, fill=(121, 85, 72))


def capybara(pen: ImageDraw.ImageDraw, rng: random.Random, variation: int, body: Colour | None) -> None:
    """A long brown barrel on short legs, a blunt snout, small ears; seen from the side."""
    fur = rng.choice(BROWNS)
    back, length = rng.randint(165, 200), rng.randint(430, 470)
    for x in (110, 180, 340, 400):
        pen.rounded_rectangle((x, 350, x + 48, 452), 18, fill=shade(fur, 0.72))
    pen.rounded_rectangle((60, back, length, 408), 110, fill=fur)
    pen.ellipse((90, 300, 430, 412), fill=shade(fur, 1.12))
    pen.rounded_rectangle((28, 108, 236, 268), 62, fill=shade(fur, 1.05))
    pen.rounded_rectangle((20, 168, 112, 270), 40, fill=shade(fur, 0.74))
    for x in (168, 206):
        pen.ellipse((x, 84, x + 42, 136), fill=shade(fur, 0.66))
    pen.ellipse((126, 144, 156, 174), fill=(30, 22, 18))
    pen.ellipse((134, 148, 143, 157), fill=(255, 255, 255))
    pen.ellipse((34, 190, 54, 208), fill=(50, 32, 24))
    pen.line((40, 244, 96, 240), fill=(60, 40, 30), width=7)
    if rng.random() < 0.35:  # the internet's capybara carries an orange
        pen.ellipse((176, 36, 236, 96), fill=(255, 152, 0))


DRAWINGS: dict[str, Callable[[ImageDraw.ImageDraw, random.Random, int, Colour | None], None]] = {
    "calculator": calculator,
    "capybara": capybara,
    "fridge": fridge,
    "toucan": toucan,
}


@lru_cache(maxsize=4096)
def draw(noun: str, variation: int, body: Colour | None = None) -> Image.Image:
    """Variation `variation` of a drawn noun, its body in a colour of ours or of `body`: RGBA, cut to its box."""
    picture = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    rng = random.Random(seed_for("pocket", "drawn", noun, variation))
    DRAWINGS[noun](ImageDraw.Draw(picture), rng, variation, body)
    picture = picture.resize((136, 136), Image.Resampling.LANCZOS)
    return picture.crop(picture.getbbox())
