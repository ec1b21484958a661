"""The connection to Label Studio: what is retried, how errors are worded, and that no token is ever shown."""

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
from annotation.client import Client, UnsureError, connect, error_message, read_token
from data.errors import InputError

TOKEN = "0123456789abcdef0123456789abcdef01234567"
USER = {"id": 1, "email": "ann@example.com"}


@contextmanager
def server(*answers: tuple[int, object]) -> Iterator[tuple[str, list[str]]]:
    """Gives one answer after the other, the last one forever; yields its address and the requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[min(len(requests), len(answers) - 1)]
            requests.append(f"{self.command} {self.path}")
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PATCH = do_GET

        def log_message(self, format: str, *args: object) -> None:
            return

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}", requests
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(clients.TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(clients, "PAUSES", (0.0, 0.0))


def test_a_busy_server_is_asked_again_and_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with server((503, {}), (500, {"detail": "database is locked"}), (200, USER)) as (url, requests):
        connect(url).__exit__()
    assert requests == ["GET /api/current-user/whoami"] * 3


def test_a_request_that_is_not_idempotent_is_sent_once() -> None:
    with server((500, {"detail": "database is locked"})) as (url, requests), Client(url, TOKEN) as client:
        with pytest.raises(UnsureError):
            client.once(lambda sdk: sdk.projects.create(title="a title"))
        assert [request.split()[0] for request in requests] == ["POST"]
        with pytest.raises(InputError, match="database is locked") as error:
            client.retry(lambda sdk: sdk.projects.update(id=1, title="a title"))
        assert error.value.fix and len(requests) == 1 + 3
        with server((404, {"detail": "gone"})) as (other, _), Client(other, TOKEN) as second:
            assert second.find(lambda sdk: sdk.projects.get(id=1)) is None


@pytest.mark.parametrize(
    ("status", "body", "words", "fix"),
    [
        (401, {"detail": "Invalid token."}, r"token .*Invalid token\.", "--token-file"),
        (401, {"detail": "legacy token authentication has been disabled"}, "legacy", "personal access token"),
        (403, {"detail": "You do not have permission"}, "You do not have permission", "administrator"),
        (404, {"detail": "Not found."}, r"HTTP 404.*Not found\.", None),
        (404, "<!DOCTYPE html><p>nginx", r"web page \(HTTP 404\)", "address"),
        (200, "<html>Welcome", r"web page \(HTTP 200\)", "address"),
        (400, {"detail": "no", "validation_errors": {"label_config": ["bad"]}}, r"\{'label_config': \['bad'\]\}", None),
        (500, {"detail": "time data does not match format"}, "HTTP 500", ""),
    ],
)
def test_every_failure_is_one_line_without_the_token(status: int, body: object, words: str, fix: str | None) -> None:
    with server((status, body)) as (url, requests), pytest.raises(InputError, match=words) as error:
        connect(url)
    text = "".join(traceback.format_exception(error.value)) + str(error.value)
    assert TOKEN not in text and "\n" not in str(error.value)
    assert error.value.where == url and len(requests) == 1
    assert error.value.fix is None if fix is None else fix in str(error.value.fix)


def test_no_connection_and_no_answer_in_time(tmp_path: Path) -> None:
    with server((200, USER)) as (url, _), Client(url, TOKEN) as client:
        slow = client.explain(httpx.ReadTimeout("slow"))
        assert slow.where == url and slow.fix
        with pytest.raises(ZeroDivisionError):
            client.explain(ZeroDivisionError("a bug of ours"))
    with pytest.raises(InputError, match="Connection refused") as error:
        connect(url)
    assert error.value.where == url and error.value.fix
    with pytest.raises(InputError) as error:
        connect(folder=tmp_path)
    assert error.value.where == tmp_path and "annotate.py start" in str(error.value.fix)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://here", "http://", "http://ann:pa55@here", "file:///etc"])
def test_invalid_addresses(url: str) -> None:
    with pytest.raises(InputError) as error:
        connect(url)
    assert error.value.where == "--url" and error.value.allowed
    assert "pa55" not in str(error.value)


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("  from-a-file\n")
    assert read_token(file) == "from-a-file"
    assert read_token(None) == TOKEN
    monkeypatch.delenv(clients.TOKEN_VARIABLE)
    with pytest.raises(InputError) as error:
        read_token(None)
    assert error.value.where == "--url" and "--token-file" in str(error.value.fix)
    for content in (None, b"", b"two words", b"\xff\xfe", "schlüssel".encode()):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(InputError) as error:
            read_token(file)
        assert error.value.where == f"--token-file {file}" and "two words" not in str(error.value)


def test_an_expired_personal_token() -> None:
    """Its payload says when it expires, so no request is needed."""
    expired = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.c2ln"  # {"exp": 1}
    with pytest.raises(InputError, match="token") as error:
        Client("http://127.0.0.1:1", expired)
    assert expired not in str(error.value)


def test_messages_of_the_server_are_cut_short() -> None:
    assert error_message({"detail": "a\nb \x1b[31m"}) == r"a b \x1b[31m"
    assert len(error_message("x" * 1000)) == 303
