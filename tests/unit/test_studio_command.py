"""studio.py as it is typed: its help is light, and every mistake is one line and exit code 2."""

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ENTRY = Path(__file__).parents[2] / "infer" / "studio.py"


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that somebody else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield str(other.getsockname()[1])


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[object, str]:
    """Exit code, and what is said on stderr."""
    monkeypatch.setattr(sys, "argv", ["studio.py", *flags])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ENTRY), run_name="__main__")
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--port", "70000"), "error: --port: '70000' is not allowed; allowed: less than or equal to 65535"),
        (("--port", "PORT"), "error: --port: port PORT is taken. Is a studio running already?"),
        (("--host", "0.0.0.0"), "error: --host: others can reach 0.0.0.0, and there is no password. Give "),
        (("--listen", "0.0.0.0", "--password", "short"), "error: --password: has 5 letters; allowed: 8 or more"),
        (("--host", "192.0.2.1", "--password", "long enough"), "error: --host: 192.0.2.1 is no address"),
        (("--port", "0", "--model", "pokket"), "error: --model pokket: no such file or folder, did you mean 'pocket'"),
        (("--prot", "1"), "error: --prot: unknown flag, did you mean '--port'? See --help."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    flags: tuple[str, ...], told: str, taken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = typed(monkeypatch, capsys, *(flag.replace("PORT", taken) for flag in flags))
    assert code == 2 and said.count("\n") == 1
    assert said.startswith(told.replace("PORT", taken)), said


def test_help_loads_nothing_heavy() -> None:
    """Neither torch nor the page's library, which take seconds."""
    command = [sys.executable, "-X", "importtime", str(ENTRY), "--help"]
    shown = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ENTRY.parents[1])}
    )
    assert shown.returncode == 0 and "--password-file" in shown.stdout
    loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert not loaded & {"torch", "gradio", "fastapi", "uvicorn", "diffusers", "transformers", "PIL.Image"}
