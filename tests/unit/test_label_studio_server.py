"""The local server, as far as it can be looked at without starting one: its environment, ports, login and commands."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from annotation import doctor, environment, ports, project, server
from annotation.commands import COMMANDS, dispatch
from annotation.locks import locked
from data.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> environment.Environment:
    """An environment whose parts are there, though none of them is Label Studio."""
    monkeypatch.setenv("ATELIER_LABEL_STUDIO", str(tmp_path / "environments"))
    found = environment.place()
    found.program.parent.mkdir(parents=True)
    for part in (found.program, found.python, found.database, found.folder / "ready"):
        part.write_text("#!/bin/sh\necho no good >&2; exit 3\n")
        part.chmod(0o755)
    return found


# ---- the environment


def test_it_is_pinned_and_has_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = environment.PINS.read_text().splitlines()
    assert f"label-studio=={environment.VERSION}" in pins
    assert all("==" in pin for pin in pins)
    monkeypatch.setenv("ATELIER_LABEL_STUDIO", str(tmp_path))
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    assert environment.place().folder == tmp_path / f"{environment.VERSION}-{python}"
    assert not environment.place().complete


def test_what_is_not_whole_is_not_used(installed: environment.Environment) -> None:
    assert environment.ready() == installed
    installed.python.unlink()
    installed.python.symlink_to(installed.folder / "a python that was upgraded away")
    assert not installed.complete


def test_too_little_room_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_LABEL_STUDIO", str(tmp_path))
    monkeypatch.setattr(environment, "ROOM", 1 << 60)
    with pytest.raises(InputError, match=r"MiB free, Label Studio needs \d+\. Make room, or name another disk"):
        environment.ready()
    assert not (environment.place().folder / "env").exists()


def test_a_failed_install_says_what_pip_said(
    installed: environment.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "make_venv", lambda _: None)
    (installed.folder / "ready").unlink()
    with pytest.raises(
        InputError, match=r"pip could not install Label Studio: no good\. Check the network.*install.log"
    ):
        environment.ready()
    monkeypatch.setattr(environment, "install", lambda _: None)
    with pytest.raises(InputError, match="Label Studio does not run: no good"):
        environment.ready()
    assert not installed.complete


def test_the_callers_variables_do_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEBUG", "PORT", "DATABASE_NAME", "HEARTEX_DEBUG", "LABEL_STUDIO_HOST", "http_proxy", "SENTRY_DSN"):
        monkeypatch.setenv(name, "leaks in")
    server.write_secret(tmp_path / "login.json", '{"user": "u", "password": "p", "token": "t"}')
    known = server.settings(tmp_path)
    assert "leaks in" not in known.values()
    assert known["LABEL_STUDIO_COLLECT_ANALYTICS"] == known["LABEL_STUDIO_LATEST_VERSION_CHECK"] == "false"
    assert known["LABEL_STUDIO_SENTRY_DSN"] == known["LABEL_STUDIO_FRONTEND_SENTRY_DSN"] == ""
    assert known["LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK"] == "true"
    assert known["HOME"] == known["LABEL_STUDIO_BASE_DATA_DIR"] == str(tmp_path)


# ---- the server


def test_a_first_start_makes_a_login_for_its_owner_alone(installed: environment.Environment, tmp_path: Path) -> None:
    folder = tmp_path / "captions" / ".server"
    server.prepare(folder)
    login = server.read_login(folder)
    assert len(login.token) == 40 and len(login.password) >= 16
    for path, mode in ((folder, 0o700), (folder / "pictures", 0o700), (folder / "login.json", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((folder / server.DATABASE).stat().st_mode) == 0o600
    (folder / server.DATABASE).write_text("half a user")
    server.prepare(folder)
    assert server.read_login(folder) == login
    assert (folder / server.DATABASE).read_bytes() == installed.database.read_bytes(), "begun anew"
    (folder / server.UNBORN).unlink()
    (folder / server.DATABASE).write_text("people's work")
    server.prepare(folder)
    assert (folder / server.DATABASE).read_text() == "people's work"


@pytest.mark.usefixtures("installed")
def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Label Studio ended at once: no good\. See .*server\.log"):
        server.start(tmp_path / ".server")
    assert server.find(tmp_path / ".server") is None
    assert not server.stop(tmp_path / ".server")


@pytest.mark.usefixtures("installed")
def test_a_server_that_is_about_to_end_is_not_taken_for_a_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As right after kill -9: the process is still listed, and gone a moment later."""
    folder = tmp_path / ".server"
    server.prepare(folder)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    dying = server.Server(folder, ended.pid, ports.any_free(), server.read_login(folder))
    monkeypatch.setattr(server, "find", lambda folder: dying)
    assert not server.wait(dying)
    with pytest.raises(InputError, match="Label Studio ended at once: no good"):  # what it was replaced by
        server.start(folder)


