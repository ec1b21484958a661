"""metrics.jsonl survives a kill and a resume; TensorBoard gets the same numbers."""

import json
import resource
from pathlib import Path

import pytest

from data.errors import InputError
from train.metrics import MetricsLogger, RunLogger, keep_until, numbers, read_metrics


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines))
    return path


def test_later_lines_and_a_torn_one_are_dropped(tmp_path: Path) -> None:
    whole = [json.dumps({"step": step, "loss": step / 8}) + "\n" for step in (1, 2, 3)]
    path = write_lines(tmp_path / "metrics.jsonl", *whole, '{"step": 4, "lo')
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
    assert numbers(line) == [
        ("loss", 0.5),
        ("validation/held-out", 1.0),
        ("validation/train", 0.25),
        ("change/train/mean", -0.5),
        ("change/train/low", -1.0),
        ("change/train/high", 0.0),
    ]


def test_a_resumed_report_goes_on_where_the_checkpoint_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = RunLogger(tmp_path, start=0, stop=4, tensorboard=False)
    first.write([{"step": step, "loss": 1.0} for step in (1, 2, 3)])  # no close: the process is killed here
    second = RunLogger(tmp_path, start=2, stop=4, tensorboard=False)
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


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    report = RunLogger(tmp_path, start=0, stop=4, tensorboard=False)
    report.write([{"step": 1, "loss": 1.0}])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    report.close()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """The system's own limit on the size of files: what still fits is written, the rest is an error."""
    report = RunLogger(tmp_path, start=0, stop=1, tensorboard=False)
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
    report = RunLogger(tmp_path, start=0, stop=4, tensorboard=False)
    report.write([{"step": 1, "loss": float("nan"), "change": {"low": float("-inf"), "all": [float("inf"), 1.0]}}])
    report.close()

    def refuse(word: str) -> float:
        raise AssertionError(word)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "change": {"low": None, "all": [None, 1.0]}}


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = RunLogger(tmp_path, start=0, stop=2, tensorboard=True)
    report.write([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "validation": {"train": 0.125}}])
    report.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(event.step, event.value) for event in board.Scalars("validation/train")] == [(2, 0.125)]


def test_tensorboard_forgets_the_steps_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, value in ((0, 1.0), (2, 2.0)):
        report = RunLogger(tmp_path, start=start, stop=4, tensorboard=True)
        report.write([{"step": step, "loss": value} for step in (start + 1, start + 2)])
        if start == 0:
            report.write([{"step": 3, "loss": -1.0}])
        report.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = MetricsLogger()
    silent.write([{"step": 1}])
    silent.advance(1, loss="1")
    silent.say("a word")
    silent.close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
