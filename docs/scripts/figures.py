"""The images of README and docs/: python docs/scripts/figures.py creatures | pairs | demo SHEET | thesis DIR | ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # docs is not installed

from PIL import Image, ImageDraw, ImageFont

from data import sample_set
from data.atomic_io import atomic_file
from data.errors import InputError, run_entry
from docs.scripts import overview, plots

DOCS = Path(__file__).parents[1]
COLUMNS, ROWS, SIDE = 10, 5, 96
LIMIT = 200 << 10  # maximum bytes of a figure
PAIRS = (1, 52, 79, 85, 90, 112, 156, 184)  # the images of docs/captioning.md, in the order of its table
PAIR_SIDE = 176
INK = "#2a1a4a"


def main() -> int:
    """creatures: fifty sample images. pairs: the eight of the captioning guide. demo: a sheet of generate.py.

    thesis: all panels of `compare.py --figures thesis` on one sheet. study: the curves of `compare.py --study steps`.
    types: a sheet of compare.py at half size.
    captioning: a screenshot by `python -m tests.benchmarks.labelling --screenshot SHOT`.
    studio: a screenshot by `python -m tests.benchmarks.studio --screenshot SHOT`.
    evaluation, classifiers: a screenshot of the report by infer/evaluate.py or train/study/run.py.
    """
    match sys.argv[1:]:
        case ["creatures"]:
            save(sample_sheet(), DOCS / "creatures.png")
        case ["pairs"]:
            save(numbered(PAIRS), DOCS / "captioning-pairs.png")
        case ["demo", sheet]:
            save(Image.open(sheet).convert("RGB"), DOCS / "demo.png")
        case ["types", sheet]:
            save(halved(Image.open(sheet).convert("RGB")), DOCS / "types.png")
        case ["captioning", shot]:
            save(Image.open(shot).convert("RGB"), DOCS / "captioning-screen.png")
        case ["studio", shot]:
            save(Image.open(shot).convert("RGB"), DOCS / "studio.png")
        case [("evaluation" | "classifiers") as name, shot]:
            save(halved(Image.open(shot).convert("RGB")), DOCS / "figures" / f"{name}.png")
        case ["thesis", folder]:
            save(overview.panels(Path(folder)), DOCS / "thesis-figures.png")
        case ["study", ("steps" | "guidance") as name, folder]:
            plots.save(overview.curves(Path(folder), name), DOCS / "figures" / f"sd-study-{name}.png")
        case other:
            kinds = "creatures, pairs, demo SHEET, types SHEET, captioning SHOT, studio SHOT, evaluation SHOT, "
            allowed = kinds + "classifiers SHOT, thesis DIR, study steps DIR"
            raise InputError(f"{' '.join(other)!r}", where="docs/scripts/figures.py", allowed=allowed)
    return 0


def halved(sheet: Image.Image) -> Image.Image:
    return sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)


def sample_sheet() -> Image.Image:
    """Sample images with one column per type."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE), "white")
    for place in range(COLUMNS * ROWS):
        row, column = divmod(place, COLUMNS)
        sheet.paste(sample_set.sample_image(400 + place, SIDE), (column * SIDE, row * SIDE))
    return sheet


def numbered(indices: tuple[int, ...], columns: int = 4) -> Image.Image:
    """Sample images in rows, numbered from 1."""
    sheet = Image.new("RGB", (columns * PAIR_SIDE, -(-len(indices) // columns) * PAIR_SIDE), "white")
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(indices):
        row, column = divmod(place, columns)
        x, y = column * PAIR_SIDE, row * PAIR_SIDE
        sheet.paste(sample_set.sample_image(index, PAIR_SIDE), (x, y))
        middle = (x + 20, y + PAIR_SIDE - 18)
        pen.circle(middle, 14, fill="white", outline=INK, width=2)
        pen.text(middle, str(place + 1), fill=INK, font=ImageFont.load_default(20), anchor="mm")
    return sheet


def save(image: Image.Image, path: Path) -> None:
    """Save with as many colours as the size limit allows."""
    for colours in (256, 128, 64, 32):
        with atomic_file(path) as beside:
            few = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.save(beside, "PNG", optimize=True)
        if path.stat().st_size <= LIMIT:
            return
    raise InputError(f"{path.stat().st_size} bytes", where=path, allowed=f"{LIMIT} bytes")


if __name__ == "__main__":
    run_entry(main)
