"""How long people wait for start, push, pull and export, on a real server. Nothing else should be running.

python -m tests.benchmarks.annotation_speed [--count 650] [--size 512]

Wall time, and the processor time of this process and of the server: on a busy machine only the latter says something.
Lines with a limit are the promises; a line that breaks its promise ends with LATE, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from annotation import environment, project, server
from annotation.cli import run_export
from annotation.client import Client, Task, connect, tasks_by_sha256
from annotation.config import ExportOptions
from annotation.drafts import Draft, add_drafts, read_drafts
from annotation.images import ImageFile, Selection, select_images
from annotation.project import ROOT, Project
from annotation.pull import pull
from annotation.push import push
from data import sample_set

CHANGES = 10
COMMAND = [sys.executable, str(Path(__file__).parents[2] / "annotation" / "annotate.py")]


@dataclass
class Clock:
    """Prints how long each step took, and remembers which were late."""

    serving: psutil.Process | None = None
    late: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self, what: str, limit: float | None = None) -> Iterator[None]:
        wall, own, theirs = time.monotonic(), own_time(), spent(self.serving)
        yield
        seconds = time.monotonic() - wall
        mark = "" if limit is None else f"   limit {limit:g} s"
        if limit is not None and seconds > limit:
            self.late.append(what)
            mark += "  LATE"
        busy = f"processor {own_time() - own:6.2f} s here, {spent(self.serving) - theirs:6.2f} s in the server"
        print(f"{what:<56}{seconds:7.2f} s   {busy}{mark}", flush=True)


def own_time() -> float:
    """Processor seconds of this process and of the commands that it ran."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def spent(process: psutil.Process | None) -> float:
    times = process.cpu_times() if process else None
    return times.user + times.system if times else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=650)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    environment.ensure_environment()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["ATELIER_LABEL_STUDIO"] = str(environment.environment_folder().parent)
        os.environ["ATELIER_CACHE"] = str(Path(folder) / "cache")  # pictures that were never looked at before
        sample_set.write_sample_folder(Path("creatures"), count=options.count, size=options.size)
        Path("creatures/metadata.jsonl").rename("captions.jsonl")
        try:
            measure(clock, options.count, options.size)
        finally:
            server.stop_server()
    print("all within their limits" if not clock.late else f"late: {', '.join(clock.late)}")
    return 1 if clock.late else 0


def measure(clock: Clock, count: int, size: int) -> None:
    """Every step, in the order in which people meet them."""
    with clock("first start, from the migrated database"):
        server.start_server(port=0)
    server.stop_server()
    with clock("start", limit=5.0):
        running = server.start_server(port=0)
    clock.serving = psutil.Process(running.pid)
    with clock(f"look at {count} pictures of {size} pixels, first time"):
        taken = select_images(Path("creatures"))
    with clock("look at them again"):
        taken = select_images(Path("creatures"))
    with connect() as client:
        made = push_all(clock, client, taken)
        pull_all(clock, client, made, len(taken.samples))
    clock.serving = None  # the last command ends it
    as_commands(clock)


def push_all(clock: Clock, client: Client, taken: Selection) -> Project:
    """Captions, names and triage, with a draft of each caption; then once more."""
    made = project.new_project("creatures", project.LOCAL, taken.folder, sample_set.TYPES)
    pictures = {each.sha256: ImageFile(each.sha256, each.annotation.file_name, each.path) for each in taken.samples}
    made_up = {key: Draft(f"a draft of {each.file_name}", "benchmark-1", 0.5) for key, each in pictures.items()}
    add_drafts(ROOT / made.name, list(pictures.values()), made_up)
    drafts = read_drafts(ROOT / made.name)
    with clock("push to three screens, with drafts", limit=5.0):
        made = project.create_screens(client, made)
        done = push(client, made, taken.samples, taken.formats, drafts=drafts)
    project.save_project(made)
    assert done.created == dict.fromkeys(made.screens, len(pictures)) and done.drafted == len(pictures)
    with clock("push again"):
        done = push(client, project.create_screens(client, made), taken.samples, taken.formats, drafts=drafts)
    assert not any(done.created.values()) and done.drafted == 0, "a second push makes nothing"
    return made


def pull_all(clock: Clock, client: Client, made: Project, count: int) -> None:
    """Accept every draft, pull and export; then change a few answers and pull again."""
    number = made.screens["text"]
    every: object = {"all": True, "excluded": []}
    tasks, _ = tasks_by_sha256(client, number)
    last, *others = tasks.values()
    with clock("(accept every draft, in one request)"):
        client.sdk.actions.create(id="predictions_to_annotations", project=number, selected_items=every)  # type: ignore[arg-type]
    time.sleep(3)  # people do not answer everything in the same second, and a pull reads the last two once more
    change(client, last)
    with clock("pull everything, and export it", limit=5.0):
        done = pull(client, made, ROOT / made.name)
        assert done.new == count
        assert run_export(ExportOptions()) == 0
    for task in others[:CHANGES]:
        change(client, task)
    with clock(f"pull {CHANGES} changes", limit=1.5):
        done = pull(client, made, ROOT / made.name)
    assert (done.new, done.changed) == (0, CHANGES) and "text" not in done.read_whole


def change(client: Client, task: Task) -> None:
    """Write something else into the answer of a task."""
    item = {"id": "x", "from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": ["changed"]}}
    (answer,) = client.sdk.annotations.list(id=task.id)
    client.sdk.annotations.update(id=answer.id or 0, result=[item])  # type: ignore[arg-type]


def as_commands(clock: Clock) -> None:
    """What people type, with Python's own start in it."""
    fix = "fix --rename draft --to sketch --file 0000?.png --apply"
    for line in ("push", "pull", "status", "lint --leave-out neighbours --no-mark", fix, "stop"):
        with clock(f"annotate.py {line}"):
            tried = subprocess.run([*COMMAND, *line.split()], capture_output=True, text=True)
        assert tried.returncode == 0 or line.startswith("lint"), tried.stderr


if __name__ == "__main__":
    sys.exit(main())
