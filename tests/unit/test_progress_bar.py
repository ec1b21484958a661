"""A bar in a terminal, a line now and then elsewhere."""

import io
from typing import Any

import pytest

from data import progress
from data.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_short_work_writes_nothing_into_a_log() -> None:
    file = io.StringIO()
    assert list(ProgressBar(range(1000), "counting", file=file)) == list(range(1000))
    assert file.getvalue() == ""


def test_long_work_writes_a_line_at_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 10.0)
    file, clock = io.StringIO(), [0.0]
    bar: Any = ProgressBar(total=100, desc="counting", unit="image", file=file)
    bar._time = lambda: clock[0]
    bar.start_t = bar.last_print_t = 0.0
    with bar:
        for second in range(1, 41):
            clock[0] = float(second)
            bar.update(1)
    lines = file.getvalue().splitlines()
    assert 3 <= len(lines) <= 4
    assert lines[0].startswith("counting: 1") and "of 100" in lines[0] and "image/s" in lines[0]
    assert "\r" not in file.getvalue()


def test_a_terminal_gets_a_bar_that_is_cleared() -> None:
    file = Terminal()
    list(ProgressBar(range(10), "counting", file=file, mininterval=0))
    assert "100%" in file.getvalue() or "counting" in file.getvalue()
    assert file.getvalue().endswith("\r")
