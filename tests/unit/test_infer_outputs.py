"""Where pictures go: nothing is overwritten, nothing is half there."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from data import atomic_io
from data.errors import InputError
from infer import metadata, output
from tests.unit.test_infer_metadata import recipe


def test_each_command_gets_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "0007").mkdir()
    (tmp_path / "0009-notes").mkdir()
    assert output.next_numbered_folder(tmp_path).name == "0008"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: output.next_numbered_folder(tmp_path).name, range(16)))
    assert sorted(found) == [f"{number:04d}" for number in range(9, 25)]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    assert output.open_output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "a" / "b" / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match="is not empty, and nothing is overwritten"):
        output.open_output_folder(tmp_path / "a" / "b")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for asked in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"--outdir .*file.*: cannot be made"):
            output.open_output_folder(asked)


def test_without_a_picture_no_empty_folder_stays(tmp_path: Path) -> None:
    folder = output.next_numbered_folder(tmp_path)
    output.write_log(folder, [])
    assert not folder.exists()


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(atomic_io, "fsync_path", full)
    with pytest.raises(InputError, match=r"a.png: cannot be written \(No space left on device\)"):
        metadata.write_png(tmp_path / "a.png", Image.new("RGB", (8, 8)), recipe())
    assert list(tmp_path.iterdir()) == []
