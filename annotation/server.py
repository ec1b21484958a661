"""The local Label Studio server: started on 127.0.0.1 for one folder, found again by its process, stopped.

captions/.server/            made by `annotate.py start`; nobody but its owner may look in
    label_studio.sqlite3       everything that people wrote
    login.json                 user, password and token, made here
    pictures/                  links to the pictures that were pushed: the only files that the server shows
    port  server.log  backups/

There is no file with a process id, which could be stale: the folder is on the server's command line.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import psutil
from tqdm import tqdm

from annotation import environment, ports
from annotation.environment import clean_variables, last_line
from annotation.locks import locked
from data.errors import InputError
from data.files import replaced_file, write_atomic

FOLDER = Path("captions") / ".server"
DATABASE = "label_studio.sqlite3"
LOGIN = "login.json"
UNBORN = "first-start"  # there until a first start came to its end: the user may be half made, so begin again
LOG = "server.log"
PICTURES = "pictures"
USER = "annotator@example.com"  # example.com is nobody's: no mail can go astray
PATIENCE = 180.0  # seconds for a start; it takes 3, and 60 when a database of an older version is migrated
STOP_PATIENCE = 15.0  # seconds until a server that does not stop is killed
POLL = 0.1
NOBODY = 0  # instead of an HTTP status: there was no answer


@dataclass(frozen=True)
class Login:
    """What the server's first user was made with."""

    user: str
    password: str
    token: str


@dataclass(frozen=True)
class Server:
    """A running server. Its token opens everything: never print it."""

    folder: Path
    pid: int
    port: int
    login: Login

    @property
    def url(self) -> str:
        return f"http://{ports.HOST}:{self.port}"

    @property
    def token(self) -> str:
        return self.login.token

    @property
    def pictures(self) -> Path:
        return self.folder / PICTURES


# ---- start


def start(folder: Path = FOLDER, *, port: int | None = None, variables: Mapping[str, str] | None = None) -> Server:
    """The server of `folder`: the running one, else a new one. Raises InputError if none can be had.

    port: a number, 0 for any, None for the last one or the next free. variables: more for its environment (tests).
    """
    folder = folder.resolve()
    environment.ready()
    with locked(folder / "lock"):
        server = find(folder)
        if server is not None and port not in {None, 0, server.port}:
            fix = "Stop it first: python annotation/annotate.py stop"
            raise InputError(f"the server runs already, on port {server.port}", where=f"--port {port}", fix=fix)
        if server is None or not wait(server):  # one that was found may be about to end
            prepare(folder)
            server = launch(folder, port, variables or {})
            if not wait(server):
                raise ended(folder)
        (folder / UNBORN).unlink(missing_ok=True)
        return server


def prepare(folder: Path) -> None:
    """What a first start needs: closed folders, a login, and a copy of the empty database."""
    for part in (folder, folder / PICTURES):
        part.mkdir(parents=True, exist_ok=True)
        part.chmod(0o700)
    if not (folder / LOGIN).exists():
        login = Login(USER, secrets.token_urlsafe(12), secrets.token_hex(20))
        write_secret(folder / LOGIN, json.dumps(asdict(login), indent=1) + "\n")
    if (folder / UNBORN).exists() or not (folder / DATABASE).exists():
        (folder / UNBORN).touch()
        write_secret(folder / DATABASE, environment.place().database.read_bytes())


