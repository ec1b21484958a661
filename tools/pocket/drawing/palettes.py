"""The ten types: their colours with the words an annotator would use, and the motif each wears, drops and holds."""

from dataclasses import dataclass

from tools.pocket.drawing import shapes
from tools.pocket.drawing.paint import Colour
from tools.pocket.drawing.shapes import Path


def rgb(code: str) -> Colour:
    value = int(code, 16)
    return value >> 16, value >> 8 & 255, value & 255


@dataclass(frozen=True)
class Paint:
    word: str
    colour: Colour


def paint(text: str) -> Paint:
    """'sky blue 62b8f0' -> Paint('sky blue', (98, 184, 240))."""
    word, code = text.rsplit(" ", 1)
    return Paint(word, rgb(code))


@dataclass(frozen=True)
class Coat:
    """The three colours of a species: body, belly and trim (paws, spots, ears)."""

    main: Paint
    belly: Paint
    trim: Paint


@dataclass(frozen=True)
class Kind:
    """A type. `outer` and `inner` colour its motif, `ground` the puddle under it.

    held: the motif in a hand, in words; single: the same in a word or two.
    """

    word: str
    coats: tuple[Coat, ...]
    motif: Path
    outer: Colour
    inner: Colour
    ground: Colour
    held: str
    single: str


def coats(*rows: str) -> tuple[Coat, ...]:
    return tuple(Coat(*(paint(cell.strip()) for cell in row.split(","))) for row in rows)


KINDS: tuple[Kind, ...] = (
    Kind("water", coats(
        "blue 3f8ff0, pale blue cfefff, teal 1fb5bd", "teal 22b3bb, cream fff0cf, blue 2f74d8",
        "sky blue 63bdf7, white f7fdff, blue 2d6fd6", "deep blue 2c5fd0, pale blue bfe3ff, aqua 4fd6dc",
        "aqua 55d3dd, white f7fdff, deep blue 2c5fd0",
    ), shapes.DROP, rgb("4fb4ff"), rgb("c9efff"), rgb("b9e2f7"), "drop of water", "drop"),
    Kind("fire", coats(
        "red ee4b35, cream ffe6b0, orange ff9a2b", "orange ff8a2a, cream fff0c4, red e0402f",
        "red d93a3a, orange ffa53c, yellow ffd23c", "orange ff9c3d, yellow ffe27a, brown 9c4a2c",
        "crimson c92f45, peach ffc79a, orange ff8f2e",
    ), shapes.FLAME, rgb("ff7a1c"), rgb("ffd84a"), rgb("ffd2a6"), "little flame", "flame"),
    Kind("grass", coats(
        "green 4fb54a, pale yellow f4f3b0, dark green 2c7f45", "lime 9ad13f, cream fff3cf, green 3f9c47",
        "moss green 7c9c3e, pale yellow f2edb4, dark green 3f6a34", "mint green 72d39a, white f6fff2, green 3da35d",
        "dark green 2f8f58, lime cdeb7a, lime a4d63f",
    ), shapes.LEAF, rgb("6ccb3f"), rgb("c7ee8a"), rgb("cfe8ae"), "leaf", "leaf"),
    Kind("electric", coats(
        "yellow ffd42e, cream fff4cc, orange f59a23", "golden f6b41f, pale yellow fff0b0, violet 7c5ad6",
        "yellow ffdf4d, white fffdf0, teal 1fae9f", "amber ffb638, cream fff1cb, blue 4f7fe0",
        "lemon fbe75e, pale yellow fffbd6, golden e5a51e",
    ), shapes.BOLT, rgb("ffe23d"), rgb("fff9c2"), rgb("ffeaa0"), "bolt of lightning", "bolt"),
    Kind("ice", coats(
        "pale blue bfe6fa, white fafeff, blue 5fb2ea", "white f3fbff, pale blue cdebfb, sky blue 82c9f2",
        "icy blue 9fdcf5, white fafeff, violet 8f9be8", "pale violet cdd6fb, white fafcff, blue 7fa6ee",
        "pale cyan b5f0f0, white f7ffff, teal 54bccb",
    ), shapes.CRYSTAL, rgb("8fe0fb"), rgb("eefcff"), rgb("d3ecf6"), "ice crystal", "crystal"),
    Kind("rock", coats(
        "brown a67c56, cream eedcb6, dark brown 74523f", "grey a19aa3, pale grey dcd6d6, dark grey 6b6474",
        "sandy d3a76d, cream f6e3bd, brown 97683f", "reddish brown b06a4b, sandy eac79c, dark brown 75433a",
        "slate grey 858a9c, sandy e2cfa8, dark grey 585d72",
    ), shapes.CHUNK, rgb("8f7c72"), rgb("c2afa0"), rgb("e2cfb0"), "stone", "stone"),
    Kind("ghost", coats(
        "violet 7d62cf, lavender cfc0f5, dark violet 4d3a96", "lavender b9a2f0, white f6f0ff, violet 7a5bd0",
        "dark violet 574399, pale violet ab97e6, mint 86efcf", "white efe9ff, lavender cdbdf6, violet 8a70db",
        "grey violet 8d84b8, pale violet d4cdec, mint 86efcf",
    ), shapes.WISP, rgb("7ee8cb"), rgb("dcfff2"), rgb("d9cff0"), "ghost light", "wisp"),
    Kind("poison", coats(
        "purple a344bd, lime cdea5e, dark purple 6d2a8a", "magenta c93f9c, pale pink f8cdea, purple 83309b",
        "purple b567d6, pale yellow f1efb2, magenta c2348d", "plum 8a3a86, lime bfe04a, magenta d050a8",
        "acid green a5cf35, pale yellow f3f4b4, purple 953fb5",
    ), shapes.SPIKE, rgb("b5e22f"), rgb("ecfba0"), rgb("e3c3ea"), "green spike", "spike"),
    Kind("fairy", coats(
        "pink ff9cc6, cream fff2dc, rose f0639f", "rose f473a9, pale pink ffd9ea, white fff6fb",
        "pale pink ffc6dc, white fffafd, pink fb7fb4", "peach ffb3a3, cream fff1dc, pink f77fb0",
        "lilac e3a5ea, pale pink ffe0f1, pink f878b5",
    ), shapes.STAR, rgb("ffd84f"), rgb("fff6c4"), rgb("ffd6e4"), "shining star", "star"),
    Kind("metal", coats(
        "silver bcc6d4, white f2f6fb, blue grey 67788f", "steel grey 8796ad, pale grey dbe2ec, golden f0bd45",
        "bronze c08a4a, cream f3dcae, brown 7d5230", "dark grey 626d84, silver c3ccda, red d9544f",
        "copper d07f58, cream f6d9bd, steel grey 71819a",
    ), shapes.NUT, rgb("d9e0ea"), rgb("ffffff"), rgb("d4d8e2"), "steel hexagon", "steel hexagon"),
)
