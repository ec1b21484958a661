"""The local server without starting one: its environment, ports, login, commands and the doctor."""

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

from annotation import cli, doctor, environment, project, server
from annotation.config import ImageOptions
from data.errors import InputError

ROOT = Path(__file__).parents[2]
LOGIN = b'{"user": "u", "password": "p", "token": "t"}'


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment whose files exist, though none of them is Label Studio."""
    monkeypatch.setenv("ATELIER_LABEL_STUDIO", str(tmp_path / "environments"))
    folder = environment.environment_folder()
    (folder / "env" / "bin").mkdir(parents=True)
    for part in (environment.PROGRAM, environment.PYTHON, environment.DATABASE, environment.READY):
        (folder / part).write_text("#!/bin/sh\necho no good >&2; exit 3\n")
        (folder / part).chmod(0o755)
    return folder


# ---- the environment


def test_versions_are_pinned() -> None:
    pins = environment.PINS.read_text().splitlines()
    assert f"label-studio=={environment.VERSION}" in pins
    assert all("==" in pin for pin in pins)


def test_an_incomplete_environment_is_not_used(installed: Path) -> None:
    environment.ensure_environment()
    (installed / environment.PYTHON).unlink()
    (installed / environment.PYTHON).symlink_to(installed / "a python that was upgraded away")
    assert not environment.is_installed(installed)


def test_a_full_disk_is_reported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_LABEL_STUDIO", str(tmp_path))
    monkeypatch.setattr(environment, "DISK_SPACE", 1 << 60)
    with pytest.raises(InputError, match="MiB free") as error:
        environment.ensure_environment()
    assert "ATELIER_LABEL_STUDIO" in str(error.value.fix)
    assert not (environment.environment_folder() / "env").exists()


def test_a_failed_installation_shows_the_last_line(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "create_venv", lambda _: None)
    (installed / environment.READY).unlink()
    with pytest.raises(InputError, match=r"pip .*no good") as error:
        environment.ensure_environment()
    assert "install.log" in str(error.value.fix)
    monkeypatch.setattr(environment, "pip_install", lambda _: None)
    with pytest.raises(InputError, match="no good") as error:
        environment.ensure_environment()
    assert error.value.where == installed / environment.PROGRAM
    assert not environment.is_installed(installed)


def test_the_callers_variables_do_not_leak_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEBUG", "PORT", "DATABASE_NAME", "HEARTEX_DEBUG", "LABEL_STUDIO_HOST", "http_proxy", "SENTRY_DSN"):
        monkeypatch.setenv(name, "leaks in")
    server.write_secret(tmp_path / "login.json", LOGIN)
    variables = server.server_variables(tmp_path)
    assert "leaks in" not in variables.values()
    assert variables["LABEL_STUDIO_COLLECT_ANALYTICS"] == variables["LABEL_STUDIO_LATEST_VERSION_CHECK"] == "false"
    assert variables["LABEL_STUDIO_SENTRY_DSN"] == variables["LABEL_STUDIO_FRONTEND_SENTRY_DSN"] == ""
    assert variables["LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK"] == "true"
    assert variables["HOME"] == variables["LABEL_STUDIO_BASE_DATA_DIR"] == str(tmp_path)


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    code = "import sys; from annotation.environment import locked; from pathlib import Path\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None and held.stdout.readline() == b"held\n"
        held.kill()
    with environment.locked(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()


# ---- the server


def test_a_first_start_makes_a_private_login(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "captions" / ".server"
    server.prepare_folder(folder)
    login = server.read_login(folder)
    assert len(login.token) == 40 and len(login.password) >= 16
    for path, mode in ((folder, 0o700), (folder / "pictures", 0o700), (folder / "login.json", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((folder / server.DATABASE).stat().st_mode) == 0o600
    (folder / server.DATABASE).write_text("half a user")
    server.prepare_folder(folder)
    assert server.read_login(folder) == login
    assert (folder / server.DATABASE).read_bytes() == (installed / environment.DATABASE).read_bytes(), "started over"
    (folder / server.FIRST_START).unlink()
    (folder / server.DATABASE).write_text("people's work")
    server.prepare_folder(folder)
    assert (folder / server.DATABASE).read_text() == "people's work"


@pytest.mark.usefixtures("installed")
def test_a_server_that_exits_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no good") as error:
        server.start_server(tmp_path / ".server")
    assert "server.log" in str(error.value.fix)
    assert server.find_server(tmp_path / ".server") is None
    assert not server.stop_server(tmp_path / ".server")


@pytest.mark.usefixtures("installed")
def test_a_server_that_is_about_to_exit_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As right after kill -9: the process is still listed, and gone a moment later."""
    folder = tmp_path / ".server"
    server.prepare_folder(folder)
    with subprocess.Popen([sys.executable, "-c", ""]) as exited:
        pass
    dying = server.Server(folder, exited.pid, next(server.candidate_ports(0, None)), server.read_login(folder))
    monkeypatch.setattr(server, "find_server", lambda folder: dying)
    assert not server.wait_until_healthy(dying)
    with pytest.raises(InputError, match="no good"):  # its replacement
        server.start_server(folder)