def write_secret(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    mask = os.umask(0o077)
    try:
        with replaced_file(path) as beside:
            beside.write_bytes(content.encode() if isinstance(content, str) else content)
    finally:
        os.umask(mask)


def launch(folder: Path, port: int | None, variables: Mapping[str, str]) -> Server:
    """Start the program on the first port where it really comes to listen."""
    for candidate in ports.candidates(port, last_port(folder)):
        pid = spawn(folder, candidate, variables)
        if listening(pid, candidate, folder):
            write_atomic(folder / "port", f"{candidate}\n")
            return Server(folder, pid, candidate, read_login(folder))
        end(pid)
        if port:  # somebody was faster
            ports.check_free(port)
    raise AssertionError("there is always another port")


def spawn(folder: Path, port: int, variables: Mapping[str, str]) -> int:
    """The program in a session of its own, with a clean environment. Returns its process id.

    A shell in between leaves it to the system's first process, so that it outlives this one without a trace here.
    """
    program = [str(environment.place().program), "start", "--data-dir", str(folder), "--no-browser"]
    program += ["--internal-host", ports.HOST, "--port", str(port)]
    shell = 'umask 077; log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'
    command = ["/bin/sh", "-c", shell, "sh", str(folder / LOG), *program]
    known = settings(folder) | dict(variables)
    started = subprocess.run(
        command, env=known, cwd=folder, start_new_session=True, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(started.stdout)


def settings(folder: Path) -> dict[str, str]:
    """The server's environment variables. The login goes this way because flags show in the list of processes."""
    login = read_login(folder)
    ours = {
        "USERNAME": login.user,
        "PASSWORD": login.password,
        "USER_TOKEN": login.token,
        "ENABLE_LEGACY_API_TOKEN": "true",  # read when the first user is made, never again
        "DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(folder / PICTURES),
        "LOG_LEVEL": "INFO",
    }
    return clean_variables(folder) | {f"LABEL_STUDIO_{name}": value for name, value in ours.items()}


def listening(pid: int, port: int, folder: Path) -> bool:
    """Wait until the process listens; False if it took another port, as Label Studio does when this one is taken."""
    waited_from = time.monotonic()
    with tqdm(desc="starting Label Studio", bar_format="{desc} {elapsed}", disable=None, leave=False) as bar:
        while time.monotonic() - waited_from < PATIENCE:
            if (got := ports.listened_to(pid)) is not None:
                return got == port
            if not alive(pid):
                raise ended(folder)
            time.sleep(POLL)
            bar.update()
    end(pid)
    raise InputError(f"Label Studio did not listen within {PATIENCE:.0f} s", fix=f"See {folder / LOG}.")


def ended(folder: Path) -> InputError:
    """The program came to its end instead of serving."""
    said = last_line((folder / LOG).read_text(encoding="utf-8", errors="replace"))
    return InputError(f"Label Studio ended at once: {said}", fix=f"See {folder / LOG}.")


def wait(server: Server) -> bool:
    """Wait until the server is healthy, and proves that it is ours: it must know our token. False if it ended."""
    waited_from = time.monotonic()
    while (status := health(server)) == NOBODY:
        if not alive(server.pid):
            return False
        if time.monotonic() - waited_from > PATIENCE:
            fix = f"Run `annotate.py stop`, then start again; see {server.folder / LOG}."
            raise InputError("the server does not answer", where=server.url, fix=fix)
        time.sleep(POLL)
    if status != http.client.OK:
        fix = f"Put the token that Label Studio shows under Account & Settings into {server.folder / LOGIN}."
        raise InputError(f"the server does not know its own token (HTTP {status})", where=server.url, fix=fix)
    return True


def health(server: Server) -> int:
    """NOBODY until the server is healthy, then what it says to its own token; a busy machine is slow with either."""
    healthy = ask(server, "/health") == http.client.OK
    return ask(server, "/api/current-user/whoami", server.token) if healthy else NOBODY


def ask(server: Server, path: str, token: str = "") -> int:
    """The status of a GET request, NOBODY if there is no answer. No proxy has a say in it."""
    connection = http.client.HTTPConnection(ports.HOST, server.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Token {token}"} if token else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return NOBODY
    finally:
        connection.close()


# ---- find


def find(folder: Path = FOLDER) -> Server | None:
    """The running server of `folder`, whoever started it; None if there is none."""
    folder = folder.resolve()
    for process in psutil.process_iter():
        port = port_of(process, folder)
        if port is not None:
            return Server(folder, process.pid, port, read_login(folder))
    return None


def port_of(process: psutil.Process, folder: Path) -> int | None:
    """The port of a process that is the server of `folder`, run by this user; else None."""
    try:
        command = process.cmdline()
        if "--data-dir" not in command or process.uids().real != os.getuid():
            return None
    except psutil.Error:  # it ended, or is another user's
        return None
    words = dict(pairwise(command))
    program = any(Path(word).name == "label-studio" for word in command)
    return int(words["--port"]) if program and words["--data-dir"] == str(folder) else None


def read_login(folder: Path) -> Login:
    """The login of a server's first user. Raises InputError."""
    path = folder / LOGIN
    try:
        return Login(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, fix="Start the server: annotate.py start") from error
    except (ValueError, TypeError) as error:
        raise InputError("is not a login: user, password and token", where=path, fix="Mend the file.") from error


def last_port(folder: Path) -> int | None:
    """The port that was used last."""
    try:
        return int((folder / "port").read_text())
    except (OSError, ValueError):
        return None


# ---- stop


def stop(folder: Path = FOLDER) -> bool:
    """End the server of `folder`; False if none was running. Everything that was written stays."""
    with locked(folder.resolve() / "lock"):
        server = find(folder)
        if server is not None:
            end(server.pid)
        return server is not None


def end(pid: int) -> None:
    """Ask a process to end, and kill it if it does not."""
    try:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(STOP_PATIENCE)
    except psutil.TimeoutExpired:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody asked after does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def running(folder: Path, *, variables: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server for the length of a block, on any free port: `with running(folder) as server: server.url`."""
    server = start(folder, port=0, variables=variables)
    try:
        yield server
    finally:
        stop(folder)
