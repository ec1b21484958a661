"""Archives and datasets are read in place: unpacked once, safely, whatever they hold."""

import io
import json
import os
import random
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from data import sources
from data.captioned_folder import CaptionedFolder
from data.config import FolderOptions
from data.errors import InputError
from tests.captioned import draw, names

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(colour: str, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(content, kind)
    return content.getvalue()


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(path: Path, **options: Any) -> CaptionedFolder:
    return sources.read_source(path, FolderOptions(**options))


def captions(listing: CaptionedFolder) -> dict[str, list[str]]:
    return {sample.annotation.file_name: sample.captions for sample in listing.samples}


def test_a_plain_folder_is_read_in_place(tmp_path: Path, cache: Path) -> None:
    draw(tmp_path / "set", "a.png")
    (tmp_path / "set" / "a.txt").write_text("a")
    assert captions(read(tmp_path / "set")) == {"a.png": ["a"]}
    assert not cache.exists()


PLAIN: Files = {
    "set/a.png": picture("red"),
    "set/a.txt": b"a red one",
    "set/sub/b.jpg": picture("blue", "JPEG"),
    "set/metadata.jsonl": b'{"file_name": "sub/b.jpg", "text": "a blue one"}',
    "__MACOSX/set/._a.png": b"x",
    "set/.DS_Store": b"x",
    "set/model.safetensors": b"x",
}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_an_archive_is_unpacked_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name, PLAIN)
    listing = read(path)
    assert captions(listing) == {"a.png": ["a red one"], "sub/b.jpg": ["a blue one"]}
    assert (listing.folder, listing.problems) == (path, [])
    assert any(str(listing.samples[0].path.parent) in note for note in listing.caption_notes)
    monkeypatch.setattr(sources, "unpack_archives", None)
    assert captions(read(path)) == captions(listing)
    os.rename(path, moved := path.with_name(f"moved {name}"))
    assert captions(read(moved)) == captions(listing), "the content is what counts"


def test_webdataset_shards(tmp_path: Path) -> None:
    for shard in range(2):
        files = {
            "000.jpg": picture("red" if shard else "lime", "JPEG"),
            "000.txt": f"shard {shard}".encode(),
            "000.json": json.dumps({"url": "x", "width": None}).encode(),
            "001.png": picture("blue" if shard else "gold"),
            "001.json": json.dumps({"caption": f"json {shard}"}).encode(),
        }
        write_tar(tmp_path / "shards" / f"{shard:05}.tar", files)
    listing = read(tmp_path / "shards")
    assert listing.problems == []
    assert sorted(text for texts in captions(listing).values() for text in texts) == [
        "json 0", "json 1", "shard 0", "shard 1",
    ]  # fmt: skip
    assert listing.samples[0].annotation.model_extra == {"url": "x"}
    assert captions(read(tmp_path / "shards" / "00001.tar")) == {"000.jpg": ["shard 1"], "001.png": ["json 1"]}


def parquet(path: Path, columns: dict[str, list[Any]], image: str = "image") -> Path:
    cells = columns | {image: [cell and {"bytes": cell, "path": "x_y.png"} for cell in columns[image]]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(cells).cast_column(image, datasets.Image()).to_parquet(str(path))
    return path


def test_the_hubs_parquet_layout(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "data"
    parquet(folder / "train-00000-of-00002.parquet", {"image": [picture("red"), picture("lime")], "text": ["r", "l"]})
    parquet(folder / "train-00001-of-00002.parquet", {"image": [picture("blue"), None], "text": ["b", "none"]})
    (tmp_path / "set" / "README.md").write_text("about")
    listing = read(tmp_path / "set")
    assert captions(listing) == {"000000.png": ["r"], "000001.png": ["l"], "000002.png": ["b"]}
    assert [problem.refused for problem in listing.problems] == [True]
    assert [str(problem) for problem in read(tmp_path / "set").problems] == list(map(str, listing.problems))
    assert captions(read(folder / "train-00001-of-00002.parquet")) == {"000000.png": ["b"]}


def test_columns_of_other_names(tmp_path: Path) -> None:
    columns = {"photo": [picture("red")], "caption": ["one"], "said": [["two", "zwei"]]}
    path = parquet(tmp_path / "a.parquet", columns, image="photo")
    (sample,) = read(path).samples
    assert (sample.captions, sample.annotation.model_extra) == (["one"], {"caption": "one", "said": ["two", "zwei"]})
    assert read(path, caption_column="said").samples[0].captions == ["two", "zwei"]
    bare = parquet(tmp_path / "bare.parquet", {"image": [picture("red")]})
    with pytest.raises(InputError) as error:
        read(bare)
    assert "--pictures.caption-column" in (error.value.fix or "")
    assert read(bare, prompt="a sks").samples[0].captions == ["a sks"]
    assert read(bare, prompt="filename").samples[0].captions == ["x y"]


def test_a_saved_dataset_is_read_in_place_and_from_a_zip(tmp_path: Path) -> None:
    cells = {"image": [{"bytes": picture("red"), "path": None}], "text": ["r"]}
    datasets.Dataset.from_dict(cells).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    assert captions(read(tmp_path / "saved")) == {"000000.png": ["r"]}
    files = {f"saved/{path.name}": path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert captions(read(write_zip(tmp_path / "a.zip", files))) == {"000000.png": ["r"]}


def test_names_that_lead_out_are_not_written(tmp_path: Path, cache: Path) -> None:
    files = {"a.png": picture("red"), "a.txt": b"a", "../out.png": picture("red"), "/abs.png": picture("red")}
    for path in (write_zip(tmp_path / "a.zip", files), write_tar(tmp_path / "a.tar", files)):
        listing = read(path)
        assert names(listing) == ["a.png"]
        assert [problem.where for problem in listing.problems] == [str(path)] * 2
    assert not list(tmp_path.rglob("out.png"))


def test_links_in_a_tar_are_left_out(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture("red"), "a.txt": b"a"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert names(read(path)) == ["a.png"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_bomb_is_refused_before_it_is_written(
    tmp_path: Path, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FREE_BYTES", 1 << 20)
    files = {"a.png": picture("red"), "zeros.txt": bytes(50 << 20)}
    path = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name, files)
    with pytest.raises(InputError) as error:
        read(path)
    assert error.value.where == path and error.value.allowed
    assert not list((cache / "sources").rglob("*.png"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.parquet"])
def test_damage_is_one_error(tmp_path: Path, cache: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        parquet(path, {"image": [picture("red")], "text": ["a"]})
    else:
        (write_zip if name.endswith("zip") else write_tar)(
            path, {"a.png": random.Random(1).randbytes(4000), "a.txt": b"a"}
        )
    whole, noise = path.read_bytes(), random.Random(0).randbytes(500)
    for content in (b"", b"nonsense" * 100, whole[: len(whole) // 2], whole[:60] + noise + whole[560:]):
        path.write_bytes(content)
        with suppress(InputError):
            assert not read(path).samples
    assert not list((cache / "sources").glob(".*")), "no partial folders are left"


def test_an_archive_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(write_zip(tmp_path / "a.zip", {"model.bin": b"x"}))
    assert error.value.where == tmp_path / "a.zip"


def test_an_archive_is_imported_as_a_folder(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", PLAIN)
    assert sources.import_source(path, tmp_path / "new", pictures=None, options=FolderOptions()) == []
    assert captions(read(tmp_path / "new")) == captions(read(path))
