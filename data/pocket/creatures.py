"""The sample set: 650 captioned pictures of pocket creatures, drawn by code at any size.

Picture i shows species i % 100. Everything is a function of (seed, i): the same pictures on every machine.
"""

from pathlib import Path

from PIL import Image

from data.files import replaced_folder
from data.pocket.drawing import captions
from data.pocket.drawing.bodies import PLANS
from data.pocket.drawing.palettes import KINDS
from data.pocket.drawing.parts import Stage, draw_adrift
from data.pocket.drawing.pen import Pen, Place
from data.pocket.drawing.poses import Pose, pose
from data.pocket.drawing.shapes import ellipse
from data.pocket.drawing.species import SPECIES, Species
from data.schema import Annotation
from data.seeds import seed_for

COUNT = 650
VERSION = "1"  # raise it when a drawing or a caption changes: cached sample folders are keyed by it
TYPES: tuple[str, ...] = tuple(kind.word for kind in KINDS)

__all__ = ["COUNT", "SPECIES", "TYPES", "VERSION", "annotation", "draw", "write"]


def write(folder: Path, *, count: int = COUNT, size: int = 512, seed: int = 0) -> None:
    """Draw `count` pictures of `size` pixels into `folder` with their metadata.jsonl; the folder appears whole."""
    with replaced_folder(folder) as beside:
        rows = []
        for index in range(count):
            row = annotation(index, seed)
            draw(index, size, seed).save(beside / row.file_name)
            rows.append(row.model_dump_json(exclude_none=True, exclude_defaults=True) + "\n")
        (beside / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def draw(index: int, size: int, seed: int = 0) -> Image.Image:
    """Picture `index` as RGB, size x size pixels; the same picture at every size."""
    species, how = _cast(index, seed)
    pen = Pen(size, Place())
    stage = Stage(pen, species, how)
    _ground(pen, species, how)
    draw_adrift(stage, seed_for(seed, "adrift", index))
    pen.place = how.place()
    PLANS[species.plan](stage)
    return pen.finish()


def annotation(index: int, seed: int = 0) -> Annotation:
    """The reference caption of picture `index`, and what it shows."""
    species, how = _cast(index, seed)
    return Annotation(
        file_name=f"{index:05d}.png", text=captions.caption(species, how, seed, index), type=species.kind.word,
        name=species.name, quality="good", source=f"drawn by code, version {VERSION}",
    )


def _cast(index: int, seed: int) -> tuple[Species, Pose]:
    species = SPECIES[index % len(SPECIES)]
    return species, pose(species.plan, species.index, index // len(SPECIES), seed)


def _ground(pen: Pen, species: Species, how: Pose) -> None:
    """The tinted puddle: smaller the higher the creature is in the air."""
    width = 0.74 * how.scale * (1 - 0.9 * how.action.lift)
    pen.dab(ellipse(complex(how.shift.real, 0.76), width, 0.13 * width / 0.74), species.kind.ground)