def test_a_busy_server_is_waited_for_and_a_stranger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer takes longest: Label Studio loads most of itself then."""
    here = server.Server(tmp_path, os.getpid(), 1, server.Login("u", "p", "t"))
    answers = iter([None, 200, None, 200, 200])
    monkeypatch.setattr(server, "http_status", lambda *_: next(answers))
    monkeypatch.setattr(server, "POLL", 0)
    assert server.wait_until_healthy(here) and not list(answers)
    answers = iter([200, 401])
    with pytest.raises(InputError, match="HTTP 401") as error:
        server.wait_until_healthy(here)
    assert "login.json" in str(error.value.fix)


def test_a_broken_login_is_reported(tmp_path: Path) -> None:
    for content in (None, "", "[]", '{"user": "u"}'):
        if content is not None:
            (tmp_path / "login.json").write_text(content)
        with pytest.raises(InputError) as error:
            server.read_login(tmp_path)
        assert error.value.where == tmp_path / "login.json" and error.value.fix


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


def test_a_server_is_found_by_its_command_line(tmp_path: Path, lookalike: psutil.Process) -> None:
    folder = tmp_path / ".server"
    folder.mkdir()
    server.write_secret(folder / "login.json", LOGIN)
    while not (found := server.find_server(folder)):
        time.sleep(0.01)
    assert (found.pid, found.port, found.url) == (lookalike.pid, 8123, "http://127.0.0.1:8123")
    assert server.find_server(tmp_path / "another") is None
    assert server.server_port(psutil.Process(os.getpid()), folder.resolve()) is None
    assert server.stop_server(folder)
    assert not server.is_running(lookalike.pid)
    assert server.find_server(folder) is None and not server.stop_server(folder)


def test_a_taken_port_names_its_owner() -> None:
    with closing(socket.create_server((server.HOST, 0))) as taken:
        port = taken.getsockname()[1]
        assert not server.is_free(port)
        with pytest.raises(InputError, match=rf"{port} .*\(process {os.getpid()}\)") as error:
            next(server.candidate_ports(port, None))
        assert error.value.where == "--port"
        assert next(server.candidate_ports(None, port)) != port, "the last one is taken, so the next free one"
        assert server.listening_port(os.getpid()) is not None
    assert server.is_free(port)
    assert next(server.candidate_ports(None, port)) == next(server.candidate_ports(port, None)) == port
    assert next(server.candidate_ports(0, None)) >= 1024


# ---- commands


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch([]) == cli.dispatch(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name} " in overview
        with pytest.raises(SystemExit) as exit_:
            cli.dispatch([name, "--help"])
        assert exit_.value.code == 0 and f"annotate.py {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "where", "near"),
    [(["psuh"], "annotate.py", "'push'"), (["push", "--overlp", "0.1"], "--overlp", "'--overlap'"),
     (["push", "--overlap", "2"], "--overlap", "")],
)  # fmt: skip
def test_typing_mistakes(command: list[str], where: str, near: str) -> None:
    with pytest.raises(InputError) as error:
        cli.dispatch(command)
    assert error.value.where == where and near in str(error.value)


def test_help_loads_neither_torch_nor_the_sdk() -> None:
    code = "import sys, annotation.cli\nprint({'torch', 'label_studio_sdk', 'httpx', 'scipy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_which_project_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(url: str | None = None, **options: object) -> project.Project:
        return cli.choose_project(ImageOptions.model_validate(options), url)

    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a", "type": "water"}\n')
    one = choose(images="one")
    assert (one.name, one.types, one.server) == ("one", ("water",), project.LOCAL)
    assert choose(images="two", types=["a, b", "c"]).types == ("a", "b", "c")
    project.save_project(one)
    assert choose() == choose(name="one") == one
    assert choose(name="one", images="two").pictures == str(tmp_path / "two")
    (tmp_path / "elsewhere" / "one").mkdir(parents=True)
    for options, where in (
        ({"images": "none"}, "--images none"),
        ({"images": "elsewhere/one"}, "--images elsewhere/one"),  # the name is taken by another folder's project
        ({"url": "http://127.0.0.1:1"}, "--url"),  # it is on the local server
        ({"name": "three"}, "--name"),
        ({"images": "two", "types": ["a,a"]}, None),
    ):
        with pytest.raises(InputError) as error:
            choose(**options)
        assert error.value.where == where


# ---- the doctor


def test_the_doctor_says_what_to_do(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".server"

    def wrong() -> dict[str, str]:
        return {each.what: str(each) for each in doctor.diagnose(folder) if each.fix}

    assert wrong().keys() == {"server"}
    server.prepare_folder(folder)
    assert wrong().keys() == {"database", "server"}
    assert "backups" in wrong()["database"] and "annotate.py start" in wrong()["server"]
    (folder / "login.json").chmod(0o644)
    assert "chmod 600" in wrong()["login"]
    with closing(socket.create_server((server.HOST, 0))) as taken:
        (folder / "port").write_text(str(taken.getsockname()[1]))
        assert "is taken by" in wrong()["server"]
    (installed / environment.READY).unlink()
    assert "annotate.py start" in wrong()["environment"]
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 60)
    assert "disk" in wrong()
    assert doctor.diagnose(folder, "http://127.0.0.1:1", folder / "port")[0].fix
