"""Who may connect to the studio, on which port it listens, and studio.py's mistakes in one line."""

import base64
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from infer.config import StudioOptions
from infer.web import auth
from infer.web.auth import AuthMiddleware, listen, read_password, url_of
from tests.errors import error_of

PASSWORD = "correct horse"
ENTRY = Path(__file__).parents[2] / "infer" / "studio.py"


def client(password: str = "", private: bool = True, host: str = "127.0.0.1:7860") -> TestClient:
    app = FastAPI()
    app.get("/")(lambda: "hello")

    @app.post("/count")
    def count(words: list[str]) -> int:
        return len(words)

    return TestClient(AuthMiddleware(app, password, private), base_url=f"http://{host}")


def basic(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("host", "status"),
    [(host, 200) for host in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST", "127.0.0.2:80")]
    + [(host, 421) for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "0.0.0.0:7860", "")],
)
def test_only_host_names_of_this_machine_are_answered(host: str, status: int) -> None:
    assert client().get("/", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401), (basic("me:wrong"), 401), (basic("me:"), 401), ({"authorization": "Basic !!"}, 401),
        ({"authorization": f"Bearer {PASSWORD}"}, 401), (basic(f"me:{PASSWORD}"), 200), (basic(f":{PASSWORD}"), 200),
    ],
)  # fmt: skip
def test_password(headers: dict[str, str], status: int) -> None:
    response = client(PASSWORD, private=False, host="192.168.1.5:7860").get("/", headers=headers)
    assert response.status_code == status
    assert ("www-authenticate" in response.headers) == (status == 401)


def test_content_policy() -> None:
    policy = client().get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy


@pytest.mark.parametrize("length", [str(auth.MAX_BODY + 1), "many", "9" * 5000])
def test_large_requests_are_rejected(length: str) -> None:
    assert client().post("/", headers={"content-length": length}).status_code == 413


def test_a_body_without_a_length_is_not_read_to_its_end() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b"x" * (1 << 20)

    response = client().post("/count", content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403), ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403), ({"origin": "http://127.0.0.1:8888"}, 403),
        ({"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}, 200), ({}, 200),
    ],
)  # fmt: skip
def test_pages_of_other_sites_cannot_post(headers: dict[str, str], status: int) -> None:
    assert client().post("/count", json=["a"], headers=headers).status_code == status
    assert client().get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200, "links are allowed"


def test_web_sockets_are_closed() -> None:
    with pytest.raises(WebSocketDisconnect), client().websocket_connect("/"):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5"])
def test_other_addresses_require_a_password(host: str) -> None:
    error = error_of(read_password, StudioOptions(host=host))
    assert error.where == "--host" and "--password-file" in (error.fix or "")


def test_passwords(tmp_path: Path) -> None:
    assert {read_password(StudioOptions(host=host)) for host in ("127.0.0.1", "localhost", "::1")} == {""}
    error = error_of(read_password, StudioOptions(password="short"))
    assert (error.where, error.allowed) == ("--password", "8 or more")
    with pytest.raises(ValueError, match="--password-file"):
        StudioOptions(password=PASSWORD, password_file=tmp_path)


def test_password_files(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\nanother line\n")
    file.chmod(0o600)
    assert read_password(StudioOptions(host="0.0.0.0", password_file=file)) == PASSWORD
    file.chmod(0o644)
    assert error_of(read_password, StudioOptions(password_file=file)).fix == f"chmod 600 {file}"
    file.write_text("")
    file.chmod(0o600)
    for missing in (file, tmp_path / "nothing"):
        assert str(error_of(read_password, StudioOptions(password_file=missing)).where).startswith("--password-file")


def test_listen() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        error = error_of(listen, "127.0.0.1", port)
        assert error.where == "--port" and f"--port {port + 1}" in (error.fix or "")
    for host in ("192.0.2.1", "no such host"):
        error = error_of(listen, host, 0)
        assert error.where == "--host" and "127.0.0.1" in str(error.allowed)


# ---- the command


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        (("--port", "70000"), "--port:"),
        (("--host", "0.0.0.0"), "--host:"),
        (("--listen", "0.0.0.0", "--password", "short"), "--password:"),
        (("--port", "0", "--model", "pokket"), "--model pokket:"),
        (("--prot", "1"), "--prot:"),
    ],
)
def test_a_mistake_is_one_line(
    flags: tuple[str, ...], where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["studio.py", *flags])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ENTRY), run_name="__main__")
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and error.startswith(f"error: {where}")
