"""What can be done to a noun: elements, which change its shape and stuff, and accessories, which are added to it.

Every attribute draws, and says with one of several wordings what it drew. Pictures are composed at CANVAS pixels and
reduced to SIZE, so symbols are large: three to six, each a quarter to a half of the picture.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from tools.pocket.figures import filled, recoloured
from tools.pocket.symbols import VARIANTS, Colour, face, hat, shade, symbol, wing

SIZE, CANVAS = 64, 128  # pixels of a picture, and of the canvas that it is reduced from
Rng = random.Random


@dataclass
class Subject:
    """One noun on its way into a picture: layers from back to front, and the words for what was done to it."""

    figure: Image.Image  # RGBA, CANVAS x CANVAS
    coloured: bool = False  # in a colour that the caption names: no tint may cover it
    behind: list[Image.Image] = field(default_factory=list)
    front: list[Image.Image] = field(default_factory=list)
    before: list[str] = field(default_factory=list)  # adjectives
    after: list[str] = field(default_factory=list)  # phrases

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The figure's visible box."""
        return self.figure.getchannel("A").getbbox() or (32, 32, 96, 96)

    def picture(self, ground: Image.Image) -> Image.Image:
        """All layers on the ground, reduced to SIZE."""
        canvas = ground.convert("RGBA")
        for layer in (*self.behind, self.figure, *self.front):
            canvas.alpha_composite(layer)
        return canvas.convert("RGB").reduce(CANVAS // SIZE)

    def say(self, rng: Rng, adjectives: tuple[str, ...], phrases: tuple[str, ...]) -> None:
        """One of the words for an attribute, before or after the noun."""
        words = rng.choice(adjectives + phrases)
        (self.before if words in adjectives else self.after).append(words)


def blank() -> Image.Image:
    return Image.new("RGBA", (CANVAS, CANVAS), (0, 0, 0, 0))


def pasted(layer: Image.Image, figure: Image.Image, x: float, y: float) -> Image.Image:
    """The layer with the figure's middle at (x, y); parts outside are cut off."""
    left, top = round(x - figure.width / 2), round(y - figure.height / 2)
    source = (max(0, -left), max(0, -top))
    if source[0] < figure.width and source[1] < figure.height and left < CANVAS and top < CANVAS:
        layer.alpha_composite(figure, (max(0, left), max(0, top)), source)
    return layer


def placed(figure: Image.Image, longest: float, x: float, y: float) -> Image.Image:
    """A layer with the figure's middle at (x, y), its longer side at `longest`."""
    factor = longest / max(figure.size)
    size = (max(1, round(figure.width * factor)), max(1, round(figure.height * factor)))
    return pasted(blank(), figure.resize(size, Image.Resampling.LANCZOS), x, y)


def any_symbol(name: str, rng: Rng, low: int, high: int, turn: int = 30) -> Image.Image:
    """A symbol of a random variant, size (in steps of 3) and turn (in steps of 15 degrees)."""
    size = rng.randrange(low, high + 1, 3)
    return symbol(name, rng.randrange(VARIANTS), size, 15 * rng.randint(-turn // 15, turn // 15))


def ring(subject: Subject, name: str, rng: Rng, count: int, low: int, high: int) -> Image.Image:
    """A layer with symbols around the figure, evenly spread, some of them over its edge."""
    left, top, right, bottom = subject.box
    x, y, start = (left + right) / 2, (top + bottom) / 2, rng.uniform(0, 6.28)
    layer = blank()
    for index in range(count):
        angle = start + (index + rng.uniform(-0.25, 0.25)) * 6.28 / count
        across = min(50, (right - left) / 2 + rng.uniform(-2, 10))
        down = min(50, (bottom - top) / 2 + rng.uniform(-4, 6))
        pasted(layer, any_symbol(name, rng, low, high), x + across * math.cos(angle), y + down * math.sin(angle))
    return layer


def scattered(subject: Subject, name: str, rng: Rng, count: int, low: int, high: int) -> Image.Image:
    """A layer with symbols on the figure."""
    left, top, right, bottom = subject.box
    alpha, layer = subject.figure.getchannel("A"), blank()
    for _ in range(6 * count):
        x, y = rng.randint(left, right - 1), rng.randint(top, bottom - 1)
        if alpha.getpixel((x, y)) > 128:
            pasted(layer, any_symbol(name, rng, low, high, 90), x, y)
            count -= 1
        if count == 0:
            break
    return layer


def masked(layer: Image.Image, mask: Image.Image) -> Image.Image:
    """The layer where the mask is."""
    shown = layer.copy()
    shown.putalpha(ImageChops.multiply(layer.getchannel("A"), mask))
    return shown


def tint(subject: Subject, colour: Colour) -> None:
    """Recolour the figure, unless the caption names its colour."""
    if not subject.coloured:
        subject.figure = recoloured(subject.figure, colour)


def row_of(
    subject: Subject, name: str, rng: Rng, y: float, count: int, low: int, high: int, turn: int = 0
) -> Image.Image:
    """A layer with symbols side by side along the figure's width, their middles at y."""
    left, _, right, _ = subject.box
    layer = blank()
    for index in rng.sample(range(count), count):
        x = left + (index + 0.5) * (right - left) / count + rng.uniform(-4, 4)
        pasted(layer, any_symbol(name, rng, low, high, turn), x, y + rng.uniform(-5, 5))
    return layer


def on_fire(subject: Subject, rng: Rng) -> None:
    """Flames behind and before; half the time the thing itself glows."""
    if made := not subject.coloured and rng.random() < 0.3:
        tint(subject, rng.choice(((240, 96, 24), (226, 60, 24), (252, 140, 30))))
    if not made and rng.random() < 0.35:
        subject.front.append(ring(subject, "flame", rng, rng.randint(3, 5), 36, 48))
        subject.say(rng, (), ("with flames", "with fire", "surrounded by flames", "with flames around it"))
        return
    _, top, _, bottom = subject.box
    subject.behind.append(row_of(subject, "flame", rng, top + 12, 3, 54, 72))
    subject.behind.append(row_of(subject, "flame", rng, (top + bottom) / 2, 2, 72, 90))
    subject.front.append(row_of(subject, "flame", rng, bottom - 12, rng.randint(2, 4), 36, 48))
    subject.say(
        rng,
        ("burning", "flaming", "fiery"),
        ("made of fire",) if made else ("on fire", "in flames", "on fire with flames"),
    )


def in_water(subject: Subject, rng: Rng) -> None:
    """In waves to a third of its height, or with drops around it, or made of water."""
    kind = rng.choice(("waves", "waves", "drops", "drops", "drops" if subject.coloured else "made"))
    if kind == "made" or rng.random() < 0.25:
        tint(subject, rng.choice(((48, 130, 235), (70, 160, 245), (40, 170, 225))))
    if kind == "waves":
        level = subject.box[3] - rng.randint(26, 38)
        for rise, colour in ((0, (36, 112, 214)), (13, (78, 162, 246)), (24, (44, 126, 226))):
            subject.front.append(wave(level + rise, colour, rng))
        if rng.random() < 0.5:
            subject.front.append(ring(subject, "drop", rng, 4, 24, 33))
        subject.say(
            rng, (), ("in water", "in the water", "with waves", "in the waves", "standing in water", "in the sea")
        )
    else:
        subject.front.append(ring(subject, "drop", rng, rng.randint(3, 5), 30, 45))
        drops = ("with water drops", "with drops of water", "with water", "splashed with water")
        subject.say(rng, ("wet", "dripping wet"), drops) if kind == "drops" else subject.say(
            rng, ("watery",), ("made of water", "made of water with drops")
        )


def wave(level: float, colour: Colour, rng: Rng) -> Image.Image:
    """Water from `level` down, with pointed crests and a pale line of foam."""
    layer, phase, length = blank(), rng.uniform(0, 6.28), rng.uniform(24, 34)
    line = [(x, level - 7 * abs(math.sin(x * math.pi / length + phase))) for x in range(-2, CANVAS + 4, 2)]
    pen = ImageDraw.Draw(layer)
    pen.polygon([*line, (CANVAS + 4, CANVAS + 2), (-2, CANVAS + 2)], fill=(*colour, 255))
    pen.line(line, fill=(214, 238, 255, 255), width=4)
    return layer


def in_leaves(subject: Subject, rng: Rng) -> None:
    """Leaves on it, or around it, or nothing but leaves."""
    kind = rng.choice(("covered", "covered", "around", "around" if subject.coloured else "made"))
    if kind == "made":
        tint(subject, rng.choice(((70, 164, 66), (50, 140, 60))))
    if kind == "around":
        subject.front.append(ring(subject, "leaf", rng, rng.randint(4, 6), 33, 45))
        subject.say(rng, (), ("with leaves", "with green leaves", "with leaves around it", "with big leaves"))
        return
    subject.front.append(scattered(subject, "leaf", rng, rng.randint(5, 8), 24, 36))
    if rng.random() < 0.5:
        subject.behind.append(row_of(subject, "leaf", rng, subject.box[1], 3, 36, 48, 45))
    covered = ("covered in leaves", "covered with leaves", "overgrown with leaves", "covered in plants")
    subject.say(rng, ("leafy",), covered if kind == "covered" else ("made of leaves",))


def electrified(subject: Subject, rng: Rng) -> None:
    """Bolts around it; sometimes it is yellow with charge."""
    if made := not subject.coloured and rng.random() < 0.3:
        tint(subject, rng.choice(((252, 210, 40), (255, 224, 70))))
    layer = ring(subject, "bolt", rng, rng.randint(3, 5), 42, 60)
    (subject.front if rng.random() < 0.7 else subject.behind).append(layer)
    phrases = (
        "with lightning", "with lightning bolts", "struck by lightning", "with electricity", "charged with electricity",
    )  # fmt: skip
    subject.say(rng, ("electric", "electrified"), ("made of lightning",) if made else phrases)


def icy(subject: Subject, rng: Rng) -> None:
    """Made of ice with icicles, or frozen into a block."""
    if rng.random() < 0.4:
        left, top, right, bottom = subject.box
        block, pen = blank(), None
        pen = ImageDraw.Draw(block)
        box = (max(3, left - 9), max(3, top - 9), min(124, right + 9), min(124, bottom + 9))
        pen.rounded_rectangle(box, 12, fill=(150, 212, 246, 130), outline=(96, 176, 226, 255), width=5)
        pen.line((box[0] + 12, box[1] + 34, box[0] + 34, box[1] + 12), fill=(255, 255, 255, 230), width=6)
        pen.line((box[0] + 14, box[1] + 56, box[0] + 44, box[1] + 24), fill=(255, 255, 255, 200), width=4)
        subject.front.append(block)
        subject.say(rng, ("frozen",), ("in a block of ice", "frozen in ice", "inside a block of ice"))
        return
    tint(subject, rng.choice(((150, 212, 244), (172, 222, 246), (132, 200, 240))))
    if rng.random() < 0.7:
        subject.front.append(icicles(subject, rng))
    if rng.random() < 0.5:
        subject.front.append(ring(subject, "snowflake", rng, 3, 30, 42))
    subject.say(rng, ("icy", "frozen"), ("made of ice", "made of ice with icicles", "covered in ice"))


def icicles(subject: Subject, rng: Rng) -> Image.Image:
    """Icicles hanging from the figure's lower half, as wide as it is there."""
    left, top, right, bottom = subject.box
    layer = blank()
    pen, alpha = ImageDraw.Draw(layer), subject.figure.getchannel("A")
    for x in range(left + 6, right - 4, 13):
        column = [y for y in range((top + bottom) // 2, min(bottom, 126), 2) if alpha.getpixel((x, y)) > 128]
        start = (max(column) - 6) if column else (top + bottom) // 2
        tip = min(126, start + rng.randint(16, 30))
        pen.polygon(
            [(x - 7, start - 4), (x + 7, start - 4), (x, tip)], fill=(190, 232, 252, 255), outline=(84, 164, 222, 255)
        )
    return layer


def snowy(subject: Subject, rng: Rng) -> None:
    """Snow on its upper edges and on the ground, or flakes around it."""
    if rng.random() < 0.4:
        subject.front.append(ring(subject, "snowflake", rng, rng.randint(4, 6), 30, 45))
        subject.say(rng, (), ("with snowflakes", "with falling snow", "with snowflakes around it"))
        return
    alpha = subject.figure.getchannel("A")
    for depth, colour in ((rng.randint(17, 22), (150, 196, 232)), (14, (248, 252, 255))):
        lowered = ImageChops.offset(alpha, 0, depth)
        lowered.paste(0, (0, 0, CANVAS, depth))
        layer = filled(subject.figure, colour)
        layer.putalpha(
            ImageChops.subtract(alpha, lowered).filter(ImageFilter.GaussianBlur(1.2)).point(lambda a: min(255, 2 * a))
        )
        subject.front.append(layer)
    mound = blank()
    pen = ImageDraw.Draw(mound)
    level = subject.box[3] - 6
    pen.ellipse((-10, level, 138, level + 50), fill=(236, 245, 252, 255), outline=(150, 196, 232, 255), width=4)
    subject.front.append(mound)
    if rng.random() < 0.6:
        subject.front.append(ring(subject, "snowflake", rng, 4, 24, 33))
    subject.say(rng, ("snowy", "snow-covered"), ("covered in snow", "with snow", "in the snow", "with snow on top"))


def of_stone(subject: Subject, rng: Rng) -> None:
    """Grey or brown with cracks, or among boulders."""
    if rng.random() < 0.3:
        subject.front.append(row_of(subject, "rock", rng, subject.box[3] - 8, rng.randint(3, 4), 33, 48, 30))
        subject.say(rng, (), ("with rocks", "on rocks", "among rocks", "with stones"))
        return
    tint(subject, rng.choice(((136, 130, 126), (146, 126, 104), (120, 116, 112))))
    left, top, right, bottom = subject.box
    cracks = blank()
    pen = ImageDraw.Draw(cracks)
    for _ in range(rng.randint(3, 5)):
        x, y, line = rng.uniform(left, right), rng.uniform(top, bottom), []
        angle = rng.uniform(0, 6.28)
        for _ in range(4):
            line.append((x, y))
            angle += rng.uniform(-0.9, 0.9)
            x, y = x + 13 * math.cos(angle), y + 13 * math.sin(angle)
        pen.line([(a + 2, b + 2) for a, b in line], fill=(196, 190, 182, 255), width=3)
        pen.line(line, fill=(56, 50, 48, 255), width=4)
    subject.front.append(masked(cracks, subject.figure.getchannel("A")))
    if rng.random() < 0.4:
        subject.front.append(row_of(subject, "rock", rng, bottom - 4, 3, 27, 36, 30))
    subject.say(rng, ("stone", "rocky"), ("made of stone", "made of rock", "carved from stone", "made of rocks"))


def of_metal(subject: Subject, rng: Rng) -> None:
    """Steel with a bright band, rivets, sometimes gears."""
    tint(subject, rng.choice(((142, 152, 166), (160, 172, 186), (120, 132, 150))))
    left, top, right, bottom = subject.box
    band = blank()
    pen, x = ImageDraw.Draw(band), rng.uniform(left, (left + right) / 2)
    for wide, shift in ((11, 0), (5, 20)):
        pen.line((x + shift + 24, top - 4, x + shift - 24, bottom + 4), fill=(246, 250, 255, 190), width=wide)
    if rng.random() < 0.6:
        for _ in range(7):
            a, b = rng.uniform(left + 4, right - 4), rng.uniform(top + 4, bottom - 4)
            pen.ellipse((a - 4, b - 4, a + 4, b + 4), fill=(60, 68, 80, 255))
            pen.ellipse((a - 2, b - 3, a + 2, b + 1), fill=(210, 218, 226, 255))
    subject.front.append(masked(band, subject.figure.getchannel("A")))
    words = ("made of metal", "made of steel", "made of iron", "made of shiny metal")
    if rng.random() < 0.45:
        subject.front.append(ring(subject, "gear", rng, rng.randint(2, 4), 30, 42))
        words = ("made of metal with gears", "with gears", "made of metal")
    subject.say(rng, () if words[0] == "with gears" else ("metal", "steel", "shiny metal"), words)


def ghostly(subject: Subject, rng: Rng) -> None:
    """Pale, half transparent, its lower edge torn into waves, with hollow eyes or wisps."""
    tint(subject, rng.choice(((186, 172, 236), (200, 196, 240), (176, 220, 232))))
    left, top, right, bottom = subject.box
    torn = Image.new("L", (CANVAS, CANVAS), 225)
    pen, phase, length = ImageDraw.Draw(torn), rng.uniform(0, 6.28), max(14.0, (right - left) / 3.5)
    edge = [(x, bottom - 14 - 13 * math.sin((x - left) * 6.28 / length + phase)) for x in range(-2, CANVAS + 4, 2)]
    pen.polygon([*edge, (CANVAS + 4, CANVAS + 2), (-2, CANVAS + 2)], fill=0)
    subject.figure = masked(subject.figure, torn)
    if rng.random() < 0.5:
        layer, x, y = blank(), (left + right) / 2, top + (bottom - top) * 0.4
        pen = ImageDraw.Draw(layer)
        for side in (-11, 11):
            pen.ellipse((x + side - 6, y - 9, x + side + 6, y + 9), fill=(44, 30, 70, 255))
        subject.front.append(layer)
    if rng.random() < 0.6:
        subject.front.append(ring(subject, "wisp", rng, rng.randint(2, 4), 30, 42))
    subject.say(rng, ("ghostly", "ghost", "haunted", "spooky"), ("like a ghost", "as a ghost", "with ghostly wisps"))


def slimy(subject: Subject, rng: Rng) -> None:
    """Slime running down from its top, or bubbles of poison around it."""
    if rng.random() < 0.4:
        tint(subject, rng.choice(((140, 70, 190), (112, 168, 40))))
    if rng.random() < 0.45:
        subject.front.append(ring(subject, "bubble", rng, rng.randint(4, 6), 24, 36))
        subject.say(
            rng, ("poisonous", "toxic"), ("with poison bubbles", "with bubbles", "with purple bubbles", "with poison")
        )
        return
    dark, light = rng.choice((((70, 130, 20), (150, 210, 50)), ((90, 30, 130), (170, 90, 220))))
    left, top, right, bottom = subject.box
    runs = [(rng.uniform(left, right), rng.uniform(0.25, 0.85)) for _ in range(6)]
    for grow, colour in ((3, dark), (0, light)):
        layer = blank()
        pen = ImageDraw.Draw(layer)
        pen.rectangle((left - 4, top - 4, right + 4, top + (bottom - top) * 0.3 + grow), fill=(*colour, 255))
        for x, share in runs:
            end = top + (bottom - top) * share
            pen.rounded_rectangle((x - 7 - grow, top, x + 7 + grow, end + grow), 7 + grow, fill=(*colour, 255))
        subject.front.append(masked(layer, subject.figure.getchannel("A").filter(ImageFilter.MaxFilter(5))))
    if rng.random() < 0.6:
        subject.front.append(ring(subject, "bubble", rng, 3, 21, 30))
    subject.say(rng, ("slimy",), ("covered in slime", "dripping with slime", "with slime", "covered in poison slime"))


def magical(subject: Subject, rng: Rng) -> None:
    """Stars, sparkles or hearts around it; sometimes it is pink."""
    if rng.random() < 0.35:
        tint(subject, (250, 150, 200))
    name = rng.choice(("star", "star", "heart"))
    subject.front.append(ring(subject, name, rng, rng.randint(4, 6), 30, 42))
    words = {
        "star": ("with stars", "with sparkles", "with stars around it", "with magic stars"),
        "heart": ("with hearts", "with pink hearts", "with hearts around it"),
    }
    subject.say(rng, ("magical", "magic") if name == "star" else ("lovely",), words[name])


FACES: dict[str, tuple[int | None, tuple[str, ...]]] = {  # kind of eyes ("" any) -> kind of mouth, words
    "": (None, ("with a face", "with eyes and a mouth", "with a cute face", "with big eyes")),
    "happy": (1, ("with a happy face", "that smiles")),
    "sleepy": (3, ("with a sleepy face", "that sleeps")),
    "angry": (3, ("with an angry face", "with angry eyes")),
    "white": (0, ("with big eyes and a smile", "with a smile", "with big white eyes")),
    "dark": (0, ("with big dark eyes", "with shiny eyes")),
}


def with_face(subject: Subject, rng: Rng) -> None:
    """Two big eyes and a mouth on its middle."""
    left, top, right, bottom = subject.box
    big = Image.new("RGBA", (2 * CANVAS, 2 * CANVAS), (0, 0, 0, 0))
    x, y = (left + right) + rng.uniform(-8, 8), 2 * top + (bottom - top) * rng.uniform(0.6, 0.95)
    apart = min(40.0, max(24.0, (right - left) * 2 * rng.uniform(0.16, 0.23)))
    kind = rng.choice(("", "", "", "happy", "sleepy", "angry", "white", "white", "dark", "dark"))
    smile, words = FACES[kind]
    face(ImageDraw.Draw(big), x, y, apart, rng, kind, smile)
    subject.front.append(big.reduce(2))
    subject.say(rng, (), words)


def with_hat(subject: Subject, rng: Rng) -> None:
    """A hat on its highest part."""
    kind = rng.choice(("top hat", "party hat", "crown", "cap"))
    left, top, right, bottom = subject.box
    row = subject.figure.getchannel("A").crop((left, top, right, top + max(4, (bottom - top) // 8))).getbbox()
    middle = left + (row[0] + row[2]) / 2 if row else (left + right) / 2
    worn = hat(kind, rng)
    wide = rng.uniform(40, 52)
    high = wide * worn.height / worn.width
    subject.front.append(placed(worn, max(wide, high), middle, max(high / 2 + 1, top - high / 2 + 10)))
    words = ("with a hat", "wearing a hat") if kind != "crown" else ()
    subject.say(rng, (), (*words, f"with a {kind}", f"wearing a {kind}"))


def with_wings(subject: Subject, rng: Rng) -> None:
    """A pair of wings behind it."""
    kind = rng.choice(("feather", "feather", "bat", "butterfly"))
    paints = {
        "feather": ((236, 240, 250), (250, 244, 226)),
        "bat": ((142, 84, 190), (112, 92, 150)),
        "butterfly": ((250, 140, 60), (90, 150, 240), (240, 110, 180)),
    }
    right_wing = wing(kind, rng.choice(paints[kind]))
    left, top, right, bottom = subject.box
    inset, y, size = (right - left) * 0.2, top + (bottom - top) * rng.uniform(0.3, 0.5), rng.uniform(48, 60)
    for side, x in ((1, right - inset), (-1, left + inset)):
        shown = right_wing if side > 0 else right_wing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = min(CANVAS - size / 2 + 6, max(size / 2 - 6, x + side * size / 2))
        subject.behind.append(placed(shown, size, x, y))
    words = ("with wings", "with a pair of wings")
    subject.say(
        rng,
        ("winged",),
        (*words, f"with {kind} wings") if kind != "feather" else (*words, "with white wings", "with feathered wings"),
    )


def in_box(subject: Subject, rng: Rng) -> None:
    """Its lower half in a cardboard box."""
    left, top, right, bottom = subject.box
    level, x = bottom - (bottom - top) * rng.uniform(0.32, 0.46), (left + right) / 2
    half = min(56.0, (right - left) / 2 + 8)
    back, front = blank(), blank()
    brown = rng.choice(((198, 150, 96), (186, 136, 84)))
    low = min(124, bottom + 8)
    ImageDraw.Draw(back).rectangle((x - half, level - 8, x + half, low - 10), fill=(*shade(brown, 0.6), 255))
    pen = ImageDraw.Draw(front)
    pen.rectangle((x - half, level, x + half, low), fill=(*brown, 255), outline=(*shade(brown, 0.55), 255), width=4)
    for side in (-1, 1):
        flap = [
            (x + side * half, level), (x + side * (half + 14), level + 12), (x + side * (half + 14), level + 22),
            (x + side * half, level + 14),
        ]  # fmt: skip
        pen.polygon(flap, fill=(*shade(brown, 1.15), 255), outline=(*shade(brown, 0.55), 255))
    pen.rectangle((x - 8, level, x + 8, low), fill=(*shade(brown, 1.2), 255))
    subject.behind.append(back)
    subject.front.append(front)
    subject.say(rng, (), ("in a box", "in a cardboard box", "inside a box"))


Attribute = Callable[[Subject, Rng], None]
ELEMENTS: tuple[Attribute, ...] = (
    on_fire, in_water, in_leaves, electrified, icy, snowy, of_stone, of_metal, ghostly, slimy, magical,
)  # fmt: skip
ACCESSORIES: tuple[Attribute, ...] = (with_face,) * 4 + (with_hat,) * 2 + (with_wings,) * 2 + (in_box,)
KEEP_COLOUR = (
    on_fire,
    in_water,
    in_leaves,
    electrified,
    snowy,
    slimy,
    magical,
)  # elements of a thing whose colour is named
