"""What is tried once more: whole files, for their tests share a server; everything if a run broke off unwritten."""

import json
from pathlib import Path

from tests.failed_files import files


def test_the_files_of_failed_tests_are_named_once(tmp_path: Path) -> None:
    written = tmp_path / "lastfailed"
    written.write_text(
        json.dumps({"tests/b.py::test_two[x]": True, "tests/a.py::test_one": True, "tests/b.py::t": True})
    )
    assert files(written) == ["tests/a.py", "tests/b.py"]


def test_a_run_that_wrote_nothing_is_repeated_as_a_whole(tmp_path: Path) -> None:
    assert files(tmp_path / "lastfailed") == ["tests/servers"]
