"""One real server and one real browser for all tests of this folder, each started when first needed."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from annotation import environment, project, server
from annotation.client import Client, connect
from data import sample_set
from data.atomic_io import cache_root
from data.errors import InputError
from tests.servers.browser import Web, browser
from tests.servers.labelling import Labelling, give_login
from tests.servers.projects import MakeProject, push_pictures, running_server

# Label Studio's environment takes minutes to make: the user's own is used, and kept for the next time
os.environ.setdefault("ATELIER_LABEL_STUDIO", str(cache_root() / "label-studio"))
INSIDE = Path(__file__).parent / "inside"
NO_LABEL_STUDIO = pytest.StashKey[InputError]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make Label Studio's environment before the clock of the first test runs: that takes minutes on a new machine."""
    if not any("label_studio_installed" in getattr(item, "fixturenames", ()) for item in session.items):
        return
    try:
        environment.ensure_environment()
    except InputError as error:
        session.config.stash[NO_LABEL_STUDIO] = error


@pytest.fixture(scope="session")
def label_studio_installed(pytestconfig: pytest.Config) -> None:
    """Label Studio is installed; if not, the test fails with what to do."""
    if NO_LABEL_STUDIO in pytestconfig.stash:
        pytest.fail(f"no Label Studio to try: {pytestconfig.stash[NO_LABEL_STUDIO]}", pytrace=False)


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file in which test servers log each refused look-up of an outside name; it must not be created."""
    log = tmp_path_factory.mktemp("outside") / "egress.log"
    yield log
    assert not log.exists(), log.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def guard(outside: Path) -> dict[str, str]:
    """Environment variables of a server whose look-ups are watched."""
    return {"PYTHONPATH": str(INSIDE), "EGRESS_LOG": str(outside)}


@pytest.fixture(scope="session")
def label_studio(
    tmp_path_factory: pytest.TempPathFactory, guard: dict[str, str], label_studio_installed: None
) -> Iterator[server.Server]:
    """A Label Studio server without projects."""
    variables = guard | {"NO_FSYNC": "yes"}
    with running_server(tmp_path_factory.mktemp("label-studio") / ".server", variables=variables) as running:
        yield running


@pytest.fixture(scope="session")
def client(label_studio: server.Server) -> Iterator[Client]:
    with connect(folder=label_studio.folder) as connected:
        yield connected


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The one browser of all tests."""
    with browser() as running:
        yield running


@pytest.fixture(scope="session")
def arrived(label_studio: server.Server, client: Client, pictures: Path, chromium: Browser) -> Iterator[Labelling]:
    """An annotator's tab after following the link to a screen and logging in."""
    web = Web(chromium.new_context(reduced_motion="reduce"))
    labelling = Labelling(web.page(), label_studio.url)
    screens = push_pictures(client, folder=pictures, count=1, name="a link")
    labelling.page.goto(labelling.stream(screens["name"]))
    give_login(labelling.page, label_studio)
    yield labelling
    web.close()


@pytest.fixture
def web(arrived: Labelling) -> Iterator[Web]:
    """Watched pages of a logged-in user; they are closed and checked at the end of the test."""
    web = Web(arrived.page.context)
    yield web
    web.close()


@pytest.fixture
def labelling(web: Web, label_studio: server.Server) -> Labelling:
    """A laptop-sized tab."""
    return Labelling(web.page(), label_studio.url)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small creatures."""
    folder = tmp_path_factory.mktemp("pictures") / "creatures"
    sample_set.write_sample_folder(folder, count=24, size=128)
    return folder


@pytest.fixture
def make_project(client: Client, pictures: Path) -> MakeProject:
    """Push sample images, or those of another folder, to screens of their own."""
    return functools.partial(push_pictures, client, folder=pictures)


@pytest.fixture
def captions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projects with the caption screen only: each other one costs half a second of CPU time."""
    every = project.labeling_configs
    monkeypatch.setattr(project, "labeling_configs", lambda types: {"text": every(types)["text"]})
