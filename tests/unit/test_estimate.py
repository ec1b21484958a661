"""What a run will take: time, disk space and free memory, and the lines about them."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.config import Config
from train.estimate import Disk, Duration, Fits, MemoryEstimate, RunEstimate, count_due
from train.plan import disk_lines, format_bytes, format_flops, format_seconds, memory_lines
from train.run_folder import Run

GIB = 2**30


@pytest.mark.parametrize("stop", [1, 7, 10, 20])
@pytest.mark.parametrize("every", [1, 3, 10, 50])
def test_how_often_something_is_due(stop: int, every: int) -> None:
    for done in range(stop + 1):
        due = [step for step in range(done + 1, stop + 1) if step % every == 0 or step == stop]
        assert count_due(done, stop, every) == len(due)


def test_durations_disk_and_memory_as_text() -> None:
    parts = {"training": 1800, "validation": 120, "checkpoints": 0.2, "encoding": 80, "previews": 60}
    duration = Duration(0.5, "after a 3-step probe", 8.0, **parts)
    assert duration.total == pytest.approx(2060.2)
    disk = Disk(checkpoint=GIB, kept=2, export=GIB // 2, free=4 * GIB, spare=1)
    assert disk.total == 3.5 * GIB
    assert len(disk_lines(disk)) == 1
    memory = MemoryEstimate({"weights": GIB}, {"training": GIB}, None)
    assert len(memory_lines(memory, Fits(GIB, None, []))) == len(memory_lines(memory, Fits(GIB, GIB, []))) == 2
    line = memory_lines(memory, Fits(2 * GIB, GIB, ["--batch-size 1", "--optim.kind adamw-8bit"]))[-1]
    assert line.startswith("warning") and "2.00 GiB" in line and "1.00 GiB" in line
    assert line.endswith("would fit with --batch-size 1 or with --optim.kind adamw-8bit")
    assert [format_seconds(s) for s in (3, 89, 91, 7200)] == ["3 s", "89 s", "1.5 min", "2.0 h"]
    assert [format_bytes(b) for b in (2**20, GIB)] == ["1.0 MiB", "1.00 GiB"]
    assert [format_flops(c) for c in (1.62e9, 2.407e12)] == ["1.62 G", "2.41 T"]


@pytest.mark.parametrize(("free", "spare", "helps"), [(3, 1, "--checkpoints.keep 1, or with "), (3, 0, ""), (2, 1, "")])
def test_a_disk_that_is_too_small_gives_a_warning(free: int, spare: int, helps: str) -> None:
    line = disk_lines(Disk(GIB, 2, GIB // 2, free=free * GIB, spare=spare))[-1]
    assert line.startswith("warning") and "3.50 GiB" in line and f"{free}.00 GiB" in line
    assert line.endswith(f"would fit with {helps}--runs on a larger one")


@pytest.mark.parametrize("earlier", [False, True])
def test_what_is_free_is_asked_where_the_run_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """A run's own files are its own room; a folder that is not there yet is made on the disk of the one above it."""
    run = tmp_path / "runs" / "0001"
    if earlier:
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "weights").write_bytes(bytes(100))
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=1000)

    monkeypatch.setattr("shutil.disk_usage", usage)
    config = Config(runs=tmp_path / "runs" / "of" / "mine")
    nothing: Any = None
    estimate = RunEstimate(config, nothing, nothing, nothing, nothing, earlier=Run(run) if earlier else None)
    vars(estimate)["shapes"] = []
    monkeypatch.setattr(RunEstimate, "export_bytes", lambda self: 0)
    assert estimate.disk().free == (1100 if earlier else 1000)
    assert asked == [run if earlier else tmp_path]


def test_a_resumed_run_tells_its_speed_from_its_own_steps(tmp_path: Path) -> None:
    """No probe: the earlier session's images a second, if it ran on such a device."""
    (tmp_path / "plan.json").write_text(json.dumps({"device": "CPU"}))
    lines = [{"step": step, "images_per_second": speed} for step, speed in ((1, None), (2, 4.0), (3, 8.0), (4, 9.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 5}]))
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0)
    nothing: Any = None
    plain = RunEstimate(Config(batch_size=16), accelerator, nothing, nothing, nothing)
    assert replace(plain, earlier=Run(tmp_path)).timing == (2.0, "as in the steps before")
    (tmp_path / "plan.json").write_text(json.dumps({"device": "NVIDIA A10"}))
    assert replace(plain, earlier=Run(tmp_path)).seconds_before() is None
    assert plain.seconds_before() is None
