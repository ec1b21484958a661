"""The sample set as a captioned folder: drawn once for each size, kept in the cache, whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data import store
from data.errors import InputError
from data.files import cache_root
from data.pocket import creatures
from data.schema import Annotation

SIZE = 64  # pixels; what the embedded base model draws


def sample_folder(*, size: int = SIZE) -> Path:
    """The folder of the 650 sample pictures at size x size pixels; drawn now if it is not there yet."""
    folder = cache_root() / "pocket" / f"sample-{creatures.VERSION}-{size}"
    if not is_whole(folder):
        try:
            store.write(folder, drawn(size))
        except InputError:
            if not is_whole(folder):  # else another process has just drawn the same pictures
                raise
    return folder


def is_whole(folder: Path) -> bool:
    """store.write renames a finished folder into place: if the table is there, so are the pictures."""
    return (folder / "metadata.jsonl").is_file()


def drawn(size: int) -> Iterator[tuple[Image.Image, Annotation]]:
    """The pictures, one at a time."""
    title = f"drawing the sample set at {size} px"
    for index in tqdm(range(creatures.COUNT), title, unit="picture", delay=1.0, mininterval=1.0, leave=False):
        yield creatures.draw(index, size), creatures.annotation(index)
