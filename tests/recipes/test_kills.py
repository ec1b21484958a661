"""Twenty-five kills in a row, at random moments of the real command, end in the weights of an undisturbed run."""

import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.recipes.test_finetune import QUICK, command
from tests.recipes.test_processes import weights_of
from train.report import read_metrics
from train.run_folder import all_runs

KILLS, STEPS = 25, 120
# every step is saved, so that each life gets further; the average and a small batch make saving most of the work
FLAGS = [*QUICK, "--batch-size", "2", "--checkpoints.every", "1", "--ema.decay", "0.9", "--max-steps", str(STEPS)]


def lives(typed: list[str], cwd: Path, after: float) -> bool:
    """Whether the command ended by itself before it was killed, `after` seconds from its first sign of training."""
    process = subprocess.Popen(typed, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # the bar of the training; until then only libraries are loaded
        if line.startswith("training:"):
            break
    deadline = time.monotonic() + after
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    ended = process.poll() is not None
    process.kill()
    process.stderr.close()
    process.wait()
    return ended


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_five_kills_in_a_row(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    draw = random.Random(25)
    typed = [*command("--model", str(tiny_model), "--data", str(tiny_data), *FLAGS), "--previews.every", "0"]
    killed = [*typed, "--run-name", "killed"]
    count = 0
    while count < KILLS:
        assert not lives(killed, tmp_path, draw.uniform(0.0, 1.5)), f"it finished after {count} kills: too few steps"
        count += 1
    subprocess.run(killed, cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([*typed, "--new", "--run-name", "whole"], cwd=tmp_path, check=True, capture_output=True)
    first, second = all_runs(tmp_path / "runs")
    assert first.done == second.done == STEPS
    ours, theirs = weights_of(first.path, STEPS), weights_of(second.path, STEPS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [[line["loss"] for line in read_metrics(run.metrics) if "loss" in line] for run in (first, second)]
    assert losses[0] == losses[1]
