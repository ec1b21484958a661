"""Several processes, as typed: the same run as one process, agreed stops, and no orphan."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.cli import parse
from tests import sessions as session
from tests.recipes.conftest import QUICK
from tests.recipes.test_finetune import command
from train import checkpoint
from train.config import ALIASES, CONFIGS, Config
from train.metrics import read_metrics
from train.run_folder import all_runs, newest_finished

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DEADLOCKED = 60  # seconds without half a second of computing
# Adam divides by the gradient's size: with its usual epsilon the sign of a gradient near 0 decides over a whole step
CALM = ["--optim.epsilon", "1e-3", "--logging.sample-ids", "true"]


def torchrun(*flags: str) -> list[str]:
    _, script, *rest = command(*flags)
    return [str(BIN / "torchrun"), "--nproc-per-node", "2", script, *rest]


def run(typed: list[str], cwd: Path) -> str:
    """stdout of a command that must succeed. If none of its processes computes, they wait for one another for ever."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(typed, cwd=cwd, stdout=out, stderr=err)
        spent, since = 0.0, time.monotonic()
        while process.poll() is None and time.monotonic() - since < DEADLOCKED:
            time.sleep(0.5)
            now = sum(map(cpu_seconds, children_of(process.pid)))
            if now > spent + 0.5:
                spent, since = now, time.monotonic()
        deadlocked = process.poll() is None
        for pid in [*children_of(process.pid), process.pid] if deadlocked else ():
            os.kill(pid, signal.SIGKILL)
        process.wait()
        out.seek(0)
        err.seek(0)
        words = err.read()[-3000:]
        assert not deadlocked, f"nothing has been computed for {DEADLOCKED} s:\n{words}"
        assert process.returncode == 0, words
        return out.read()


def cpu_seconds(pid: int) -> float:
    """That a process has computed so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"{step:06d}" / "weights.safetensors")


@pytest.fixture
def flags(tiny_model: Path, tiny_data: Path) -> list[str]:
    return ["--model", str(tiny_model), "--data", str(tiny_data), *QUICK, *CALM]


def sessions(*typed: list[str]) -> list[str]:
    """Two processes that train all of these, one after the other."""
    return [str(BIN / "torchrun"), "--nproc-per-node", "2", "-m", "tests.sessions", json.dumps(typed)]


def test_two_processes_are_the_run_that_one_process_is(flags: list[str], tmp_path: Path) -> None:
    """1 x batch 8 = 2 x batch 4; stopped and resumed it ends in the same bits; saving never deadlocks."""
    flags = [*flags, "--runs", str(tmp_path / "runs"), "--ema.decay", "0.9"]
    steps = ["--max-steps", "4"]
    argv = [*flags, *steps, "--batch-size", "8", "--run-name", "one"]
    assert session.run(parse(Config, argv, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES)) == 0
    two = [*flags, "--batch-size", "4", "--run-name", "two"]
    out = run(sessions([*two, "--max-steps", "2"], [*two, *steps], [*two, *steps, "--new"]), ROOT)
    assert "4 x 1 accumulated x 2 processes = 8 images a step" in out
    assert "0002-two after step 2" in out
    one_run, two_run, whole_run = all_runs(tmp_path / "runs")
    ours, theirs, whole = (
        [line for line in read_metrics(found.metrics) if "loss" in line] for found in (two_run, one_run, whole_run)
    )
    assert ours == whole
    assert [line["samples"] for line in ours] == [line["samples"] for line in theirs]
    assert all(len(line["samples"]) == 8 for line in ours)
    for key in ("loss", "gradient_norm", "learning_rate"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=1e-5)
    for file in (*checkpoint.CHECKPOINT_FILES, checkpoint.EMA_FILE):
        there, resumed, straight = (
            load_file(found.checkpoints / "000004" / file) for found in (one_run, two_run, whole_run)
        )
        assert resumed.keys() == straight.keys()
        assert all(torch.equal(resumed[name], straight[name]) for name in straight), file
        if file != checkpoint.CHECKPOINT_FILES[1]:
            assert max(float((there[name] - straight[name]).abs().max()) for name in there) < 1e-5


def begun(process: subprocess.Popen[str], runs: Path) -> None:
    """Wait until there is a checkpoint."""
    deadline = time.monotonic() + 240
    while not list(runs.glob("*/checkpoints/[0-9]*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def alive(pid: int) -> bool:
    """Whether it runs (a zombie does not)."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("accelerate", signal.SIGTERM),  # which it does not hand on: its child is left alone, as after SIGKILL
        ("torchrun", signal.SIGTERM),
        pytest.param("torchrun", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_launcher_that_is_told_to_stop_leaves_no_orphan_and_nothing_is_lost(
    flags: list[str], tmp_path: Path, launcher: str, number: signal.Signals
) -> None:
    endless = [*flags, "--max-steps", "100000"]
    typed = command(*endless, launcher=True) if launcher == "accelerate" else torchrun(*endless)
    process = subprocess.Popen(typed, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun(process, tmp_path / "runs")
    trainers = children_of(process.pid)
    assert len(trainers) == (1 if launcher == "accelerate" else 2)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=120)  # its children hold the same pipe: it ends with the last of them
    assert "stopped after step" in out, err
    deadline = time.monotonic() + 30
    while any(map(alive, trainers)):
        assert time.monotonic() < deadline, "an orphan goes on"
        time.sleep(0.1)
    (found,) = all_runs(tmp_path / "runs")
    assert newest_finished(tmp_path / "runs") is None
    last = max(int(path.name) for path in found.checkpoints.glob("[0-9]*"))
    assert f"stopped after step {last} of" in out
    assert json.loads((found.checkpoints / f"{last:06d}" / "state.json").read_text())["step"] == last


def test_a_launcher_that_dies_before_the_first_step_leaves_no_orphan_either(flags: list[str], tmp_path: Path) -> None:
    """Reading, planning and encoding take minutes with a real set: by then the parent is another one."""
    typed = command(*flags, "--max-steps", "100000", launcher=True)
    process = subprocess.Popen(typed, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (trainers := children_of(process.pid)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert not any(map(alive, trainers)) and "finished" not in out
    assert not list(tmp_path.glob("runs/*/checkpoints/[0-9]*"))
