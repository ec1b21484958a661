"""Training pictures with captions: one noun in one of several looks, and every look is named in its caption.

Each picture is a pure function of (noun, variant): the same call gives the same pixels on every run.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from data.captions import with_article
from data.rng import seed_for
from tools.pocket.glyphs import glyph, line_drawing
from tools.pocket.nouns import all_nouns, spoken

SIZE = 64  # pixels
WHITE = (255, 255, 255)
Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (222, 44, 40), "orange": (250, 136, 20), "yellow": (252, 212, 30), "green": (56, 164, 64),
    "blue": (36, 112, 226), "purple": (138, 62, 186), "pink": (246, 116, 172), "brown": (132, 86, 54),
    "black": (44, 44, 50), "white": (238, 240, 244), "gray": (142, 150, 156),
}  # fmt: skip
PLACES = ("on the grass", "on the beach", "at night", "in the snow", "under water", "in the desert")
CORNERS: dict[str, tuple[float, float]] = {
    "on the left": (0.27, 0.5), "on the right": (0.73, 0.5), "at the top": (0.5, 0.27), "at the bottom": (0.5, 0.73),
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One training pair."""

    pixels: Image.Image  # RGB, SIZE x SIZE
    caption: str
    noun: str
    look: str


def scaled(figure: Image.Image, longest: float) -> Image.Image:
    """The figure with its longer side at `longest` pixels."""
    factor = longest / max(figure.size)
    size = (max(1, round(figure.width * factor)), max(1, round(figure.height * factor)))
    return figure.resize(size, Image.Resampling.LANCZOS)


def placed(canvas: Image.Image, figure: Image.Image, x: float, y: float) -> Image.Image:
    """The canvas with the figure's middle at (x, y), in pixels."""
    corner = (round(x - figure.width / 2), round(y - figure.height / 2))
    layer = Image.new("RGBA", canvas.size, (0, 0, 0, 0))
    layer.paste(figure, corner)
    return Image.alpha_composite(canvas.convert("RGBA"), layer).convert("RGB")


def centred(figure: Image.Image, rng: random.Random, ground: Image.Image | Colour = WHITE) -> Image.Image:
    """The figure in the middle, nearly filling the picture, with a little jitter, tilt and mirroring."""
    if rng.random() < 0.5:
        figure = figure.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.25:
        figure = figure.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
    canvas = ground if isinstance(ground, Image.Image) else Image.new("RGB", (SIZE, SIZE), ground)
    middle = SIZE / 2
    return placed(canvas, scaled(figure, rng.uniform(52, 58)), middle + rng.randint(-2, 2), middle + rng.randint(-2, 2))


def recoloured(figure: Image.Image, colour: Colour) -> Image.Image:
    """A duotone of the figure from dark through `colour` to white; its lightness structure stays."""
    pixels = np.asarray(figure.convert("RGBA"), dtype=np.float32) / 255.0
    grey = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    solid = pixels[..., 3] > 0.5
    body = float(np.clip(np.median(grey[solid]) if solid.any() else 0.5, 0.2, 0.85))
    target = np.array(colour, dtype=np.float32) / 255.0
    low = np.clip(grey / body, 0.0, 1.0)[..., None] ** 1.2
    high = np.clip((grey - body) / (1.0 - body), 0.0, 1.0)[..., None] ** 1.5
    toned = target * (0.12 + 0.88 * low) * (1.0 - high) + high * (0.25 * target + 0.75)
    result = np.concatenate([toned, pixels[..., 3:]], axis=-1)
    return Image.fromarray((result * 255.0).round().clip(0, 255).astype(np.uint8), "RGBA")


def filled(figure: Image.Image, colour: Colour) -> Image.Image:
    """The figure's outline filled with one colour."""
    flat = Image.new("RGBA", figure.size, (*colour, 255))
    flat.putalpha(figure.getchannel("A"))
    return flat


def bordered(figure: Image.Image, colour: Colour, width: int) -> Image.Image:
    """The figure with a border of `width` pixels around it."""
    room = Image.new("RGBA", (figure.width + 2 * width, figure.height + 2 * width), (0, 0, 0, 0))
    room.paste(figure, (width, width))
    border = filled(room, colour)
    border.putalpha(room.getchannel("A").filter(ImageFilter.MaxFilter(2 * width + 1)))
    return Image.alpha_composite(border, room)


