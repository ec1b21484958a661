"""How pictures come to a server: linked into the folder that our own shows, or uploaded to somebody else's.

Either way a picture is called by its SHA-256 there: no odd name, no path of this machine, and nothing is sent twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from annotation.client import Client
from annotation.project import configure
from annotation.server import Server
from data.errors import InputError
from data.files import replaced_file
from data.images import FORMATS, open_picture
from data.schema import Sample

SHOWN = {"JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "MPO"}  # what browsers show; the rest is given to them as PNG
FILES, BYTES = 20, 32 << 20  # of one upload: beyond 100 files Label Studio answers with an error
PICTURE_ALONE = '<View><Image name="image" value="$image"/></View>'
Addresses = dict[str, str]  # SHA-256 -> what the task's data says under "image"


def link(server: Server, key: str, pictures: Sequence[Sample], formats: Mapping[str, str]) -> Addresses:
    """Links to the pictures in the folder that our server shows; the pictures themselves stay where they are."""
    folder = server.pictures / key
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    addresses = {}
    for sample in pictures:
        name = name_of(sample, formats)
        point(folder / name, sample, formats[sample.sha256])
        addresses[sample.sha256] = f"/data/local-files/?d={key}/{name}"
    return addresses


def name_of(sample: Sample, formats: Mapping[str, str]) -> str:
    """The SHA-256 with a suffix by which the browser knows what it gets."""
    kind = formats[sample.sha256]
    return sample.sha256 + (FORMATS[kind][0] if kind in SHOWN else ".png")


def point(path: Path, sample: Sample, kind: str) -> None:
    """Make `path` show the picture; a link that led to an old place is turned."""
    if kind not in SHOWN:
        if not path.exists():
            with replaced_file(path) as beside:
                open_picture(sample.path).save(beside, "PNG")
        return
    if not path.is_symlink() or os.readlink(path) != str(sample.path):
        path.unlink(missing_ok=True)
        path.symlink_to(sample.path)


def make_storage(client: Client, server: Server, number: int, key: str) -> None:
    """The row without which Label Studio shows no local file of a project, even though it serves them."""
    path = str(server.pictures / key)
    rows = client.read(lambda sdk: list(sdk.import_storage.local.list(project=number)))
    if any(row.path == path for row in rows):
        return
    client.insist(lambda sdk: sdk.import_storage.local.create(project=number, path=path, use_blob_urls=True))


def upload(client: Client, number: int, pictures: Sequence[Sample], formats: Mapping[str, str]) -> Addresses:
    """Send what the server does not have yet to the Label Studio project `number`."""
    there = uploaded(client, number)
    missing = [sample for sample in pictures if sample.sha256 not in there]
    if missing:
        send_all(client, number, missing, formats)
        there = uploaded(client, number)
    lost = [sample for sample in pictures if sample.sha256 not in there]
    if lost:
        name = lost[0].annotation.file_name
        raise InputError(f"did not take {len(lost)} of the pictures, first {name!r}", where=client.url)
    return there


def send_all(client: Client, number: int, missing: Sequence[Sample], formats: Mapping[str, str]) -> None:
    """Send pictures in batches, meanwhile with a screen that shows nothing else.

    Label Studio refuses a picture for a screen that asks for more than a picture, although no task is made of it.
    Killed in the middle, the next push finds the changed screen and gives the project its own again.
    """
    own = str(client.read(lambda sdk: sdk.projects.get(id=number)).label_config)
    configure(client, number, PICTURE_ALONE)
    try:
        with tqdm(total=len(missing), desc="sending pictures", unit="picture", disable=None, leave=False) as bar:
            for batch in batches(missing):
                send(client, number, batch, formats)
                bar.update(len(batch))
    finally:
        configure(client, number, own)


def uploaded(client: Client, number: int) -> Addresses:
    """The pictures that a project holds already; Label Studio puts eight letters and a dash before their names."""
    files = client.read(lambda sdk: sdk.files.list(id=number, all_=True))
    names: dict[str, str] = {}
    for each in files:
        file = str(each.file)
        sha256 = Path(file).stem.rpartition("-")[2]
        names.setdefault(sha256, f"/data/{file.removeprefix('/data/').lstrip('/')}")
    return names


def batches(pictures: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Up to FILES pictures and about BYTES bytes at a time."""
    batch: list[Sample] = []
    size = 0
    for sample in pictures:
        length = sample.path.stat().st_size
        if batch and (len(batch) == FILES or size + length > BYTES):
            yield batch
            batch, size = [], 0
        batch.append(sample)
        size += length
    if batch:
        yield batch


def send(client: Client, number: int, batch: Sequence[Sample], formats: Mapping[str, str]) -> None:
    """One upload, without making tasks of it."""
    files: list[tuple[str, tuple[str, bytes, str]]] = []
    for sample in batch:
        name = name_of(sample, formats)
        content = sample.path.read_bytes() if formats[sample.sha256] in SHOWN else as_png(sample)
        files.append((name, (name, content, "application/octet-stream")))
    client.post(f"/api/projects/{number}/import", params={"commit_to_project": "false"}, files=files)


def as_png(sample: Sample) -> bytes:
    """A picture of a kind that no browser shows."""
    import io

    encoded = io.BytesIO()
    picture: Image.Image = open_picture(sample.path)
    picture.save(encoded, "PNG")
    return encoded.getvalue()
