"""The world that the base model learns: sample `number` is a picture with its caption, a pure function of the number.

Nouns, alone or in pairs, in colours, looks and places; half of them with attributes (attributes.py). All that a picture
shows beside the plain noun on white is named in its caption. Samples are cut into shards of SHARD.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from data.captions import with_article
from data.rng import seed_for
from tools.pocket.attributes import ACCESSORIES, CANVAS, ELEMENTS, KEEP_COLOUR, SIZE, Subject, blank, placed
from tools.pocket.figures import COLOURS, bordered, figure, filled, flattened, line_drawing, nouns, shaded

VERSION = "1"  # raise it when a picture or a caption changes: shards are keyed by it
SHARD, SHARDS, SINGLE_SHARDS = 2048, 96, 16  # in the first SINGLE_SHARDS nothing has two attributes
# objects of the tests: never shown with an element, only plain, coloured, in looks and with faces, hats, wings, boxes
HELD_OUT = (
    "apple", "cactus", "car", "cat", "chair", "elephant", "fish", "fridge", "guitar", "horse", "house", "umbrella",
)  # fmt: skip
WEIGHTS = dict.fromkeys(HELD_OUT, 2.0) | {"fridge": 8.0}  # of nouns; the others have 1
Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
PALE: dict[str, Colour] = {
    "cream": (255, 242, 220), "pale blue": (214, 234, 250), "pale pink": (252, 222, 230), "pale green": (220, 242, 214),
    "light gray": (222, 224, 228),
}  # fmt: skip
PLACES = ("on the grass", "on the beach", "at night", "in the snow", "under water", "in the desert")
CORNERS: dict[str, tuple[float, float]] = {
    "on the left": (0.27, 0.5), "on the right": (0.73, 0.5), "at the top": (0.5, 0.27), "at the bottom": (0.5, 0.73),
}  # fmt: skip
Rng = random.Random


@dataclass(frozen=True)
class Sample:
    """One training pair."""

    picture: Image.Image  # RGB, SIZE x SIZE
    caption: str
    noun: str
    kind: str


def any_noun(rng: Rng, names: tuple[str, ...]) -> str:
    return rng.choices(names, [WEIGHTS.get(name, 1.0) for name in names])[0]


def name_of(noun: str, rng: Rng) -> str:
    """The noun, or at times another word for it."""
    names = nouns()[noun][1]
    return names[0] if rng.random() < 0.75 else rng.choice(names)


def turned(picture: Image.Image, rng: Rng) -> Image.Image:
    """The picture mirrored half the time, and sometimes tilted a little."""
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.25:
        picture = picture.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
    return picture


def subject_of(noun: str, rng: Rng, colour: str = "", low: float = 104, high: float = 116, down: float = 0) -> Subject:
    """The noun near the middle of the canvas, its longer side from `low` to `high`."""
    picture = turned(figure(noun, rng.randrange(20), colour), rng)
    x, y = 64 + rng.uniform(-4, 4), 64 + down + rng.uniform(-4, 4)
    return Subject(placed(picture, rng.uniform(low, high), x, y), coloured=bool(colour))


def ground_of(rng: Rng, share: float, colour: str = "") -> tuple[Image.Image, str]:
    """A ground and its words: white and silent but for a share; a white thing stands on grey."""
    name, paint = "", (206, 214, 222) if colour == "white" else WHITE
    if rng.random() < share:
        if rng.random() < 0.55:
            name = rng.choice((*PALE, "cream", "cream"))
            paint = PALE[name]
        else:
            name = rng.choice([word for word in COLOURS if word not in (colour, "white", "black")])
            paint = tuple(round(0.75 * part + 64) for part in COLOURS[name])
    words = f" on {with_article(name)} background" if name else ""
    return Image.new("RGB", (CANVAS, CANVAS), paint), words


def place(name: str, rng: Rng) -> Image.Image:
    """A flat picture of a place."""
    skies = {"at night": (24, 32, 74), "under water": (44, 140, 206), "in the snow": (176, 206, 228)}
    grounds = {
        "on the grass": (110, 190, 72), "on the beach": (240, 216, 150), "at night": (30, 52, 50),
        "in the snow": (246, 249, 252), "under water": (28, 104, 172), "in the desert": (228, 172, 92),
    }  # fmt: skip
    picture = Image.new("RGB", (CANVAS, CANVAS), skies.get(name, (150, 212, 246)))
    pen = ImageDraw.Draw(picture)
    horizon = rng.randint(72, 92)
    if name == "on the beach":
        pen.rectangle((0, horizon - 16, CANVAS, horizon), fill=(52, 152, 214))
    pen.rectangle((0, horizon, CANVAS, CANVAS), fill=grounds[name])
    if name in ("at night", "in the snow", "under water"):
        for _ in range(12):
            x, y = rng.randint(0, CANVAS - 4), rng.randint(0, horizon if name == "at night" else CANVAS)
            pen.ellipse((x, y, x + 4, y + 4), fill=(250, 244, 190) if name == "at night" else (226, 242, 252))
    return picture


def plain(noun: str, rng: Rng) -> tuple[Image.Image, str]:
    """The noun as it is."""
    thing = with_article(name_of(noun, rng))
    ground, words = ground_of(rng, 0.1)
    if words:
        return subject_of(noun, rng).picture(ground), thing + words
    templates = (thing,) * 7 + (f"a picture of {thing}", f"an emoji of {thing}", f"{thing} on a white background")
    return subject_of(noun, rng).picture(ground), rng.choice(templates)


def coloured(noun: str, rng: Rng) -> tuple[Image.Image, str]:
    """The noun in another colour."""
    colour = rng.choice(tuple(COLOURS))
    ground, words = ground_of(rng, 0.12, colour)
    return subject_of(noun, rng, colour).picture(ground), with_article(f"{colour} {name_of(noun, rng)}") + words


def framed(noun: str, rng: Rng) -> tuple[Image.Image, str]:
    """The noun somewhere, small, near, or in coarse pixels."""
    name = name_of(noun, rng)
    thing, white, look = with_article(name), Image.new("RGB", (CANVAS, CANVAS), WHITE), rng.randrange(6)
    if look < 2:
        where = rng.choice(PLACES)
        return subject_of(noun, rng, "", 72, 88, 8).picture(place(where, rng)), f"{thing} {where}"
    if look == 2:
        where, (x, y) = rng.choice(tuple(CORNERS.items()))
        picture = turned(figure(noun, rng.randrange(20)), rng)
        return Subject(placed(picture, 60, x * CANVAS, y * CANVAS)).picture(white), f"a small {name} {where}"
    if look == 3:
        return subject_of(noun, rng, "", 54, 64).picture(white), f"a small {name}"
    if look == 4:
        return subject_of(noun, rng, "", 150, 180).picture(white), f"a close-up of {thing}"
    small = subject_of(noun, rng).picture(white).resize((16, 16), Image.Resampling.BOX)
    return small.resize((SIZE, SIZE), Image.Resampling.NEAREST), f"a pixel art {name}"


def restyled(noun: str, rng: Rng) -> tuple[Image.Image, str]:
    """The noun as another kind of picture: drawn in lines, outlined, shaded, flat, as a silhouette or a sticker."""
    thing, own = with_article(name_of(noun, rng)), figure(noun, rng.randrange(20))
    ground, words = ground_of(rng, 0.15)
    look = rng.choice(("line", "line", "silhouette", "sticker", "bold", "bold", "thin", "shaded", "flat"))
    if look == "line":
        own = line_drawing(noun)
        caption = rng.choice((f"a line drawing of {thing}", f"a black and white drawing of {thing}"))
    elif look == "silhouette":
        colour = rng.choice([word for word in COLOURS if word not in ("white", *words.split())])
        own, caption = filled(own, COLOURS[colour]), f"{with_article(colour)} silhouette of {thing}"
    elif look == "sticker":
        colour = rng.choice(("red", "blue", "green", "purple", "pink", "orange", "yellow"))
        own, caption = bordered(own, WHITE, 7), f"a sticker of {thing}"
        ground, words = Image.new("RGB", (CANVAS, CANVAS), COLOURS[colour]), f" on {with_article(colour)} background"
    elif look in ("bold", "thin"):
        own = bordered(own, rng.choice(((30, 26, 34), (24, 22, 40))), 6 if look == "bold" else 3)
        caption = f"{thing} with a {look} outline"
    elif look == "shaded":
        own, caption = shaded(own, rng), f"a shaded picture of {thing}"
    else:
        own, caption = flattened(own), f"{thing} in flat colors"
    return Subject(placed(turned(own, rng), rng.uniform(104, 114), 64, 64)).picture(ground), caption + words


def pair_picture(left: tuple[str, str], right: tuple[str, str], rng: Rng) -> Image.Image:
    """Two nouns, each with a colour or "", side by side."""
    layer = blank()
    for x, (noun, colour) in ((33, left), (95, right)):
        picture = turned(figure(noun, rng.randrange(20), colour), rng)
        pasted_size = rng.uniform(56, 62)
        layer.alpha_composite(placed(picture, pasted_size, x + rng.uniform(-2, 2), 64 + rng.uniform(-8, 8)))
    ground = (206, 214, 222) if "white" in (left[1], right[1]) else WHITE
    return Subject(layer).picture(Image.new("RGB", (CANVAS, CANVAS), ground))


def pair_caption(left: tuple[str, str], right: tuple[str, str], rng: Rng) -> str:
    """Both in the order in which they stand."""
    first, second = (with_article(f"{colour} {noun}".strip()) for noun, colour in (left, right))
    templates = ("{0} and {1}",) * 8 + ("{0} next to {1}", "{0} to the left of {1}", "{1} to the right of {0}")
    return rng.choice(templates).format(first, second)


def pair(noun: str, rng: Rng) -> tuple[Image.Image, str]:
    """Two nouns side by side, most often in two colours."""
    other = rng.choice([name for name in nouns() if name != noun])
    colours = rng.sample(tuple(COLOURS), 2) if rng.random() < 0.75 else ["", ""]
    both = [(noun, colours[0]), (other, colours[1])]
    rng.shuffle(both)
    return pair_picture(both[0], both[1], rng), pair_caption(both[0], both[1], rng)


def attributed(noun: str, rng: Rng, count: int) -> tuple[Image.Image, str]:
    """The noun with `count` attributes, at times in a colour, at times on a ground."""
    colour = rng.choice(tuple(COLOURS)) if rng.random() < 0.25 else ""
    elements = KEEP_COLOUR if colour else ELEMENTS
    chosen = [rng.choice(ACCESSORIES) if noun in HELD_OUT or rng.random() < 0.33 else rng.choice(elements)]
    if count == 2:  # an element first, for it may change the figure that eyes and hats are put on
        chosen.append(rng.choice([attribute for attribute in ACCESSORIES if attribute not in chosen]))
    subject = subject_of(noun, rng, colour, 76, 90, 6)
    for attribute in chosen:
        attribute(subject, rng)
    ground, words = ground_of(rng, 0.18, colour)
    name = with_article(" ".join([*subject.before, colour, name_of(noun, rng)]).replace("  ", " ").strip())
    after = " ".join(subject.after)
    if len(subject.after) == 2 and all(phrase.startswith("with ") for phrase in subject.after):
        after = " and ".join((subject.after[0], subject.after[1].removeprefix("with ")))
    return subject.picture(ground), f"{name} {after}".strip() + words


KINDS: dict[str, tuple[float, Callable[[str, Rng], tuple[Image.Image, str]] | None]] = {
    "plain": (0.18, plain), "coloured": (0.13, coloured), "framed": (0.06, framed), "restyled": (0.08, restyled),
    "pair": (0.13, pair), "attributed": (0.42, None),
}  # fmt: skip


def sample(number: int, names: tuple[str, ...] | None = None) -> Sample:
    """Sample `number`; of all nouns, or of `names` only."""
    rng = random.Random(seed_for("pocket", "world", number))
    noun = any_noun(rng, names or tuple(nouns()))
    kind = rng.choices(tuple(KINDS), [share for share, _ in KINDS.values()])[0]
    draw = KINDS[kind][1]
    if draw is None:
        count = 2 if rng.random() < 0.35 and number >= SHARD * SINGLE_SHARDS else 1
        picture, caption = attributed(noun, rng, count)
    else:
        picture, caption = draw(noun, rng)
    return Sample(picture, caption, noun, kind)


def as_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures as float32 (batch, 3, height, width) in [-1, 1]."""
    stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1.0