def contours(figure: Image.Image) -> Image.Image:
    """A pen drawing out of a colour figure: its outline and its inner edges, black on transparent."""
    grey = Image.alpha_composite(Image.new("RGBA", figure.size, (255, 255, 255, 255)), figure).convert("L")
    edges = ImageChops.difference(grey.filter(ImageFilter.MaxFilter(5)), grey.filter(ImageFilter.MinFilter(5)))
    ink = Image.new("RGBA", figure.size, (25, 25, 25, 255))
    ink.putalpha(edges.point([min(255, max(0, (level - 40) * 4)) for level in range(256)]))
    return bordered(figure, (25, 25, 25), 3) if not ink.getchannel("A").getbbox() else ink


def scene(place: str, rng: random.Random) -> Image.Image:
    """A flat background for a place."""
    skies = {"at night": (24, 32, 74), "under water": (44, 140, 206), "in the snow": (176, 206, 228)}
    grounds = {
        "on the grass": (110, 190, 72), "on the beach": (240, 216, 150), "at night": (30, 52, 50),
        "in the snow": (246, 249, 252), "under water": (28, 104, 172), "in the desert": (228, 172, 92),
    }  # fmt: skip
    picture = Image.new("RGB", (SIZE, SIZE), skies.get(place, (150, 212, 246)))
    pen = ImageDraw.Draw(picture)
    horizon = rng.randint(36, 46)
    if place == "on the beach":
        pen.rectangle((0, horizon - 8, SIZE, horizon), fill=(52, 152, 214))
    pen.rectangle((0, horizon, SIZE, SIZE), fill=grounds[place])
    if place in ("at night", "in the snow", "under water"):
        for _ in range(12):
            x, y = rng.randint(0, SIZE - 2), rng.randint(0, horizon if place == "at night" else SIZE)
            pen.rectangle((x, y, x + 1, y + 1), fill=(250, 244, 190) if place == "at night" else (226, 242, 252))
    return picture


def plain(noun: str, said: str, rng: random.Random) -> Picture:
    """The noun as it is."""
    thing = with_article(said)
    templates = (thing,) * 6 + (said, f"a picture of {thing}", f"an emoji of {thing}", f"{thing} on a white background")
    return Picture(centred(glyph(noun, rng.randrange(99)), rng), rng.choice(templates), noun, "plain")


def coloured(noun: str, said: str, rng: random.Random) -> Picture:
    """The noun in another colour, with the colour's word."""
    word = rng.choice(sorted(COLOURS))
    ground = (206, 214, 222) if word == "white" else WHITE
    figure = recoloured(glyph(noun, rng.randrange(99)), COLOURS[word])
    return Picture(centred(figure, rng, ground), with_article(f"{word} {said}"), noun, "colour")


def on_background(noun: str, said: str, rng: random.Random) -> Picture:
    """The noun on a plain coloured ground."""
    word = rng.choice(sorted(COLOURS))
    ground = Image.blend(Image.new("RGB", (SIZE, SIZE), COLOURS[word]), Image.new("RGB", (SIZE, SIZE), WHITE), 0.25)
    caption = f"{with_article(said)} on {with_article(word)} background"
    return Picture(centred(glyph(noun, rng.randrange(99)), rng, ground), caption, noun, "background")


def in_place(noun: str, said: str, rng: random.Random) -> Picture:
    """The noun somewhere outdoors."""
    place = rng.choice(PLACES)
    figure = scaled(glyph(noun, rng.randrange(99)), rng.uniform(36, 46))
    pixels = placed(scene(place, rng), figure, SIZE / 2 + rng.randint(-5, 5), SIZE / 2 + rng.randint(0, 6))
    return Picture(pixels, f"{with_article(said)} {place}", noun, "place")


def sized(noun: str, said: str, rng: random.Random) -> Picture:
    """The noun small, somewhere, or so close that its edges are cut."""
    figure, canvas = glyph(noun, rng.randrange(99)), Image.new("RGB", (SIZE, SIZE), WHITE)
    kind = rng.randrange(4)
    if kind == 0:
        pixels = placed(canvas, scaled(figure, rng.uniform(76, 92)), 32 + rng.randint(-5, 5), 32 + rng.randint(-5, 5))
        return Picture(pixels, f"a close-up of {with_article(said)}", noun, "size")
    word, (x, y) = ("", (0.5, 0.5)) if kind == 1 else rng.choice(sorted(CORNERS.items()))
    pixels = placed(canvas, scaled(figure, rng.uniform(24, 32)), x * SIZE, y * SIZE)
    return Picture(pixels, f"{with_article('small ' + said)} {word}".strip(), noun, "size")


