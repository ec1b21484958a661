"""kill -9 of client and server, at every stage of push and pull: the same command then finishes, nothing twice or lost.

The fast tests kill 20 times; the slow one goes on for longer, with a server that is killed under people's hands.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from annotation import ports, project, pull, server
from annotation.client import Client, connect
from annotation.intake import Intake
from annotation.project import Project
from annotation.push import push
from annotation.records import read_history, standing
from annotation.tasks import listed
from data.errors import InputError
from tests.servers.project.conftest import COUNT, Made, Offered, answer

pytestmark = pytest.mark.servers
CLIENT_KILLS = 16
SERVER_KILLS = 4
MORE_KILLS = 12


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several requests to be killed between."""
    monkeypatch.setattr("annotation.push.BATCH", 3)
    monkeypatch.setattr("annotation.client.PAUSES", (0.1,))


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; returns its id. It ends with code 0 if all went well."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def killed_after(child: int, seconds: float) -> bool:
    """Kill the child after so long; False if it had ended before."""
    time.sleep(seconds)
    ended, _ = os.waitpid(child, os.WNOHANG)
    if ended:
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def check_tasks(client: Client, found: Project) -> None:
    """Every picture has one task on every screen, with one draft where there is a box, and one storage row."""
    for screen, number in found.screens.items():
        tasks = list(listed(client, number))
        assert len(tasks) == len({task.sha256 for task in tasks}) == COUNT, screen
        assert {task.drafts for task in tasks} == {0 if screen == "triage" else 1}, screen
        assert len(client.sdk.import_storage.local.list(project=number)) == 1
    titles = [each["title"] for each in project.listed(client)]
    assert all(titles.count(found.title(screen)) == 1 for screen in found.screens)


def test_killed_pushes_are_finished_by_the_next(label_studio: server.Server, client: Client, taken: Intake) -> None:
    """Each push is killed a little later than the one before, so that all stages are hit."""
    drafts = {each.sha256: Offered("a draft") for each in taken.pictures}

    def work(new: Project) -> Project:
        with connect(folder=label_studio.folder) as own:
            made = project.make_screens(own, new)
            push(own, made, taken.pictures, taken.formats, drafts=drafts)
            return made

    new = project.new("measured", project.OWN, taken.folder, ("water",))
    begun = time.monotonic()
    work(new)
    whole = time.monotonic() - begun
    killed = 0
    for round_, kills in enumerate((CLIENT_KILLS // 2, CLIENT_KILLS // 4)):
        new = project.new(f"killed {round_}", project.OWN, taken.folder, ("water",))
        for kill in range(kills):
            killed += killed_after(in_child(lambda new=new: work(new)), whole * (kill + 0.5) / kills)
        check_tasks(client, work(new))
    assert killed >= CLIENT_KILLS // 4, "hardly a push was caught at work"


def test_killed_pulls_are_finished_by_the_next(
    label_studio: server.Server, client: Client, taken: Intake, made: Made, tmp_path: Path
) -> None:
    found = made(types=())
    push(client, found, taken.pictures, taken.formats)
    tasks = list(listed(client, found.screens["text"]))
    given = {answer(client, task, f"words {task.id}") for task in tasks}

    def work() -> None:
        with connect(folder=label_studio.folder) as own:
            pull.pull(own, found, tmp_path)

    begun = time.monotonic()
    pull.pull(client, found, tmp_path / "measured")
    whole = time.monotonic() - begun
    for kill in range(CLIENT_KILLS // 4):
        killed_after(in_child(work), whole * (kill + 0.5) / (CLIENT_KILLS // 4))
    work()
    history = read_history(tmp_path)
    assert {record.annotation for record in history} == given
    assert len(history) == len(given), "an answer was pulled twice"


@contextmanager
def own_server(folder: Path) -> Iterator[Callable[[], server.Server]]:
    """Something that starts the same server again and again."""
    try:
        yield lambda: server.start(folder, port=0)
    finally:
        server.stop(folder)


def kill(running: server.Server) -> None:
    psutil.Process(running.pid).kill()
    while server.alive(running.pid):
        time.sleep(0.01)


def test_a_killed_server_loses_nothing(taken: Intake, tmp_path: Path) -> None:
    kill_the_server(taken, tmp_path, SERVER_KILLS)


@pytest.mark.slow
def test_a_server_killed_many_times_loses_nothing(taken: Intake, tmp_path: Path) -> None:
    kill_the_server(taken, tmp_path, MORE_KILLS)


def kill_the_server(taken: Intake, tmp_path: Path, kills: int) -> None:
    """Kill it while it takes tasks, and between two answers, a little later each time."""
    folder = tmp_path / ".server"
    found = project.new("unlucky", project.OWN, taken.folder, ())
    given: dict[int, str] = {}
    with own_server(folder) as start:
        running = start()
        work_until_killed(folder, found, taken, given, 0)
        kill(running)  # right after the last answer was acknowledged
        assert len(given) == COUNT
        for turn in range(1, kills):
            running = start()
            timer = threading.Timer(0.2 * turn, kill, [running])
            timer.start()
            work_until_killed(folder, found, taken, given, turn)
            timer.join()
        start()
        with connect(folder=folder) as client:
            found = project.make_screens(client, found)
            push(client, found, taken.pictures, taken.formats)
            check_tasks(client, found)
            pull.pull(client, found, tmp_path / "pulled")
    texts = {record.annotation: record.values["text"][0] for record in standing(read_history(tmp_path / "pulled"))}
    assert given.items() <= texts.items(), "an answer that was acknowledged is gone"


def work_until_killed(folder: Path, found: Project, taken: Intake, given: dict[int, str], turn: int) -> None:
    """Push, then answer; every answer that the server acknowledged is noted in `given`."""
    with suppress(InputError, httpx.TransportError), connect(folder=folder) as client:
        found = project.make_screens(client, found)
        push(client, found, taken.pictures, taken.formats)
        for task in listed(client, found.screens["text"]):
            words = f"words {turn} {task.id}"
            given[answer(client, task, words)] = words


def test_a_server_killed_at_its_first_start_starts_after_all(tmp_path: Path) -> None:
    """The user may be half made then: the database is begun anew."""
    folder = (tmp_path / ".server").resolve()
    server.prepare(folder)
    pid = server.spawn(folder, ports.any_free(), {})
    while not (folder / "server.log").read_bytes():
        time.sleep(0.05)
    psutil.Process(pid).kill()
    with server.running(folder) as running:
        assert server.ask(running, "/api/current-user/whoami", running.token) == 200
        assert not (folder / server.UNBORN).exists()
