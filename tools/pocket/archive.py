"""Draw the sample set and pack it as data/sample_set.py reads it: python tools/pocket/archive.py [FOLDER]

The same bytes for the same drawing code, Pillow and libwebp; the same pixels always.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile, ZipInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tools is not installed

from PIL import Image
from tqdm import tqdm

from data.atomic_io import atomic_file
from data.captioned_folder import to_json_line
from data.errors import run_entry
from data.sample_set import COUNT, LARGE, POCKET, SIZE
from tools.pocket.drawing import creatures


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else POCKET
    captions = "".join(to_json_line(creatures.annotation(index)) for index in range(COUNT)).encode()
    pack(folder / f"creatures-{SIZE}.zip", {"metadata.jsonl": captions} | dict(images(SIZE, ".png")))
    pack(folder / f"creatures-{LARGE}.zip", dict(images(LARGE, ".webp")))
    return 0


def images(size: int, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Names and files of the whole set."""
    for index in tqdm(range(COUNT), f"drawing at {size} px", unit="image", mininterval=5):
        yield f"{index:05d}{suffix}", encoded(creatures.draw(index, size), suffix)


def encoded(image: Image.Image, suffix: str) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG") if suffix == ".png" else image.save(file, "WEBP", lossless=True, quality=50, method=3)
    return file.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> None:
    """A zip without compression and without dates: what is in it is compressed already."""
    with atomic_file(path) as beside, ZipFile(beside, "w") as archive:
        for name, content in files.items():
            archive.writestr(ZipInfo(name), content)


if __name__ == "__main__":
    run_entry(main)