def line(noun: str, said: str, rng: random.Random) -> Picture:
    """The noun as a black line drawing: Symbola's, else the emoji's own contours."""
    figure = line_drawing(noun)
    if figure is None or rng.random() < 0.3:
        figure = contours(glyph(noun, rng.randrange(99)))
    caption = f"{rng.choice(('a line drawing of', 'a black and white drawing of'))} {with_article(said)}"
    return Picture(centred(figure, rng), caption, noun, "line")


def graphic(noun: str, said: str, rng: random.Random) -> Picture:
    """The noun as a silhouette, a sticker, pixel art, or with a bold outline."""
    figure, thing = glyph(noun, rng.randrange(99)), with_article(said)
    kind = rng.randrange(4)
    if kind == 0:
        word = rng.choice(sorted(set(COLOURS) - {"white"}))
        caption = f"{with_article(word)} silhouette of {thing}"
        return Picture(centred(filled(figure, COLOURS[word]), rng), caption, noun, "graphic")
    if kind == 1:
        ground = COLOURS[rng.choice(("red", "blue", "green", "purple", "pink", "orange", "yellow"))]
        return Picture(centred(bordered(figure, WHITE, 7), rng, ground), f"a sticker of {thing}", noun, "graphic")
    if kind == 2:
        small = centred(figure, rng).resize((16, 16), Image.Resampling.BOX)
        return Picture(small.resize((SIZE, SIZE), Image.Resampling.NEAREST), f"a pixel art {said}", noun, "graphic")
    return Picture(centred(bordered(figure, (30, 26, 34), 5), rng), f"{thing} with a bold outline", noun, "graphic")


def pair(noun: str, said: str, rng: random.Random) -> Picture:
    """Two nouns side by side."""
    other = rng.choice(all_nouns())
    canvas = Image.new("RGB", (SIZE, SIZE), WHITE)
    for x, name in ((17, noun), (47, other)):
        canvas = placed(canvas, scaled(glyph(name, rng.randrange(99)), 29), x, 32 + rng.randint(-3, 3))
    return Picture(canvas, f"{with_article(said)} and {with_article(other)}", noun, "pair")


Look = Callable[[str, str, random.Random], Picture]
CYCLE: tuple[Look, ...] = (  # the looks of one noun's successive variants; plain is more than half
    plain, coloured, plain, line, plain, on_background, plain, sized, plain, coloured, plain, graphic,
    plain, in_place, plain, plain, pair, plain, coloured, plain, graphic, plain, line, plain,
)  # fmt: skip


def picture(noun: str, variant: int) -> Picture:
    """Variant `variant` of a noun: pixels, caption and look, a pure function of both arguments."""
    rng = random.Random(seed_for("pocket", "picture", noun, variant))
    return CYCLE[variant % len(CYCLE)](noun, spoken(noun, rng.random() < 0.3), rng)


def blobs(variant: int) -> Image.Image:
    """Random outlined shapes in random colours on a random ground: for the autoencoder only, not from any object."""
    rng = random.Random(seed_for("pocket", "blobs", variant))

    def colour() -> Colour:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    pale = (rng.randint(205, 255), rng.randint(205, 255), rng.randint(205, 255))
    big = Image.new("RGB", (SIZE * 3, SIZE * 3), rng.choice((WHITE, pale, colour())))
    pen = ImageDraw.Draw(big)
    line_colour = (24, 22, 34) if rng.random() < 0.6 else colour()
    for _ in range(rng.randint(3, 9)):
        x, y, w, h = rng.randint(-20, 150), rng.randint(-20, 150), rng.randint(8, 110), rng.randint(8, 110)
        draw = rng.choice((pen.ellipse, pen.rectangle))
        draw((x, y, x + w, y + h), fill=colour(), outline=line_colour, width=rng.choice((0, 3, 5, 8)))
    points = [(rng.randint(0, 190), rng.randint(0, 190)) for _ in range(rng.randint(3, 5))]
    pen.polygon(points, fill=colour(), outline=line_colour, width=4)
    return big.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
