"""The sample set: 650 captioned pictures of pocket creatures, drawn by code at any size.

Picture i shows species i % 100. Everything is a function of (seed, i): the same pictures on every machine.
"""

from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data.files import replaced_folder
from data.pocket.drawing import captions
from data.pocket.drawing.bodies import PLANS
from data.pocket.drawing.paint import Place
from data.pocket.drawing.palettes import KINDS
from data.pocket.drawing.parts import Stage, draw_adrift
from data.pocket.drawing.pen import Pen
from data.pocket.drawing.poses import Pose, pose
from data.pocket.drawing.ruler import Ruler
from data.pocket.drawing.shapes import ellipse
from data.pocket.drawing.species import SPECIES, Species
from data.schema import Annotation
from data.seeds import seed_for

COUNT = 650
VERSION = "4"  # raise it when a drawing or a caption changes: cached sample folders are keyed by it
TYPES: tuple[str, ...] = tuple(kind.word for kind in KINDS)

__all__ = ["COUNT", "SPECIES", "TYPES", "VERSION", "annotation", "draw", "write"]


def write(folder: Path, *, count: int = COUNT, size: int = 512, seed: int = 0) -> None:
    """Draw `count` pictures of `size` pixels into `folder` with their metadata.jsonl; the folder appears whole."""
    with replaced_folder(folder) as beside:
        rows = []
        for index in tqdm(range(count), desc="drawing creatures", unit="picture", leave=False, disable=None):
            row = annotation(index, seed)
            draw(index, size, seed).save(beside / row.file_name)
            rows.append(row.model_dump_json(exclude_none=True, exclude_defaults=True) + "\n")
        (beside / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def draw(index: int, size: int, seed: int = 0) -> Image.Image:
    """Picture `index` as RGB, size x size pixels; the same picture at every size."""
    species, how = _cast(index, seed)
    ruler = Ruler(how.stance)
    PLANS[species.plan](Stage(ruler, species, how))
    place = how.fitted(ruler.box)
    pen = Pen(size, Place())
    stage = Stage(pen, species, how)
    _puddle(stage, ruler, place)
    draw_adrift(
        stage,
        lambda point: place.scale * ruler.distance((point - place.at) / place.scale),
        seed_for(seed, "adrift", index),
    )
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
