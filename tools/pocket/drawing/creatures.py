"""The sample set: 650 captioned pictures of pocket creatures, drawn by code at any size.

Picture i shows species i % 100. Everything is a function of (seed, i): the same pictures on every machine.
"""

from PIL import Image

from data.sample_set import VERSION
from data.schema import Annotation
from tools.pocket.drawing import captions
from tools.pocket.drawing.bodies import PLANS
from tools.pocket.drawing.paint import Pen, Place, Ruler
from tools.pocket.drawing.parts import Stage, draw_adrift
from tools.pocket.drawing.poses import Pose, pose
from tools.pocket.drawing.shapes import ellipse
from tools.pocket.drawing.species import KINDS, SPECIES, Species

TYPES: tuple[str, ...] = tuple(kind.word for kind in KINDS)


def draw(index: int, size: int, seed: int = 0) -> Image.Image:
    """Picture `index` as RGB, size x size pixels; the same picture at every size."""
    species, how = _cast(index, seed)
    ruler = Ruler(how.stance)
    PLANS[species.plan](Stage(ruler, species, how))
    place = how.fitted(ruler.box)
    pen = Pen(size, Place())
    stage = Stage(pen, species, how)
    _puddle(stage, ruler, place)
    draw_adrift(stage, lambda point: place.scale * ruler.distance((point - place.at) / place.scale), seed, index)
    pen.place = place
    PLANS[species.plan](stage)
    return pen.finish()


def annotation(index: int, seed: int = 0) -> Annotation:
    """The reference caption of picture `index`, and what it shows."""
    species, how = _cast(index, seed)
    return Annotation(
        file_name=f"{index:05d}.png",
        text=captions.caption(species, how, seed, index),
        type=species.kind.word,
        name=species.name,
        quality="good",
        annotator=None,
        source=f"drawn by code, version {VERSION}",
    )


def _cast(index: int, seed: int) -> tuple[Species, Pose]:
    species = SPECIES[index % len(SPECIES)]
    return species, pose(species.plan, species.index, index // len(SPECIES), seed)


def _puddle(stage: Stage, ruler: Ruler, place: Place) -> None:
    """The tinted ground: smaller the higher the creature is in the air."""
    left, _, right, _ = ruler.box
    middle = place.at.real + place.scale * (left + right) / 2
    width = min(place.scale * (right - left) * 0.52 * (1 - stage.pose.action.lift), 0.97 - abs(middle))
    height = stage.pose.ground(ruler.box, place.scale) - 0.02
    stage.pen.dab(ellipse(complex(middle, height), width, min(0.11, 0.2 * width)), stage.species.kind.ground)
