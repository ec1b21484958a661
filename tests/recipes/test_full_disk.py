"""A disk that is full at any moment: one line, nothing half-written, and with room again the same command ends well."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data import atomic_io
from data.errors import InputError
from infer import metadata
from tests.commands import compare, generate

ROOM = (0, 1, 3, 5, 7, 9)  # files and folders that still fit; each command writes about ten


@pytest.mark.parametrize("command", [generate, compare])
def test_a_full_disk(
    command: Callable[..., int], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ["--model", tiny_model, "--prompt", "a fire", "--prompt", "a water", "--steps", 1]
    shared += ["--cells", tmp_path / "cells"] if command is compare else []
    plain, failed = atomic_io.fsync_path, 0
    for room in ROOM:
        left = [room]

        def flush(path: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            plain(path)

        out = tmp_path / f"out{room}"
        monkeypatch.setattr(atomic_io, "fsync_path", flush)
        said = mistake(command, *shared, "--outdir", out)
        failed += left[0] < 0
        assert (left[0] < 0) == ("No space left on device" in said) and "\n" not in said
        there = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in there if ".part" in path.name]
        for path in there:
            whole(path)
        monkeypatch.setattr(atomic_io, "fsync_path", plain)
        if said:
            assert command(*shared, "--outdir", out) == 0
    assert failed >= 3


def mistake(command: Callable[..., int], *argv: object) -> str:
    """What is said of it; nothing where all went well."""
    try:
        command(*argv)
    except InputError as error:
        return str(error)
    return ""


def whole(path: Path) -> None:
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    if path.name[0].isdigit() and path.suffix == ".png":
        assert metadata.read_metadata(path).verdict == "ok"
