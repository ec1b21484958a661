"""A real Chromium for tests: headless, without a trace between tests, and with no way out of this machine.

    def test_something(web: Web) -> None:
        page = web.page()
        page.goto(...)          # at the end: no dialog came up, no script failed, no foreign host was asked

It is the system's own browser, driven by Playwright: nothing is downloaded. ATELIER_CHROMIUM names another one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = """no Chromium to try the pages in. Install it, or say where one is:
  apt-get install --yes --no-install-recommends chromium      (Debian; as root, or with sudo)
  export ATELIER_CHROMIUM=/path/to/chromium"""
FLAGS = [
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--disable-gpu",
    "--disable-software-rasterizer",  # a fifth less processor time
    "--no-first-run",
]
PATIENCE = 180_000.0  # milliseconds for anything on a page: machines that run tests are busy
LAPTOP = (1366, 768)  # pixels


def chromium() -> str:
    """The browser's path; the test fails with what to do if there is none."""
    named = os.environ.get("ATELIER_CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
    if found is None:
        pytest.fail(MISSING if named is None else f"ATELIER_CHROMIUM={named}: no such program", pytrace=False)
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A running Chromium. Its sandbox does not work for root, and what it shows here is our own."""
    program = chromium()
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=[*FLAGS, *sandbox])
        yield running
        running.close()


@dataclass
class Web:
    """Pages that share a login, and what they did that no page of ours may do."""

    context: BrowserContext
    trouble: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)

    def page(self, size: tuple[int, int] = LAPTOP) -> Page:
        """A new, watched page of `size` pixels."""
        page = self.context.new_page()
        self.pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.on("dialog", self.on_dialog)
        page.on("pageerror", lambda error: self.trouble.append(f"a script failed: {error}"))
        page.on("request", self.on_request)
        return page

    def on_dialog(self, dialog: Dialog) -> None:
        if dialog.type != "beforeunload":  # leaving a page with unsaved work is asked by design
            self.trouble.append(f"a dialog came up: {dialog.message}")
        dialog.accept()

    def on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in {"http", "https", "ws", "wss"} and address.hostname != "127.0.0.1":
            self.trouble.append(f"a foreign host was asked: {request.url}")

    def close(self) -> None:
        """Close the pages, and fail if there was any trouble."""
        for page in self.pages:
            page.close()
        found, self.trouble = self.trouble, []
        assert not found, "\n".join(found)
