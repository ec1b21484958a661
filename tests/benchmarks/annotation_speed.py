"""How long people wait for start, push and pull, on a real server. Nothing else should be running.

python -m tests.benchmarks.annotation_speed [--count 650] [--size 512]

Wall time, and the processor time of this process and of the server: on a busy machine only the latter says something.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from annotation import environment, project, server
from annotation.client import Client, connect
from annotation.intake import take_in
from annotation.pull import pull
from annotation.push import push
from annotation.server import Server
from annotation.tasks import tasks_by_picture
from data.pocket import creatures

CHANGES = 10


@dataclass(frozen=True)
class Offered:
    """A draft."""

    text: str
    source: str = "benchmark-1"
    score: float = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=650)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    environment.ready()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.count, options.size)


def measure(folder: Path, count: int, size: int) -> None:
    """Every number of the issue, in the order in which people meet them."""
    creatures.write(folder / "pictures", count=count, size=size)
    with timed("first start, from the migrated database"):
        running = server.start(folder / ".server", port=0)
    try:
        server.stop(folder / ".server")
        with timed("start", limit=5.0):
            running = server.start(folder / ".server", port=0)
        with timed(f"look at {count} pictures of {size} pixels for the first time"):
            taken = take_in(folder / "pictures")
        with timed("look at them again"):
            taken = take_in(folder / "pictures")
        with connect(folder=folder / ".server") as client:
            pushes_and_pulls(client, running, folder, taken.pictures, taken.formats)
    finally:
        server.stop(folder / ".server")


def pushes_and_pulls(client: Client, running: Server, folder: Path, pictures: list, formats: dict[str, str]) -> None:
    """Push with drafts on all screens and on the caption screen alone, answer everything, pull, change a few, pull."""
    drafts = {each.sha256: Offered(f"a draft of {each.annotation.file_name}") for each in pictures}
    with timed("push to all three screens, with drafts", running):
        made = project.make_screens(client, project.new("three", project.OWN, folder, creatures.TYPES))
        push(client, made, pictures, formats, drafts=drafts)
    with timed("push again", running):
        done = push(client, made, pictures, formats, drafts=drafts)
    assert not any(done.created.values())
    one = project.new("one", project.OWN, folder, ())
    one = project.make_screens(client, one)
    only = project.Project(**{**vars(one), "screens": {"text": one.screens["text"]}})
    with timed("push to the caption screen, with drafts", running, limit=5.0):
        push(client, only, pictures, formats, drafts=drafts)
    tasks, _ = tasks_by_picture(client, only.screens["text"])
    with timed("answer everything through the API, one by one", running):
        numbers = [answer(client, task.id, "an answer") for task in tasks.values()]
    with timed("pull everything", running, limit=5.0):
        done = pull(client, only, folder / "work")
    assert done.new == len(pictures)
    for number in numbers[:CHANGES]:
        client.sdk.annotations.update(id=number, result=[item("another answer")])  # type: ignore[arg-type]
    with timed(f"pull {CHANGES} changes", running, limit=1.5):
        done = pull(client, only, folder / "work")
    assert (done.new, done.changed, done.everything) == (0, CHANGES, [])


def item(words: str) -> dict[str, object]:
    return {"id": "x", "from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": [words]}}


def answer(client: Client, task: int, words: str) -> int:
    made = client.sdk.annotations.create(id=task, lead_time=5.0, result=[item(words)])  # type: ignore[arg-type]
    assert made.id is not None
    return made.id


@contextmanager
def timed(what: str, running: Server | None = None, *, limit: float | None = None) -> Iterator[None]:
    """Print how long a block took."""
    serving = psutil.Process(running.pid) if running else None
    wall, own, theirs = time.monotonic(), time.process_time(), spent(serving)
    yield
    seconds = time.monotonic() - wall
    mark = "" if limit is None else f"  (limit {limit:g} s)"
    busy = f"processor {time.process_time() - own:5.2f} s here, {spent(serving) - theirs:5.2f} s in the server"
    print(f"{what:<62}{seconds:7.2f} s   {busy}{mark}", flush=True)


def spent(process: psutil.Process | None) -> float:
    times = process.cpu_times() if process else None
    return times.user + times.system if times else 0.0


if __name__ == "__main__":
    main()
