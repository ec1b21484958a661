"""A real Label Studio for all tests of this folder; it notes whoever tries to leave the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from annotation import project, server
from annotation.client import Client, connect
from annotation.intake import Intake, take_in
from annotation.project import Project
from annotation.tasks import Task, tasks_by_picture
from data.files import cache_root
from data.pocket import creatures

# Label Studio's environment takes minutes to make: the user's own is used, and kept for the next time
os.environ.setdefault("ATELIER_LABEL_STUDIO", str(cache_root() / "label-studio"))

EGRESS = Path(__file__).parent / "egress"
COUNT = 8
Made = Callable[..., Project]


@dataclass(frozen=True)
class Offered:
    """A draft."""

    text: str
    source: str = "a-test-1"
    score: float = 0.5


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    folder = tmp_path_factory.mktemp("label-studio")
    log = folder / "egress.log"
    with server.running(folder / ".server", variables={"PYTHONPATH": str(EGRESS), "EGRESS_LOG": str(log)}) as running:
        yield running
    assert not log.exists(), log.read_text()


@pytest.fixture(scope="session")
def client(label_studio: server.Server) -> Iterator[Client]:
    with connect(folder=label_studio.folder) as connected:
        yield connected


@pytest.fixture(scope="session")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Intake:
    """A few creatures, looked at."""
    folder = tmp_path_factory.mktemp("pictures") / "creatures"
    creatures.write(folder, count=COUNT, size=48)
    return take_in(folder, keep_twins=True)


@pytest.fixture
def made(client: Client, taken: Intake, request: pytest.FixtureRequest) -> Made:
    """A project of this test's own, with its screens."""

    def make(types: tuple[str, ...] = ("water", "fire"), name: str = "") -> Project:
        title = name or request.node.name.removeprefix("test_")[: project.LONGEST_NAME]
        return project.make_screens(client, project.new(title, project.OWN, taken.folder, types))

    return make


def tasks_of(client: Client, found: Project, screen: str = "text") -> list[Task]:
    """The tasks of a screen in the order in which they are shown; none stands twice."""
    tasks, doubled = tasks_by_picture(client, found.screens[screen])
    assert not doubled
    return list(tasks.values())


def answer(client: Client, task: Task, *texts: str, screen: str = "text", seconds: float = 5.0, **more: object) -> int:
    """Answer as an annotator would; returns the number of the answer."""
    item = {"id": "x", "from_name": screen, "to_name": "image", "type": "textarea", "value": {"text": list(texts)}}
    given: dict[str, object] = {"result": [item], "lead_time": seconds, **more}
    made = client.sdk.annotations.create(id=task.id, **given)  # type: ignore[arg-type]
    assert made.id is not None
    return made.id
