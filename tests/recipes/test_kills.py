"""Twenty-five kills in a row, at random moments of the real command, end in the weights of an undisturbed run."""

import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.recipes.conftest import QUICK
from tests.recipes.test_finetune import command
from tests.recipes.test_processes import weights_of
from train import checkpoint
from train.metrics import read_metrics
from train.run_folder import all_runs

KILLS = 25
# every step is saved, so that each life gets further; the average and small batches make saving most of the work
FLAGS = [*QUICK, "--batch-size", "1", "--accumulate", "2", "--checkpoints.every", "1", "--ema.decay", "0.9"]
ENDLESS = ["--max-steps", "1000000"]  # no life ends by itself, however fast the machine; the rate is constant


def lives(typed: list[str], cwd: Path, after: float) -> None:
    """Start the command and kill it, `after` seconds from its first sign of training."""
    process = subprocess.Popen(typed, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # the bar of the training; until then only libraries are loaded
        if line.startswith("training:"):
            break
    time.sleep(after)
    assert process.poll() is None, f"it ended by itself: {process.stderr.read()[-2000:]}"
    process.kill()
    process.stderr.close()
    process.wait()


def half_written(checkpoints: Path) -> int:
    """Folders that a kill has left in the middle of a save."""
    return len([path for pattern in (".*.part", ".*.old") for path in checkpoints.glob(pattern)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_five_kills_in_a_row(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    draw = random.Random(25)
    typed = [*command("--model", str(tiny_model), "--data", str(tiny_data), *FLAGS), "--previews.every", "0"]
    reached: list[int] = []
    torn = 0
    for _ in range(KILLS):
        lives([*typed, *ENDLESS, "--run-name", "killed"], tmp_path, draw.uniform(0.0, 1.5))
        (run,) = all_runs(tmp_path / "runs")
        reached.append(max((int(path.name) for path in checkpoint.list_checkpoints(run.checkpoints)), default=0))
        torn += half_written(run.checkpoints)
    print(f"steps reached {reached}, {torn} saves torn")
    assert reached == sorted(reached) and len(set(reached)) > KILLS // 2, "most lives got further"
    assert torn > 0, "no kill came in the middle of a save"
    steps = reached[-1] + 3
    subprocess.run([*typed, "--max-steps", str(steps)], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([*typed, "--max-steps", str(steps), "--new"], cwd=tmp_path, check=True, capture_output=True)
    first, second = all_runs(tmp_path / "runs")
    assert first.done == second.done == steps and first.path.name == "0001-killed"
    ours, theirs = weights_of(first.path, steps), weights_of(second.path, steps)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [[line["loss"] for line in read_metrics(run.metrics) if "loss" in line] for run in (first, second)]
    assert losses[0] == losses[1] and len(losses[0]) == steps
