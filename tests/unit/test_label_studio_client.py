"""The connection to a Label Studio: what is tried again, what is told how, and that no token is ever told."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from annotation import client as clients
from annotation.client import Client, UnsureError, connect, detail, read_token
from data.errors import InputError

TOKEN = "0123456789abcdef0123456789abcdef01234567"
WHO = {"id": 1, "email": "ann@example.com"}


@contextmanager
def server(*answers: tuple[int, object]) -> Iterator[tuple[str, list[str]]]:
    """Answers one request after the other, the last answer for ever; yields its address and the requests."""
    asked: list[str] = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[min(len(asked), len(answers) - 1)]
            asked.append(f"{self.command} {self.path}")
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PATCH = do_GET

        def log_message(self, format: str, *args: object) -> None:
            return

    running = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def token_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(clients.VARIABLE, TOKEN)
    monkeypatch.setattr(clients, "PAUSES", (0.0, 0.0))


def test_a_server_that_is_busy_is_asked_again() -> None:
    with server((503, {}), (500, {"detail": "database is locked"}), (200, WHO)) as (url, asked):
        connect(url).__exit__()
    assert asked == ["GET /api/current-user/whoami"] * 3


def test_a_change_is_asked_for_once() -> None:
    with server((500, {"detail": "database is locked"})) as (url, asked), Client(url, TOKEN) as client:
        with pytest.raises(UnsureError):
            client.change(lambda sdk: sdk.projects.create(title="a title"))
        with pytest.raises(InputError, match=r"refused \(HTTP 500\): database is locked\. Try again"):
            client.insist(lambda sdk: sdk.projects.update(id=1, title="a title"))
        assert [request.split()[0] for request in asked[:1]] == ["POST"]
        assert len(asked) == 1 + 3


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"detail": "Invalid token."}, r"the access token is refused \(Invalid token\.\)\. Copy it anew"),
        (401, {"detail": "legacy token authentication has been disabled"}, "Make a personal access token"),
        (403, {"detail": "You do not have permission"}, r"this account may not do that \(You do not have permission\)"),
        (404, {"detail": "Not found."}, r"Label Studio refused \(HTTP 404\): Not found\."),
        (404, "<!DOCTYPE html><p>nginx", r"answers with a web page \(HTTP 404\), not as Label Studio does"),
        (200, "<html>Welcome", r"answers with a web page \(HTTP 200\), not as Label Studio does"),
        (400, {"detail": "no", "validation_errors": {"label_config": ["bad"]}}, r"\{'label_config': \['bad'\]\}"),
        (500, {"detail": "time data does not match format"}, r"refused \(HTTP 500\)"),
    ],
)
def test_every_answer_is_one_line(status: int, body: object, said: str) -> None:
    with server((status, body)) as (url, _), pytest.raises(InputError, match=said) as raised:
        connect(url)
    line = "".join(traceback.format_exception(raised.value)) + str(raised.value)
    assert TOKEN not in line and "\n" not in str(raised.value)
    assert raised.value.where == url


def test_nobody_there() -> None:
    with server((200, WHO)) as (url, _):
        pass
    with pytest.raises(InputError, match=r"nobody answers \(Connection refused\)\. Check the address and the network"):
        connect(url)


def test_no_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with server((200, WHO)) as (url, _), Client(url, TOKEN) as client:
        said = str(client.explain(httpx.ReadTimeout("slow")))
        assert said == f"{url}: does not answer in time. Try again; what was done is kept."
        with pytest.raises(ZeroDivisionError):
            client.explain(ZeroDivisionError("a mistake of ours"))


def test_the_local_server_is_not_running(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the server is not running\. Start the server: .*annotate\.py start"):
        connect(folder=tmp_path)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://here", "http://", "http://ann:pa55@here", "file:///etc"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError, match="is not such an address; allowed: http://HOST:PORT") as raised:
        connect(url)
    assert "pa55" not in str(raised.value)


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("  from-a-file\n")
    assert read_token(file) == "from-a-file"
    assert read_token(None) == TOKEN
    monkeypatch.delenv(clients.VARIABLE)
    with pytest.raises(InputError, match=r"--url: an access token is needed\. .* --token-file FILE, or set LABEL_ST"):
        read_token(None)
    with pytest.raises(InputError, match=r"--token-file .*: cannot be read \(No such file"):
        read_token(tmp_path / "none")
    for content in (b"", b"two words", b"\xff\xfe", "schlüssel".encode()):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"--token-file .*(is not an access token|not text)") as raised:
            read_token(file)
        assert "two words" not in str(raised.value)


def test_a_personal_token_that_ran_out() -> None:
    """Its three parts say when; nobody need be asked."""
    out = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.c2ln"  # {"exp": 1}
    with pytest.raises(InputError, match="the access token is refused") as raised:
        Client("http://127.0.0.1:1", out)
    assert out not in str(raised.value)


def test_a_proxy_has_no_say_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with server((200, WHO)) as (url, asked):
        connect(url).__exit__()
    assert asked


def test_what_a_server_says_is_cut_short() -> None:
    assert detail({"detail": "a\nb \x1b[31m"}) == r"a b \x1b[31m"
    assert len(detail("x" * 1000)) == 303
