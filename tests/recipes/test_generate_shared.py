"""A long job shared by torchrun's processes: killed and started again, it loses nothing and repeats nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.errors import InputError
from infer import generation, metadata, output
from tests.commands import generate, log

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
COUNT = 12


def pictures(folder: Path) -> dict[str, int]:
    """The finished pictures, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("0*.png")}


def test_two_processes_killed_and_started_again(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--model", tiny_model, "--prompt", "a fire", "--steps", 6, "--sampler", "euler_a"]
    argv = [*LAUNCH, ROOT / "infer" / "generate.py", *words, "--num-images", COUNT, "--outdir", out]
    command = [str(word) for word in argv]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while len(pictures(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]:
        os.kill(process.pid, signal.SIGKILL)  # torchrun's workers have sessions of their own
    first.wait()
    time.sleep(0.2)  # what they were writing is written, or never will be
    before = pictures(out)
    assert 3 <= len(before) < COUNT, "killed in the middle"
    for name in before:
        metadata.read_metadata(out / name)  # whole
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert second.returncode == 0, second.stderr[-2000:]
    said = second.stdout.splitlines()
    (line,) = [line for line in said if str(out) in line and line.startswith("resuming")]  # once, not by each process
    assert f" {len(before)} " in line
    after = pictures(out)
    assert {name: after[name] for name in before} == before, "none was drawn again"
    assert sorted(after) == [f"{index:05d}-{42 + index}.png" for index in range(COUNT)]
    assert {path.name for path in out.iterdir()} == {*after, "grid.png", "run.jsonl"}, "nothing half-written stays"
    assert [line["file"] for line in log(out)] == sorted(after)
    alone = tmp_path / "alone"
    assert generate(*words, "--seeds", f"42,{41 + COUNT}", "--outdir", alone) == 0
    same = {"00000-42.png": "00000-42.png", f"00001-{41 + COUNT}.png": f"{COUNT - 1:05d}-{41 + COUNT}.png"}
    assert all((alone / own).read_bytes() == (out / theirs).read_bytes() for own, theirs in same.items())


def test_a_job_resumes_where_it_stopped(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk, say, at the third picture; the same command goes on, another one is refused."""
    monkeypatch.chdir(tmp_path)
    argv = ["--model", tiny_model, "--prompt", "a", "--steps", 1, "--num-images", 4]
    write, written = metadata.write_png, []

    def failing(path: Path, *args: object) -> None:
        if len(written) == 2:
            raise InputError("cannot be written (No space left on device)", where=path)
        written.append(path.name)
        write(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "write_png", failing)
    with pytest.raises(InputError, match="No space left on device"):
        generate(*argv)
    folder = Path("outputs/0001")
    assert sorted(pictures(folder)) == ["00000-42.png", "00001-43.png"]
    assert len(log(folder)) == 2
    monkeypatch.setattr(generation, "write_png", write)
    before = pictures(folder)
    with pytest.raises(InputError, match="--outdir"):
        generate(*argv, "--steps", 2, "--outdir", folder)
    with pytest.raises(InputError, match="--resume"):
        generate(*argv, "--seed", 1, "--resume")
    capsys.readouterr()
    assert generate(*argv, "--resume") == 0
    assert "resuming outputs/0001: 2 images" in capsys.readouterr().out
    after = pictures(folder)
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    assert output.read_job_hash(folder) is None
    with pytest.raises(InputError, match="--outdir"):
        generate(*argv, "--outdir", folder)
