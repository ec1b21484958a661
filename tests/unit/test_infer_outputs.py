"""Where pictures go: nothing is overwritten, nothing is half there."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from data import files
from data.errors import InputError
from infer import metadata, outputs
from tests.unit.test_infer_metadata import recipe


def test_each_command_gets_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "0007").mkdir()
    (tmp_path / "0009-notes").mkdir()
    assert outputs.next_free(tmp_path).name == "0008"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: outputs.next_free(tmp_path).name, range(16)))
    assert sorted(found) == [f"{number:04d}" for number in range(9, 25)]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    assert outputs.folder_for(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "a" / "b" / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match="is not empty, and nothing is overwritten"):
        outputs.folder_for(tmp_path / "a" / "b")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for asked in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"--outdir .*file.*: cannot be made"):
            outputs.folder_for(asked)


def test_without_a_picture_no_empty_folder_stays(tmp_path: Path) -> None:
    folder = outputs.next_free(tmp_path)
    outputs.write_log(folder, [])
    assert not folder.exists()


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(InputError, match=r"a.png: cannot be written \(No space left on device\)"):
        metadata.write(tmp_path / "a.png", Image.new("RGB", (8, 8)), recipe())
    assert list(tmp_path.iterdir()) == []