def test_a_busy_machine_is_waited_for_and_a_stranger_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer takes longest: Label Studio loads most of itself then."""
    here = server.Server(tmp_path, os.getpid(), 1, server.Login("u", "p", "t"))
    answers = iter([server.NOBODY, 200, server.NOBODY, 200, 200])
    monkeypatch.setattr(server, "ask", lambda *_: next(answers))
    monkeypatch.setattr(server, "POLL", 0)
    assert server.wait(here) and not list(answers)
    answers = iter([200, 401])
    with pytest.raises(InputError, match=r"does not know its own token \(HTTP 401\)\. Put the token"):
        server.wait(here)


@pytest.mark.parametrize("content", ["", "[]", '{"user": "u"}'])
def test_a_broken_login_is_told(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"login\.json: no such file\. Start the server"):
        server.read_login(tmp_path)
    (tmp_path / "login.json").write_text(content)
    with pytest.raises(InputError, match=r"login\.json: is not a login"):
        server.read_login(tmp_path)


@pytest.fixture
def lookalike(tmp_path: Path) -> Iterator[psutil.Process]:
    """A process with the command line of a server for tmp_path/.server."""
    program = tmp_path / "label-studio"
    program.write_text("import time; time.sleep(60)")
    folder = (tmp_path / ".server").resolve()
    command = [sys.executable, str(program), "start", "--data-dir", str(folder), "--port", "8123"]
    with subprocess.Popen(command) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_it_is_found_by_its_command_line(tmp_path: Path, lookalike: psutil.Process) -> None:
    folder = tmp_path / ".server"
    folder.mkdir()
    server.write_secret(folder / "login.json", '{"user": "u", "password": "p", "token": "t"}')
    while not (found := server.find(folder)):
        time.sleep(0.01)
    assert (found.pid, found.port, found.url) == (lookalike.pid, 8123, "http://127.0.0.1:8123")
    assert server.find(tmp_path / "another") is None
    assert server.port_of(psutil.Process(os.getpid()), folder.resolve()) is None
    assert server.stop(folder)
    assert not server.alive(lookalike.pid)
    assert server.find(folder) is None and not server.stop(folder)


# ---- ports


def test_a_taken_port_is_told_with_its_owner() -> None:
    with closing(socket.create_server((ports.HOST, 0))) as taken:
        port = taken.getsockname()[1]
        assert not ports.is_free(port)
        with pytest.raises(InputError, match=rf"--port: port {port} is taken by .* \(process {os.getpid()}\)"):
            next(ports.candidates(port, None))
        assert next(ports.candidates(None, port)) != port, "the last one is taken, so the next free one is"
        assert ports.listened_to(os.getpid()) is not None
    assert ports.is_free(port)
    assert next(ports.candidates(None, port)) == next(ports.candidates(port, None)) == port
    assert next(ports.candidates(0, None)) >= 1024


# ---- commands


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch([]) == dispatch(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in overview
        with pytest.raises(SystemExit) as ended:
            dispatch([name, "--help"])
        assert ended.value.code == 0 and f"annotate.py {name}" in capsys.readouterr().out


def test_a_typing_mistake_is_guessed() -> None:
    with pytest.raises(InputError, match=r"unknown command 'psuh', did you mean 'push'\?"):
        dispatch(["psuh"])
    with pytest.raises(InputError, match=r"--overlp: unknown flag, did you mean '--overlap'\?"):
        dispatch(["push", "--overlp", "0.1"])
    with pytest.raises(InputError, match="--overlap: '2' is not allowed"):
        dispatch(["push", "--overlap", "2"])


def test_help_and_mistakes_come_at_once() -> None:
    """Neither torch nor the SDK is loaded for them."""
    code = "import sys; from annotation.commands import dispatch, COMMANDS, module_of; import importlib\n"
    code += "[importlib.import_module(f'annotation.commands.{module_of(name)}') for name in COMMANDS]\n"
    code += "print({'torch', 'label_studio_sdk', 'httpx', 'scipy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_what_push_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from annotation.commands import push

    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a", "type": "water"}\n')
    with pytest.raises(InputError, match="--images none: no such folder"):
        push.settle(push.Options(images=Path("none")))
    one = push.settle(push.Options(images=Path("one")))
    assert (one.name, one.types, one.server) == ("one", ("water",), project.OWN)
    assert push.settle(push.Options(images=Path("two"), types=["a, b", "c"])).types == ("a", "b", "c")
    project.save(one)
    assert push.settle(push.Options()) == push.settle(push.Options(name="one")) == one
    assert push.settle(push.Options(name="one", images=Path("two"))).pictures == str(tmp_path / "two")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one").mkdir()
    with pytest.raises(InputError, match=r"captions/one is about .*/one\. Give --name with another name"):
        push.settle(push.Options(images=Path("elsewhere/one")))
    with pytest.raises(InputError, match=r"--url: one is on the server of `annotate\.py start`"):
        push.settle(push.Options(), "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"no project 'three'; allowed: one\. Give --images to make it"):
        push.settle(push.Options(name="three"))
    with pytest.raises(InputError, match="type 'a' is given twice"):
        push.settle(push.Options(images=Path("two"), types=["a,a"]))


# ---- the doctor


def test_the_doctor_says_what_to_do(
    installed: environment.Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".server"

    def wrong() -> dict[str, str]:
        return {finding.what: str(finding) for finding in doctor.examine(folder) if finding.fix}

    assert wrong().keys() == {"server"} and "never started" in wrong()["server"]
    server.prepare(folder)
    assert wrong().keys() == {"database", "server"}
    assert "put a copy from" in wrong()["database"] and "Run annotate.py start" in wrong()["server"]
    (folder / "login.json").chmod(0o644)
    assert "Run chmod 600" in wrong()["login"]
    with closing(socket.create_server((ports.HOST, 0))) as taken:
        (folder / "port").write_text(str(taken.getsockname()[1]))
        assert "is taken by" in wrong()["server"]
    (installed.folder / "ready").unlink()
    assert "is not whole. Run annotate.py start" in wrong()["environment"]
    monkeypatch.setattr(doctor, "LITTLE", 1 << 60)
    assert "Make room" in wrong()["disk"]
    assert "nobody answers" in str(doctor.examine(folder, "http://127.0.0.1:1", folder / "port")[0])


# ---- locks


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    code = f"from annotation.locks import locked; from pathlib import Path\nwith locked(Path({str(tmp_path / 'lock')!r})): print('held', flush=True); input()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as held:
        assert held.stdout is not None and held.stdout.readline() == b"held\n"
        held.kill()
    with locked(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()
