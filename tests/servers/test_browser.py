"""The browser fixture itself: it reports a missing browser, and sees what a page must not do."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from annotation.client import Client
from tests.servers import browser
from tests.servers.browser import Web
from tests.servers.labelling import Labelling, answers
from tests.servers.layout import check_layout


def test_without_a_browser_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ATELIER_CHROMIUM", raising=False)
    with pytest.raises(pytest.fail.Exception, match="apt-get install --yes --no-install-recommends chromium "):
        browser.chromium()
    monkeypatch.setenv("ATELIER_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(pytest.fail.Exception, match="ATELIER_CHROMIUM=/nowhere/chromium: no such program"):
        browser.chromium()


@pytest.mark.servers
def test_dialogs_failing_scripts_and_foreign_hosts_are_seen(web: Web) -> None:
    page = web.page()
    page.set_content("<script>alert('hello')</script><img src='https://example.com/x.png'>")
    page.evaluate("setTimeout(() => { throw new Error('broken') })")
    page.wait_for_timeout(200)
    assert sorted(web.trouble) == [
        "a dialog came up: hello",
        "a foreign host was asked: https://example.com/x.png",
        "a script failed: broken",
    ]
    web.trouble.clear()


@pytest.mark.servers
def test_the_link_to_a_stream_survives_the_login(arrived: Labelling, client: Client) -> None:
    arrived.wait_for("00000.png")
    check_layout(arrived)
    assert arrived.text() == ""
    arrived.type("Bulino")
    arrived.finish("Tab", "Control+Enter")
    number = int(urlsplit(arrived.page.url).path.split("/")[2])
    assert [answer.values for answer in answers(client, number)] == [{"name": "Bulino"}]
