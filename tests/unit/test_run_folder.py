"""Run folders are numbered, found again by their settings, held by one trainer, and `done` comes last."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data.errors import InputError
from train import run_folder
from train.run_folder import Run, all_runs, create_run, find_run, library_versions, newest_finished


def new(runs: Path, identity: str, name: str = "lora-r16") -> Run:
    return create_run(runs, name, {"config.yaml": "seed: 1\n", "data.json": json.dumps({"identity": identity})})


def test_numbers_go_up_and_a_gap_is_not_filled(tmp_path: Path) -> None:
    runs = tmp_path / "deep" / "runs"
    assert [new(runs, "a").path.name, new(runs, "b", "full").path.name] == ["0001-lora-r16", "0002-full"]
    (runs / "0041-by-hand").mkdir()
    assert new(runs, "c").path.name == "0042-lora-r16"
    (runs / "9999-by-hand").mkdir()
    assert new(runs, "d").path.name == "10000-lora-r16"
    names = [run.path.name for run in all_runs(runs)]
    assert names == ["0001-lora-r16", "0002-full", "0041-by-hand", "0042-lora-r16", "9999-by-hand", "10000-lora-r16"]


def test_other_folders_are_no_runs(tmp_path: Path) -> None:
    for name in ("notes", "12-short", "x0001-a", ".0001-a", "0001"):
        (tmp_path / name).mkdir()
    assert all_runs(tmp_path) == []
    assert all_runs(tmp_path / "missing") == []
    assert new(tmp_path, "a").path.name == "0001-lora-r16"


def test_a_new_folder_has_its_files_and_leaves_nothing_beside(tmp_path: Path) -> None:
    run = create_run(tmp_path, "lora", {"config.yaml": "caption: pokémon\n", "data.json": "{}"})
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "data.json"]
    assert (run.path / "config.yaml").read_text("utf-8") == "caption: pokémon\n"
    assert {path.name for path in tmp_path.iterdir()} == {"0001-lora", ".lock"}


def test_a_run_is_found_by_its_identity(tmp_path: Path) -> None:
    first, _, third = new(tmp_path, "a"), new(tmp_path, "b"), new(tmp_path, "a")
    (tmp_path / "0009-torn").mkdir()
    (tmp_path / "0009-torn" / "data.json").write_text('{"identity": "a')
    assert find_run(tmp_path, "a") == third
    assert find_run(tmp_path, "c") is None
    assert find_run(tmp_path / "missing", "a") is None
    assert first.identity == "a"
    assert Run(tmp_path / "0009-torn").identity is None


def test_the_newest_finished_run(tmp_path: Path) -> None:
    assert newest_finished(tmp_path) is None
    first, second, third = new(tmp_path, "a"), new(tmp_path, "b"), new(tmp_path, "c")
    first.finish(10)
    second.finish(20)
    assert newest_finished(tmp_path) == second.path
    assert (first.done, second.done, third.done) == (10, 20, None)
    second.reopen()
    assert second.done is None
    assert newest_finished(tmp_path) == first.path
    second.reopen()  # an unfinished one stays as it is
    second.finish(30)
    assert second.done == 30


def test_finishing_writes_one_whole_file(tmp_path: Path) -> None:
    run = new(tmp_path, "a")
    run.finish(7)
    assert json.loads((run.path / "done").read_text()) == {"steps": 7}
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "data.json", "done"}


@pytest.mark.parametrize("names", [["same", "same"], ["one", "two"]])
def test_two_at_once_get_numbers_of_their_own(names: list[str], tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    def make(name: str) -> None:
        barrier.wait()
        for _ in range(8):
            new(tmp_path, "a", name)

    threads = [threading.Thread(target=make, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(run.path.name[:4]) for run in all_runs(tmp_path)] == list(range(1, 17))
    assert all(run.identity == "a" for run in all_runs(tmp_path))


def test_runs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match=r"--runs .*runs: cannot be written \("):
        new(tmp_path / "runs", "a")


def test_a_name_too_long_for_the_disk_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written \(File name too long\)"):
        new(tmp_path, "a", "n" * 300)
    assert all_runs(tmp_path) == []


def test_one_trainer_at_a_time(tmp_path: Path) -> None:
    run = new(tmp_path, "a")
    with (
        run.lock(),
        pytest.raises(InputError, match=r"0001-lora-r16: another process is training this run\. Wait"),
        run.lock(),
    ):
        raise AssertionError("two trainers hold one folder")
    with run.lock():  # let go, it can be taken again
        pass


def test_what_goes_wrong_inside_is_not_taken_for_a_held_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), new(tmp_path, "a").lock():
        raise BlockingIOError("a full pipe")


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_trainer_holds_nothing(tmp_path: Path) -> None:
    run = new(tmp_path, "a")
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path / ".lock")], stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match="another process"), run.lock():
            raise AssertionError("two processes hold one folder")
        os.kill(other.pid, signal.SIGKILL)
    with run.lock():
        pass


def test_versions_name_what_results_depend_on() -> None:
    found = library_versions()
    assert {"atelier", "python", "machine", *run_folder.LIBRARIES} == found.keys()
    assert found["torch"][0].isdigit()
