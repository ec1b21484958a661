"""Who may talk to the studio, and on which port it listens."""

import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from data.errors import InputError
from infer.studios import guard, serving
from infer.studios.guard import Guard
from infer.studios.options import StudioOptions, password_of

PASSWORD = "correct horse"


def client(password: str = "", private: bool = True, host: str = "127.0.0.1:7860") -> TestClient:
    app = FastAPI()
    app.get("/")(lambda: "come in")

    @app.post("/take")
    def take(words: list[str]) -> int:
        return len(words)

    return TestClient(Guard(app, password, private), base_url=f"http://{host}")


def basic(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST", "127.0.0.2:80"])
def test_this_machine_is_let_in(host: str) -> None:
    assert client().get("/", headers={"host": host}).text == '"come in"'


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "0.0.0.0:7860", ""])
def test_a_foreign_page_cannot_pose_as_this_machine(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401), (basic("me:wrong"), 401), (basic("me:"), 401), ({"authorization": "Basic !!"}, 401),
        ({"authorization": f"Bearer {PASSWORD}"}, 401), (basic(f"me:{PASSWORD}"), 200), (basic(f":{PASSWORD}"), 200),
    ],
)  # fmt: skip
def test_the_password(headers: dict[str, str], status: int) -> None:
    found = client(PASSWORD, private=False, host="192.168.1.5:7860").get("/", headers=headers)
    assert found.status_code == status
    assert ("www-authenticate" in found.headers) == (status == 401)


def test_nothing_is_loaded_from_elsewhere_and_nothing_huge_is_read() -> None:
    found = client().get("/")
    assert "default-src 'self'" in found.headers["content-security-policy"]
    assert "http" not in found.headers["content-security-policy"]
    assert client().post("/", headers={"content-length": str(guard.LARGEST + 1)}).status_code == 413
    for length in ("many", "9" * 5000):
        assert client().post("/", headers={"content-length": length}).status_code == 413


def test_a_body_that_does_not_say_its_length_is_not_read_to_its_end() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b"x" * (1 << 20)

    found = client().post("/take", content=chunks(), headers={"content-type": "application/json"})
    assert found.status_code == 413
    assert client().post("/take", json=["a"]).json() == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"}, {"origin": "http://127.0.0.1:8888"},
    ],
)  # fmt: skip
def test_a_foreign_page_cannot_act_through_the_visitors_browser(headers: dict[str, str]) -> None:
    assert client().post("/take", json=["a"], headers=headers).status_code == 403
    assert client().get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200, "a link may lead here"


def test_our_own_page_and_programs_may_act() -> None:
    own = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    assert client().post("/take", json=["a"], headers=own).status_code == 200
    assert client().post("/take", json=["a"]).status_code == 200


def test_no_socket_is_opened() -> None:
    with pytest.raises(WebSocketDisconnect), client().websocket_connect("/"):
        pass


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    told = {
        "0.0.0.0": "--host: others can reach 0.0.0.0, and there is no password. Give --password-file FILE.",
        "192.168.1.5": "--host: others can reach 192.168.1.5",
    }
    for host, words in told.items():
        with pytest.raises(InputError) as caught:
            password_of(StudioOptions(host=host))
        assert words in str(caught.value)
    assert password_of(StudioOptions()) == ""
    assert password_of(StudioOptions(host="localhost")) == ""
    assert password_of(StudioOptions(host="::1")) == ""
    with pytest.raises(InputError, match="--password: has 5 letters; allowed: 8 or more"):
        password_of(StudioOptions(password="short"))
    with pytest.raises(ValueError, match="--password and --password-file both say the password"):
        StudioOptions(password=PASSWORD, password_file=tmp_path)


def test_password_files(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\nanother line\n")
    file.chmod(0o644)
    with pytest.raises(InputError, match=r"others can read it. chmod 600"):
        password_of(StudioOptions(password_file=file))
    file.chmod(0o600)
    assert password_of(StudioOptions(host="0.0.0.0", password_file=file)) == PASSWORD
    file.write_text("")
    with pytest.raises(InputError, match="--password-file: is empty"):
        password_of(StudioOptions(password_file=file))
    with pytest.raises(InputError, match="cannot be read"):
        password_of(StudioOptions(password_file=tmp_path / "nothing"))


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port: port {port} is taken. Is a studio running already"):
            serving.listen("127.0.0.1", port)
    with pytest.raises(InputError, match=r"--host: 192\.0\.2\.1 is no address of this machine"):
        serving.listen("192.0.2.1", 0)
    with serving.listen("127.0.0.1", 0) as free:
        assert serving.address(StudioOptions(), free) == f"http://127.0.0.1:{free.getsockname()[1]}"


def test_an_unknown_model_is_said_before_anything_listens() -> None:
    with pytest.raises(InputError, match="--model pokket: no such file or folder, did you mean 'pocket'"):
        serving.run(StudioOptions(model="pokket", port=0))
