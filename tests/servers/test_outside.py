"""Neither the server nor its pages contact other hosts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from annotation import environment
from annotation.server import Server
from tests.servers.browser import Web

pytestmark = pytest.mark.servers

LOOK_UP = "import socket; socket.getaddrinfo('127.0.0.1', 80); socket.getaddrinfo('pypi.org', 443)"
CONNECT = "import socket; socket.socket().connect(('192.0.2.1', 80))"


@pytest.mark.parametrize(("code", "noted"), [(LOOK_UP, "getaddrinfo pypi.org"), (CONNECT, "connect 192.0.2.1")])
@pytest.mark.usefixtures("label_studio_installed")
def test_the_guard_sees_and_refuses(guard: dict[str, str], tmp_path: Path, code: str, noted: str) -> None:
    own = guard | {"EGRESS_LOG": str(tmp_path / "log")}
    python = str(environment.environment_folder() / environment.PYTHON)
    tried = subprocess.run([python, "-c", code], env=os.environ | own, capture_output=True, text=True)
    assert tried.returncode == 1 and "is outside" in tried.stderr
    assert (tmp_path / "log").read_text() == f"socket.{noted}\n"


def test_no_page_asks_for_anything_outside(web: Web, label_studio: Server, outside: Path) -> None:
    """Pages that no other test comes to; `web` fails at its end if the browser asked a foreign host."""
    page = web.page()
    for path in ("", "user/account"):  # the first one asks GitHub for tips, if it may
        page.goto(f"{label_studio.url}/{path}")
        page.wait_for_load_state("networkidle")
    assert not outside.exists(), outside.read_text()
