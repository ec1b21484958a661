"""metrics.jsonl survives a kill and a resume; trackers get the same numbers; losses by bin of timesteps."""

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from data.errors import InputError
from train import metrics
from train.config import Config
from train.metrics import MetricsLogger, RunLogger, keep_until, numbers, open_logger, read_metrics


def logger(folder: Path, start: int = 0, stop: int = 4, **options: Any) -> RunLogger:
    return RunLogger(folder, start=start, stop=stop, **{"tensorboard": False, **options})


def test_later_lines_and_a_torn_one_are_dropped(tmp_path: Path) -> None:
    whole = [json.dumps({"step": step, "loss": step / 8}) + "\n" for step in (1, 2, 3)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join([*whole, '{"step": 4, "lo']))
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    keep_until(path, 2)
    assert path.read_text() == whole[0] + whole[1]
    keep_until(path, 0)
    assert path.read_text() == ""


def test_no_metrics_yet(tmp_path: Path) -> None:
    keep_until(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_numbers_get_slashed_names() -> None:
    line = {
        "step": 8,
        "loss": 0.5,
        "gradient_norm": None,
        "overflow": True,
        "validation": {"held-out": 1, "train": 0.25, "note": "text"},
        "change": {"train": {"mean": -0.5, "low": -1.0, "high": 0.0}},
        "per_picture": {"train": [1.0, 2.0]},
    }
    assert list(numbers(line)) == [
        ("loss", 0.5),
        ("validation/held-out", 1.0),
        ("validation/train", 0.25),
        ("change/train/mean", -0.5),
        ("change/train/low", -1.0),
        ("change/train/high", 0.0),
    ]


def test_a_resumed_report_goes_on_where_the_checkpoint_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = logger(tmp_path)
    first.write([{"step": step, "loss": 1.0} for step in (1, 2, 3)])  # no close: the process is killed here
    second = logger(tmp_path, start=2)
    second.write([{"step": 3, "loss": 2.0}])
    second.advance(1, loss="2.0000")
    second.say("a word")
    second.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]
    first.close()
    assert "a word" in capsys.readouterr().out
    assert not (tmp_path / "tensorboard").exists()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """The system's own limit on the size of files: what still fits is written, the rest is an error."""
    report = logger(tmp_path)
    report.write([{"step": 1, "loss": 0.5}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (report.metrics.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
            report.write([{"step": 2, "loss": 0.25}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    report.close()
    assert report.metrics.read_text().endswith('\n{"ste')
    assert read_metrics(report.metrics) == [{"step": 1, "loss": 0.5}]


def test_infinities_become_null(tmp_path: Path) -> None:
    """JSON has none; other readers than Python's refuse the whole file."""
    report = logger(tmp_path)
    report.write([{"step": 1, "loss": float("nan"), "change": {"low": float("-inf"), "all": [float("inf"), 1.0]}}])
    report.close()

    def refuse(word: str) -> float:
        raise AssertionError(word)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "change": {"low": None, "all": [None, 1.0]}}


def test_tensorboard_has_the_same_numbers_and_forgets_the_steps_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Accelerator(cpu=True)  # whose state accelerate's trackers ask for before they log a word
    Image.new("RGB", (3, 2), "red").save(tmp_path / "strip.png")
    for start, value in ((0, 1.0), (2, 2.0)):
        report = logger(tmp_path, start, tensorboard=True)
        lines = [{"step": step, "loss": value, "validation": {"train": value / 8}} for step in (start + 1, start + 2)]
        report.write(lines)
        if start == 0:
            report.write([{"step": 3, "loss": -1.0}])
        report.log_image("previews", start + 2, tmp_path / "strip.png")
        report.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert [(event.step, event.value) for event in board.Scalars("loss")] == expected
    found = [(event.step, 8 * event.value) for event in board.Scalars("validation/train")]
    assert found == expected
    assert [(event.step, event.width, event.height) for event in board.Images("previews")] == [(2, 3, 2), (4, 3, 2)]


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = MetricsLogger()
    silent.write([{"step": 1}])
    silent.log_image("previews", 0, tmp_path / "none.png")
    silent.advance(1, loss="1")
    silent.say("a word")
    silent.close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


# ---- Weights & Biases, against a stand-in that records what the real package would be told


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
def Image(image):
    return ("image", image.shape)
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


def test_wandb_is_told_everything(wandb: Path, tmp_path: Path) -> None:
    Accelerator(cpu=True)
    metrics.check_wandb_installed()
    folder = tmp_path / "0007-lora"
    folder.mkdir()
    config = Config.model_validate(
        {"max_steps": 2, "logging": {"wandb": True, "wandb_project": "mine", "tensorboard": False}}
    )
    report = open_logger(config, folder, "0123456789abcdef", 0)
    report.write([{"step": 1, "loss": 0.5, "gap": {"mean": 0.25}, "verdict": {"word": "learns"}}])
    Image.new("RGB", (3, 2)).save(tmp_path / "strip.png")
    report.log_image("previews", 1, tmp_path / "strip.png")
    report.close()
    unique = {"id": "0007-lora-01234567", "name": "0007-lora", "resume": "allow", "dir": str(folder)}
    assert [json.loads(line) for line in wandb.read_text().splitlines()] == [
        ["init", "mine", unique],
        ["config", config.model_dump(mode="json")],
        ["log", 1, {"loss": 0.5, "gap/mean": 0.25}],
        ["log", 1, ["previews"]],
        ["finish"],
    ]


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        metrics.check_wandb_installed()
    assert error.value.where == "--logging.wandb" and error.value.fix


# ---- losses by bin of timesteps


def test_every_sample_falls_into_its_bin() -> None:
    t = torch.tensor([0, 249, 250, 499, 500, 999])
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    found = metrics.bin_losses(losses, t, 1000)
    assert found.tolist() == [[3.0, 12.0, 16.0, 32.0], [2.0, 2.0, 1.0, 1.0]]


@pytest.mark.parametrize("steps", [4, 10, 1000])
def test_bins_part_the_timesteps_as_their_names_say(steps: int) -> None:
    t = torch.arange(steps)
    sums, counts = metrics.bin_losses(torch.ones(steps), t, steps).tolist()
    assert sum(counts) == steps and sums == counts
    names = metrics.mean_by_bin(sums, counts, steps)
    for index, (name, mean) in enumerate(names.items()):
        first, last = map(int, name.split("-"))
        assert mean == 1.0
        assert metrics.bin_losses(torch.ones(steps), t, steps)[1, index] == last - first + 1
        inside = t[first : last + 1]
        assert metrics.bin_losses(torch.ones(len(inside)), inside, steps)[1, index] == len(inside)


def test_an_empty_bin_is_null() -> None:
    assert metrics.mean_by_bin([2.0, 0.0, 0.0, 1.0], [4.0, 0.0, 0.0, 1.0], 1000) == {
        "0-249": 0.5,
        "250-499": None,
        "500-749": None,
        "750-999": 1.0,
    }


def test_half_precision_losses_are_added_in_float32() -> None:
    losses = torch.full((4096,), 1.0, dtype=torch.float16)
    found = metrics.bin_losses(losses, torch.zeros(4096, dtype=torch.long), 1000)
    assert found[0, 0] == 4096.0
