"""The reference renderer: any noun as the sample set would show it in a type, "a water type fridge", drawn by code.

It is the ground truth for judges, and their ceiling; no model is trained on these images. The object wears the type's
colours and the set's ink outline, stands on the type's ground, and the type's motifs float around it.
"""

import random

from PIL import Image

from data.rng import seed_for
from tools.pocket.attributes import SIZE
from tools.pocket.drawing.paint import INK, LINE, Pen, Place
from tools.pocket.drawing.parts import FLOATING, PERCHES, charm
from tools.pocket.drawing.shapes import ellipse, polar
from tools.pocket.drawing.species import KINDS
from tools.pocket.figures import bordered, figure, recoloured

SCALE = 8  # drawn at 8 x 64 pixels
TYPES = {kind.word: kind for kind in KINDS}


def reference(noun: str, kind: str, seed: int = 0) -> Image.Image:
    """RGB, 64 x 64 pixels; a function of noun, type and seed."""
    rng = random.Random(seed_for("pocket", "reference", noun, kind, seed))
    side, type_ = SIZE * SCALE, TYPES[kind]
    coat = rng.choice(type_.coats)
    body = recoloured(figure(noun, rng.randrange(20)), coat.main.colour)
    longest = rng.uniform(0.6, 0.68) * side
    ratio = longest / max(body.size)
    body = body.resize((round(body.width * ratio), round(body.height * ratio)), Image.Resampling.LANCZOS)
    body = bordered(body, INK, round(LINE / 2 * side * 0.7))

    pen, bottom = Pen(side, Place()), 0.74
    pen.dab(ellipse(complex(0, bottom), body.width / side * 1.05, 0.11), type_.ground)
    for at in rng.sample(PERCHES, rng.randint(3, 5)):
        size, toward = rng.uniform(0.16, 0.22), polar(1, rng.uniform(40, 140))
        shape = FLOATING.get(kind, type_.motif)
        part = charm(shape, at - toward * size / 2, toward, size, size, type_.outer, type_.inner)
        pen.figure(part, line=LINE * 0.7)
    image = pen.finish()
    image.paste(body, ((side - body.width) // 2, round((bottom + 1) / 2 * side) - body.height), body)
    return image.reduce(SCALE)
