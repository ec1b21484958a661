"""kill -9 of client and server, at every stage of push and pull: the same command then finishes, nothing twice or lost.

The fast tests kill a few times; the slow ones together 20 times, spread more finely.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from annotation import project, pull, server
from annotation.client import Client, connect, list_tasks
from annotation.drafts import Draft
from annotation.history import latest, read_history
from annotation.images import Selection
from annotation.project import Project
from annotation.push import push
from data.errors import InputError
from tests.servers.project.conftest import COUNT, Make, answer

pytestmark = pytest.mark.servers


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several requests per command, to be killed between them."""
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
    """Kill the child after some seconds; False if it had ended before."""
    time.sleep(seconds)
    ended, _ = os.waitpid(child, os.WNOHANG)
    if ended:
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def check_tasks(client: Client, found: Project) -> None:
    """Every image has one task on every screen, with one draft where there is a text box, and one storage row."""
    for screen, number in found.screens.items():
        tasks = list(list_tasks(client, number))
        assert len(tasks) == len({task.sha256 for task in tasks}) == COUNT, screen
        assert {task.drafts for task in tasks} == {0 if screen == "triage" else 1}, screen
        assert len(client.sdk.import_storage.local.list(project=number)) == 1
    titles = [each["title"] for each in project.list_projects(client)]
    assert all(titles.count(found.title(screen)) == 1 for screen in found.screens)


# ---- the client


@pytest.mark.parametrize("kills", [pytest.param(3, id="few"), pytest.param(10, id="many", marks=pytest.mark.slow)])
def test_killed_pushes_are_finished_by_the_next(
    label_studio: server.Server, client: Client, selection: Selection, kills: int
) -> None:
    """Each push is killed a little later than the one before, so that all stages are hit."""
    drafts = {each.sha256: Draft("a draft", "a-test-1", 0.5) for each in selection.samples}

    def work(new: Project) -> Project:
        with connect(folder=label_studio.folder) as own:
            made = project.create_screens(own, new)
            push(own, made, selection.samples, selection.formats, drafts=drafts)
            return made

    whole = timed(lambda: work(project.new_project(f"measured {kills}", project.LOCAL, selection.folder, ())))
    new = project.new_project(f"killed {kills}", project.LOCAL, selection.folder, ())
    killed = sum(
        killed_after(in_child(lambda: work(new)), whole * (kill + 0.5) / kills) for kill in range(kills)
    )  # fmt: skip
    check_tasks(client, work(new))
    assert killed > kills / 3, "hardly a push was caught at work"


@pytest.mark.parametrize("kills", [pytest.param(2, id="few"), pytest.param(4, id="many", marks=pytest.mark.slow)])
def test_killed_pulls_are_finished_by_the_next(
    label_studio: server.Server, client: Client, selection: Selection, make: Make, tmp_path: Path, kills: int
) -> None:
    found = make(name=f"pulled {kills}")
    push(client, found, selection.samples, selection.formats)
    tasks = list(list_tasks(client, found.screens["text"]))
    given = {answer(client, task, f"words {task.id}") for task in tasks}

    def work() -> None:
        with connect(folder=label_studio.folder) as own:
            pull.pull(own, found, tmp_path)

    whole = timed(lambda: pull.pull(client, found, tmp_path / "measured"))
    for kill in range(kills):
        killed_after(in_child(work), whole * (kill + 0.5) / kills)
    work()
    history = read_history(tmp_path)
    assert {record.annotation for record in history} == given
    assert len(history) == len(given), "an answer was pulled twice"


# ---- the server


@dataclass(frozen=True)
class Unlucky:
    """A server of its own that was killed at its first start and then lost its port to another program."""

    folder: Path
    guard: dict[str, str]
    running: server.Server
    taken_port: int

    def start(self) -> server.Server:
        return server.start_server(self.folder, port=0, variables=self.guard)


@pytest.fixture(scope="module")
def unlucky(
    label_studio_installed: None, guard: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Unlucky]:
    folder = (tmp_path_factory.mktemp("unlucky") / ".server").resolve()
    server.prepare_folder(folder)
    kill(
        server.spawn(folder, next(server.candidate_ports(0, None)), guard),
        after=lambda: (folder / server.LOG).read_bytes(),
    )
    with closing(socket.create_server((server.HOST, 0))) as socket_, pytest.MonkeyPatch.context() as patch:
        taken_port = socket_.getsockname()[1]
        candidates = iter([taken_port, *(next(server.candidate_ports(0, None)) for _ in range(3))])
        patch.setattr("annotation.server.candidate_ports", lambda asked, last: candidates)
        running = server.start_server(folder, port=0, variables=guard)
    yield Unlucky(folder, guard, running, taken_port)
    server.stop_server(folder)


def kill(pid: int, after: Callable[[], object] = lambda: True) -> None:
    """kill -9 once `after` is true, and wait until the process is gone."""
    process = psutil.Process(pid)
    while not after():
        time.sleep(0.02)
    process.kill()
    while server.is_running(pid):
        time.sleep(0.01)


def test_a_server_killed_at_its_first_start_starts_again(unlucky: Unlucky) -> None:
    """The user may be incomplete then: the database is created again."""
    running = unlucky.start()
    assert server.http_status(running, "/api/current-user/whoami", running.login.token) == 200
    assert not (unlucky.folder / server.FIRST_START).exists()


def test_a_port_lost_at_the_last_moment_is_noticed(unlucky: Unlucky) -> None:
    """Label Studio silently takes the next port then, while another program answers on the requested one."""
    assert unlucky.running.port != unlucky.taken_port
    assert server.find_server(unlucky.folder) == unlucky.start()


@pytest.mark.parametrize("kills", [pytest.param(2, id="few"), pytest.param(6, id="many", marks=pytest.mark.slow)])
def test_a_killed_server_loses_nothing(unlucky: Unlucky, selection: Selection, tmp_path: Path, kills: int) -> None:
    """Kill it right after an answer was acknowledged, then while it takes tasks and answers, a little later each time.

    The times are parts of what all of it took the first time, so that a busy machine is no other test.
    """
    found = project.new_project(f"unlucky {kills}", project.LOCAL, selection.folder, ())
    given: dict[int, str] = {}
    running = unlucky.start()
    whole = timed(lambda: work_until_killed(unlucky.folder, found, selection, given, 0))
    kill(running.pid)
    assert len(given) == COUNT, "nobody killed it, and it did not take everything"
    for turn in range(1, kills):
        running = unlucky.start()
        timer = threading.Timer(whole * turn / kills, kill, [running.pid])
        timer.start()
        work_until_killed(unlucky.folder, found, selection, given, turn)
        timer.join()
    unlucky.start()
    with connect(folder=unlucky.folder) as client:
        found = project.create_screens(client, found)
        push(client, found, selection.samples, selection.formats)
        check_tasks(client, found)
        pull.pull(client, found, tmp_path)
    texts = {record.annotation: record.values["text"][0] for record in latest(read_history(tmp_path))}
    assert given.items() <= texts.items(), "an answer that was acknowledged is gone"


def work_until_killed(folder: Path, found: Project, selection: Selection, given: dict[int, str], turn: int) -> None:
    """Push, then answer; every answer that the server acknowledged is recorded in `given`."""
    with suppress(InputError, httpx.TransportError), connect(folder=folder) as client:
        found = project.create_screens(client, found)
        push(client, found, selection.samples, selection.formats)
        for task in list_tasks(client, found.screens["text"]):
            words = f"words {turn} {task.id}"
            given[answer(client, task, words)] = words
