"""Where images go: nothing is overwritten, nothing is half there; which process generates which images."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from data import atomic_io
from infer import metadata, output
from infer.generation import ProcessGroup
from tests.errors import error_of
from tests.unit.test_infer_metadata import recipe


def test_each_command_gets_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "0007").mkdir()
    (tmp_path / "0009-notes").mkdir()
    assert output.next_numbered_folder(tmp_path).name == "0008"
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: output.next_numbered_folder(tmp_path).name, range(16)))
    assert sorted(names) == [f"{number:04d}" for number in range(9, 25)]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert output.open_output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "a" / "b" / "x.png").write_bytes(b"")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "a" / "b", tmp_path / "file", tmp_path / "file" / "below"):
        assert error_of(output.open_output_folder, folder).where == f"--outdir {folder}"


def test_without_an_image_no_empty_folder_stays(tmp_path: Path) -> None:
    folder = output.next_numbered_folder(tmp_path)
    output.write_log(folder, [])
    assert not folder.exists()


def test_a_full_disk_leaves_no_half_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(atomic_io, "fsync_path", full)
    error = error_of(metadata.write_png, tmp_path / "a.png", Image.new("RGB", (8, 8)), recipe())
    assert error.where == tmp_path / "a.png"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "together"), [(1, 1), (2, 1), (3, 4), (5, 2)])
def test_every_image_is_in_one_processes_share(count: int, together: int) -> None:
    shares = [ProcessGroup(rank, count).share(range(23), together) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(23))
    assert max(map(len, shares)) - min(map(len, shares)) <= together
    assert ProcessGroup(1, 2).share(range(10), 4) == [4, 5, 6, 7], "whole micro-batches"


def test_one_process_agrees_with_itself_and_only_the_first_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert ProcessGroup().agree(lambda: 3) == 3
    ProcessGroup().wait()
    ProcessGroup().say("hello")
    ProcessGroup(1, 2).say("hello")
    assert capsys.readouterr().out == "hello\n"
