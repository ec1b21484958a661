"""Projects of each test's own on the Label Studio server that all tests share (see the folder above)."""

from collections.abc import Callable

import pytest

from annotation import project
from annotation.client import Client, Task, tasks_by_sha256
from annotation.images import Selection, select_images
from annotation.project import Project
from data import sample_set

COUNT = 8
Make = Callable[..., Project]


@pytest.fixture(scope="session")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """A few sample images, selected for captioning."""
    folder = tmp_path_factory.mktemp("pictures") / "creatures"
    sample_set.write_sample_folder(folder, count=COUNT, size=48)
    return select_images(folder, keep_duplicates=True)


@pytest.fixture
def make(client: Client, selection: Selection, request: pytest.FixtureRequest) -> Make:
    """A project of this test's own, with its screens."""

    def create(types: tuple[str, ...] = (), name: str = "") -> Project:
        title = name or request.node.name.removeprefix("test_")[: project.LONGEST_NAME].rstrip()
        return project.create_screens(client, project.new_project(title, project.LOCAL, selection.folder, types))

    return create


def tasks_of(client: Client, found: Project, screen: str = "text") -> list[Task]:
    """The tasks of a screen in the order in which they are shown; none twice."""
    tasks, doubled = tasks_by_sha256(client, found.screens[screen])
    assert not doubled
    return list(tasks.values())


def answer(client: Client, task: Task, *texts: str, screen: str = "text", seconds: float = 5.0, **more: object) -> int:
    """Answer as an annotator would; returns the number of the answer."""
    item = {"id": "x", "from_name": screen, "to_name": "image", "type": "textarea", "value": {"text": list(texts)}}
    given: dict[str, object] = {"result": [item], "lead_time": seconds, **more}
    made = client.sdk.annotations.create(id=task.id, **given)  # type: ignore[arg-type]
    assert made.id is not None
    return made.id
