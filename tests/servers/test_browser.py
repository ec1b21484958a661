"""The browser fixture itself: it says what is missing, and it sees what a page must not do."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext

from annotation.client import Client
from annotation.server import Server
from tests.servers import browser
from tests.servers.browser import Web
from tests.servers.labelling import Labelling, answers, give_login
from tests.servers.projects import MakeProject


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
def test_the_link_to_a_stream_survives_the_login(
    logged_in: BrowserContext, label_studio: Server, client: Client, make_project: MakeProject
) -> None:
    assert logged_in.browser is not None
    web = Web(logged_in.browser.new_context())
    number = make_project(count=1)["name"]
    labelling = Labelling(web.page(), label_studio.url)
    labelling.page.goto(labelling.stream(number))
    give_login(labelling.page, label_studio)
    labelling.wait_for("00000.png")
    assert labelling.text() == ""
    labelling.type("Bulino")
    labelling.finish("Tab", "Control+Enter")
    assert [answer.values for answer in answers(client, number)] == [{"name": "Bulino"}]
    web.close()
    web.context.close()
