"""Weights & Biases through accelerate, against a stand-in that records what the real package would be told."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image

from data.errors import InputError
from train import metrics
from train.metrics import MetricsLogger, RunLogger, WeightsAndBiases, check_wandb_installed

STAND_IN = """
import json, os
def note(*what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(what) + "\\n")
class Run:
    def log(self, values, step=None, **more):
        note("log", step, values if all(isinstance(v, float) for v in values.values()) else list(values))
    def finish(self):
        note("finish")
class Config:
    def update(self, values, allow_val_change):
        note("config", values)
config = Config()
def init(project, **settings):
    note("init", project, settings)
    return Run()
def Image(picture):
    return ("picture", picture.size)
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of that name, and the file it writes its notes to."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.jsonl"))
    before = sys.modules.pop("wandb", None)
    yield tmp_path / "notes.jsonl"
    sys.modules.pop("wandb", None)
    if before is not None:
        sys.modules["wandb"] = before


def test_the_run_is_told_everything(wandb: Path, tmp_path: Path) -> None:
    Accelerator(cpu=True)  # whose state accelerate's trackers ask for before they log a word
    check_wandb_installed()
    board = WeightsAndBiases("my project", "0007-lora", "0123456789abcdef", {"seed": 1}, tmp_path)
    report = RunLogger(tmp_path, start=0, stop=2, tensorboard=False, trackers=[board])
    report.write([{"step": 1, "loss": 0.5, "gap": {"mean": 0.25}, "verdict": {"word": "learns"}}])
    Image.new("RGB", (3, 2)).save(tmp_path / "strip.png")
    report.log_image("previews", 1, tmp_path / "strip.png")
    report.close()
    unique = {"id": "0007-lora-01234567", "name": "0007-lora", "resume": "allow", "dir": str(tmp_path)}
    assert [json.loads(line) for line in wandb.read_text().splitlines()] == [
        ["init", "my project", unique],
        ["config", {"seed": 1}],
        ["log", 1, {"loss": 0.5, "gap/mean": 0.25}],
        ["log", 1, ["previews"]],
        ["finish"],
    ]


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        check_wandb_installed()
    assert str(caught.value) == "--logging.wandb: Weights & Biases is not installed. pip install wandb"


def test_tensorboard_shows_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (3, 2), "red").save(tmp_path / "strip.png")
    report = RunLogger(tmp_path, start=0, stop=2, tensorboard=True)
    report.log_image("previews", 2, tmp_path / "strip.png")
    report.close()
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("previews")
    assert (event.step, event.width, event.height) == (2, 3, 2)


def test_other_processes_show_nothing(tmp_path: Path) -> None:
    MetricsLogger().log_image("previews", 0, tmp_path / "none.png")
