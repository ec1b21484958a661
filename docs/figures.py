"""Draw the pictures that the README shows: python docs/figures.py creatures | demo SHEET | captioning SHOT."""

import sys
from pathlib import Path

from PIL import Image

from data.errors import InputError, run_entry
from data.files import replaced_file
from data.pocket import creatures

DOCS = Path(__file__).parent
COLUMNS, ROWS, SIDE = 10, 5, 96
LIMIT = 200 << 10  # bytes a figure may have


def main() -> int:
    """creatures: fifty of the sample pictures. demo: a sheet of generate.py, within the size that the docs allow.

    captioning: what `python -m tests.benchmarks.labelling --screenshot SHOT` saw.
    """
    match sys.argv[1:]:
        case ["creatures"]:
            keep(sample_sheet(), DOCS / "creatures.png")
        case ["demo", sheet]:
            keep(Image.open(sheet).convert("RGB"), DOCS / "demo.png")
        case ["captioning", shot]:
            keep(Image.open(shot).convert("RGB"), DOCS / "captioning-screen.png")
        case other:
            allowed = "creatures, demo SHEET, captioning SHOT"
            raise InputError(f"{' '.join(other)!r}", where="docs/figures.py", allowed=allowed)
    return 0


def sample_sheet() -> Image.Image:
    """A column for each type."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE), "white")
    for place in range(COLUMNS * ROWS):
        row, column = divmod(place, COLUMNS)
        sheet.paste(creatures.draw(400 + place, SIDE), (column * SIDE, row * SIDE))
    return sheet


def keep(picture: Image.Image, path: Path) -> None:
    """Save with the most colours that the limit allows."""
    for colours in (256, 128, 64, 32):
        with replaced_file(path) as beside:
            few = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.save(beside, "PNG", optimize=True)
        if path.stat().st_size <= LIMIT:
            return
    raise InputError(f"{path.stat().st_size} bytes", where=path, allowed=f"{LIMIT} bytes")


if __name__ == "__main__":
    run_entry(main)
