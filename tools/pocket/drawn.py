"""Nouns that Unicode lacks, drawn in the same flat style: fridge, calculator, toucan, capybara, each in variations."""

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from data.seeds import seed_for

SIZE = 512  # drawn large and scaled down, which anti-aliases the edges
Colour = tuple[int, int, int]
METALS: tuple[Colour, ...] = (
    (176, 190, 197), (207, 216, 220), (144, 164, 174), (236, 239, 241), (129, 212, 250), (165, 214, 167),
)  # fmt: skip
BROWNS: tuple[Colour, ...] = ((141, 96, 64), (160, 110, 70), (121, 85, 61), (176, 124, 82))
BODIES: tuple[Colour, ...] = ((55, 71, 79), (69, 90, 100), (96, 125, 139), (78, 84, 98))


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (min(255, round(part * factor)) for part in colour)
    return red, green, blue


def fridge(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Two doors, handles on one side, feet; sometimes a note on the door."""
    body = rng.choice(METALS)
    half, top = rng.randint(118, 150), rng.randint(28, 50)
    left, right, split = 256 - half, 256 + half, rng.randint(165, 215)
    for x in (left + 22, right - 52):
        pen.rectangle((x, 460, x + 30, 488), fill=shade(body, 0.45))
    pen.rounded_rectangle((left, top, right, 468), 34, fill=body)
    pen.rounded_rectangle((right - 44, top, right, 468), 30, fill=shade(body, 0.86))
    pen.rectangle((left, split - 5, right, split + 5), fill=shade(body, 0.6))
    handle = left + 26 if rng.random() < 0.7 else right - 46
    pen.rounded_rectangle((handle, split - 85, handle + 20, split - 24), 9, fill=shade(body, 0.42))
    pen.rounded_rectangle((handle, split + 26, handle + 20, split + 130), 9, fill=shade(body, 0.42))
    if rng.random() < 0.4:
        note = rng.choice(((255, 213, 79), (239, 83, 80), (102, 187, 106)))
        pen.rectangle((256, split + 50, 300, split + 94), fill=note)


def calculator(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """A dark body, a pale green screen with digits, a grid of keys with one coloured column."""
    body, half = rng.choice(BODIES), rng.randint(128, 165)
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


def toucan(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
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


def capybara(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
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


DRAWINGS: dict[str, Callable[[ImageDraw.ImageDraw, random.Random], None]] = {
    "calculator": calculator,
    "capybara": capybara,
    "fridge": fridge,
    "toucan": toucan,
}


def draw(noun: str, variation: int) -> Image.Image:
    """Variation `variation` of a drawn noun: RGBA, cropped to its box."""
    picture = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    DRAWINGS[noun](ImageDraw.Draw(picture), random.Random(seed_for("pocket", "drawn", noun, variation)))
    return picture.resize((136, 136), Image.Resampling.LANCZOS).crop(picture.resize((136, 136)).getbbox())
