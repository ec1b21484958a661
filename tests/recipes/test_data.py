"""finetune.py on several folders, wherever the encoded pictures live; and how long a step waits for its batch."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.cli import parse
from tests import sessions
from train import trainer
from train.config import ALIASES, CONFIGS, Config
from train.metrics import read_metrics
from train.run_folder import all_runs

QUICK = [
    *("--preserve.share", "0"),
    *("--pictures.size", "32", "--batch-size", "4", "--max-steps", "5", "--validation.every", "5", "--threads", "1"),
    *("--validation.pictures", "2", "--validation.timesteps", "2", "--optim.schedule", "constant"),
    *("--no-probe", "--adapter.targets", "attention"),
]


def finetune(*flags: str) -> int:
    return sessions.run(parse(Config, flags, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES))


def test_two_folders_from_memory_and_from_the_disk(
    tmp_path: Path,
    tiny_model: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same weights bit for bit; names apart; the plan says how often each folder is seen."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_data, "again")
    data = ["--data", str(tiny_data), "--data", "again=0.5", "--model", str(tiny_model), "--pictures.flip", *QUICK]
    assert finetune(*data, "--pictures.keep", "memory") == 0
    out = capsys.readouterr().out
    assert finetune(*data, "--pictures.keep", "disk", "--new") == 0
    one, other = all_runs(Path("runs"))
    weights = [load_file(run.export / "lora.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    losses = [[line["loss"] for line in read_metrics(run.metrics) if "loss" in line] for run in (one, other)]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    plan, facts = one.facts("plan.json"), one.facts("data.json")
    assert [share["weight"] for share in facts["folders"]] == [1.0, 0.5]
    assert {name.partition("/")[0] for name in facts["train"]} == {tiny_data.name, "again"}
    seen = {use["folder"]: use["times"] for use in plan["folders"]}
    assert seen[str(tiny_data)] == pytest.approx(2 * seen["again"])
    assert sum(use["times"] * use["training"] for use in plan["folders"]) == pytest.approx(5 * 4)
    assert "folder     again: " in out and "12 images are in more than one folder" in out
    assert "bucket     32x32: " in out
    assert finetune(*data) == 0
    assert "nothing to do" in capsys.readouterr().out, "where the pictures are kept makes no other run"


@pytest.mark.slow
def test_a_step_waits_under_two_percent_for_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded base as shipped; a ratio within one run, so a busy machine does not matter."""
    original: Callable[..., None] = trainer.train_step
    steps: list[tuple[float, float]] = []

    def timed(state: Any, task: Any, batches: Iterator[Any], window: Any) -> None:
        start = time.perf_counter()
        original(state, task, batches, window)
        steps.append((time.perf_counter() - start, window.waits[-1]))

    monkeypatch.setattr(trainer, "train_step", timed)
    assert finetune("--max-steps", "20", "--runs", str(tmp_path), "--validation.pictures", "2", "--threads", "1") == 0
    whole, waiting = (sum(column) for column in zip(*steps[1:], strict=True))
    assert waiting < 0.02 * whole, f"{waiting:.2f} s of {whole:.2f} s"
