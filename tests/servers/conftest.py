"""Real servers and a real browser, started once for all tests of this folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from annotation import server
from annotation.client import Client, connect
from data.files import cache_root
from data.pocket import creatures
from tests.servers.browser import Web, browser
from tests.servers.labelling import Labelling, log_in
from tests.servers.projects import MakeProject, push_pictures

# Label Studio's environment takes minutes to make: the user's own is used, and kept for the next time
os.environ.setdefault("ATELIER_LABEL_STUDIO", str(cache_root() / "label-studio"))
EGRESS = Path(__file__).parent / "project" / "egress"


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    """A Label Studio that holds nothing yet; whatever it would look up outside fails, and is told at the end."""
    folder = tmp_path_factory.mktemp("label-studio")
    log = folder / "egress.log"
    guard = {"PYTHONPATH": str(EGRESS), "EGRESS_LOG": str(log)}
    with server.running(folder / ".server", variables=guard) as running:
        yield running
    assert not log.exists(), log.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def client(label_studio: server.Server) -> Iterator[Client]:
    with connect(folder=label_studio.folder) as connected:
        yield connected


@pytest.fixture(scope="session")
def logged_in(label_studio: server.Server) -> Iterator[BrowserContext]:
    """A browser in which the annotator is logged in."""
    with browser() as running:
        context = running.new_context()
        log_in(context, label_studio)
        yield context


@pytest.fixture
def web(logged_in: BrowserContext) -> Iterator[Web]:
    """Watched pages; they are closed, and judged, at the end of the test."""
    web = Web(logged_in)
    yield web
    web.close()


@pytest.fixture
def labelling(web: Web, label_studio: server.Server) -> Labelling:
    """A tab of laptop size."""
    return Labelling(web.page(), label_studio.url)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small creatures."""
    folder = tmp_path_factory.mktemp("pictures") / "creatures"
    creatures.write(folder, count=24, size=128)
    return folder


@pytest.fixture
def make_project(client: Client, pictures: Path) -> MakeProject:
    """Push creatures, or the pictures of another folder, to screens of their own."""
    return functools.partial(push_pictures, client, folder=pictures)
