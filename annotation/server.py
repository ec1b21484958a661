"""The local Label Studio server: started on 127.0.0.1 for one folder, found again by its process, stopped.

captions/.server/            made by `annotate.py start`; readable by its owner only
    label_studio.sqlite3       all answers
    login.json                 user, password and token, generated here
    pictures/                  links to the pushed images: the only files that the server serves
    port  server.log  backups/

There is no file with a process id, which could be stale: the folder is on the server's command line.
"""

import http.client
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from annotation import environment
from annotation.config import SERVER_FOLDER
from annotation.environment import clean_variables, last_line, locked
from data.atomic_io import atomic_file, write_atomic
from data.errors import InputError
from data.progress import ProgressBar

DATABASE = "label_studio.sqlite3"
LOGIN = "login.json"
FIRST_START = "first-start"  # exists until the first start finishes: without it the user may be missing, so start over
LOG = "server.log"
IMAGES = "pictures"
USER = "annotator@example.com"  # example.com is reserved: no mail can reach anybody
START_TIMEOUT = 180.0  # seconds; a start takes 3, or 60 when the database of an older version is migrated
STOP_TIMEOUT = 15.0  # seconds before a server that does not stop is killed
POLL = 0.1
HOST = "127.0.0.1"
FIRST_PORT = 8080  # Label Studio's default
PORTS_TRIED = 20  # ports from FIRST_PORT on, before the system is asked for any


@dataclass(frozen=True)
class Login:
    user: str
    password: str
    token: str


@dataclass(frozen=True)
class Server:
    """A running server. Its token gives full access: never print it."""

    folder: Path
    pid: int
    port: int
    login: Login

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def images(self) -> Path:
        return self.folder / IMAGES


# ---- start


def start_server(
    folder: Path = SERVER_FOLDER, *, port: int | None = None, variables: Mapping[str, str] | None = None
) -> Server:
    """The running server of `folder`, else a new one. port: 0: any; None: the last or next free. Raises InputError."""
    folder = folder.resolve()
    environment.ensure_environment()
    with locked(folder / "lock"):
        server = find_server(folder)
        if server is not None and port not in {None, 0, server.port}:
            fix = "Stop it first: python annotation/annotate.py stop"
            raise InputError(f"the server already runs on port {server.port}", where=f"--port {port}", fix=fix)
        if server is None or not wait_until_healthy(server):  # a server that was found may be about to exit
            prepare_folder(folder)
            server = launch(folder, port, variables or {})
            if not wait_until_healthy(server):
                raise exited_error(folder)
        (folder / FIRST_START).unlink(missing_ok=True)
        return server


def prepare_folder(folder: Path) -> None:
    """What a first start needs: private folders, a login, and a copy of the empty database."""
    for path in (folder, folder / IMAGES):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    if not (folder / LOGIN).exists():
        login = Login(USER, secrets.token_urlsafe(12), secrets.token_hex(20))
        write_secret(folder / LOGIN, (json.dumps(asdict(login), indent=1) + "\n").encode())
    if (folder / FIRST_START).exists() or not (folder / DATABASE).exists():
        (folder / FIRST_START).touch()
        write_secret(folder / DATABASE, (environment.environment_folder() / environment.DATABASE).read_bytes())


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    mask = os.umask(0o077)
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
    finally:
        os.umask(mask)


def launch(folder: Path, port: int | None, variables: Mapping[str, str]) -> Server:
    """Start Label Studio on the first candidate port that it really listens on."""
    for candidate in candidate_ports(port, last_port(folder)):
        pid = spawn(folder, candidate, variables)
        if wait_for_port(pid, candidate, folder):
            write_atomic(folder / "port", f"{candidate}\n")
            return Server(folder, pid, candidate, read_login(folder))
        terminate(pid)
        if port:  # another program was faster
            check_port(port)
    raise AssertionError("there is always another port")


def spawn(folder: Path, port: int, variables: Mapping[str, str]) -> int:
    """Run Label Studio with a clean environment; a shell in between makes it outlive us. Returns its process id."""
    program = [str(environment.environment_folder() / environment.PROGRAM), "start", "--data-dir", str(folder)]
    program += ["--no-browser", "--internal-host", HOST, "--port", str(port)]
    shell = 'umask 077; log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'
    result = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", str(folder / LOG), *program],
        env=server_variables(folder) | dict(variables),
        cwd=folder, start_new_session=True, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return int(result.stdout)


def server_variables(folder: Path) -> dict[str, str]:
    """The server's environment variables. The login is passed this way because flags show in the process list."""
    login = read_login(folder)
    settings = {
        "USERNAME": login.user,
        "PASSWORD": login.password,
        "USER_TOKEN": login.token,
        "ENABLE_LEGACY_API_TOKEN": "true",  # only read when the first user is created
        "DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(folder / IMAGES),
        "LOG_LEVEL": "INFO",
    }
    return clean_variables(folder) | {f"LABEL_STUDIO_{name}": value for name, value in settings.items()}


def wait_for_port(pid: int, port: int, folder: Path) -> bool:
    """Wait until the process listens; False if on another port, which Label Studio picks when this one is taken."""
    started = time.monotonic()
    with ProgressBar(desc="starting Label Studio", bar_format="{desc} {elapsed}", disable=None) as bar:
        while time.monotonic() - started < START_TIMEOUT:
            if (actual := listening_port(pid)) is not None:
                return actual == port
            if not is_running(pid):
                raise exited_error(folder)
            time.sleep(POLL)
            bar.update()
    terminate(pid)
    raise InputError(f"Label Studio did not listen within {START_TIMEOUT:.0f} s", fix=f"See {folder / LOG}.")


def exited_error(folder: Path) -> InputError:
    last = last_line((folder / LOG).read_text(encoding="utf-8", errors="replace"))
    return InputError(f"Label Studio exited: {last}", fix=f"See {folder / LOG}.")


def wait_until_healthy(server: Server) -> bool:
    """Wait until the server is healthy and accepts our token, which proves that it is ours. False if it exited."""
    started = time.monotonic()
    while (status := token_status(server)) is None:
        if not is_running(server.pid):
            return False
        if time.monotonic() - started > START_TIMEOUT:
            fix = f"Run `annotate.py stop`, then start again; see {server.folder / LOG}."
            raise InputError("the server does not answer", where=server.url, fix=fix)
        time.sleep(POLL)
    if status != http.client.OK:
        fix = f"Copy the token from Account & Settings in Label Studio into {server.folder / LOGIN}."
        raise InputError(f"the server rejects its own token (HTTP {status})", where=server.url, fix=fix)
    return True


def token_status(server: Server) -> int | None:
    """None until the server is healthy, then the HTTP status it gives our token; a busy machine delays either."""
    healthy = http_status(server, "/health") == http.client.OK
    return http_status(server, "/api/current-user/whoami", server.login.token) if healthy else None


def http_status(server: Server, path: str, token: str = "") -> int | None:
    """The status of a GET request, None without an answer. Ignores proxies."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Token {token}"} if token else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


# ---- ports


def candidate_ports(requested: int | None, last: int | None) -> Iterator[int]:
    """Free ports, the last used one first, so that links keep working. requested: 0 for any. InputError if taken."""
    if requested:
        check_port(requested)
        yield requested
        return
    ports = [last] if last else []
    ports += range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if requested is None else []
    yield from (port for port in dict.fromkeys(ports) if is_free(port))
    while True:
        with closing(socket.create_server((HOST, 0))) as bound:
            port = int(bound.getsockname()[1])
        yield port


def check_port(port: int) -> None:
    """Raise InputError if `port` is taken."""
    if not is_free(port):
        fix = "Leave out --port to use the next free one, or stop that program."
        raise InputError(f"port {port} is taken by {port_owner(port)}", where="--port", fix=fix)


def is_free(port: int) -> bool:
    """Nobody answers on `port`, and this user may listen on it."""
    with closing(socket.socket()) as probe:
        if probe.connect_ex((HOST, port)) == 0:
            return False
    try:
        socket.create_server((HOST, port)).close()  # with SO_REUSEADDR: recently closed connections do not count
    except OSError:
        return False
    return True


def port_owner(port: int) -> str:
    """The program that listens on `port`, as far as this user may see."""
    try:
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        pids = [each.pid for each in listening if each.laddr and each.laddr[1] == port and each.pid]
        return f"{psutil.Process(pids[0]).name()} (process {pids[0]})" if pids else "another program"
    except psutil.Error:
        return "another program"


def listening_port(pid: int) -> int | None:
    """The port on which a process listens; None if it does not yet."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return None
    return next((each.laddr[1] for each in connections if each.laddr and each.status == psutil.CONN_LISTEN), None)


def last_port(folder: Path) -> int | None:
    try:
        return int((folder / "port").read_text())
    except (OSError, ValueError):
        return None


# ---- find and stop


def find_server(folder: Path = SERVER_FOLDER) -> Server | None:
    """The running server of `folder`, whoever started it; None if there is none."""
    folder = folder.resolve()
    for process in psutil.process_iter():
        if (port := server_port(process, folder)) is not None:
            return Server(folder, process.pid, port, read_login(folder))
    return None


def server_port(process: psutil.Process, folder: Path) -> int | None:
    """The port of a process that is this user's server of `folder`; else None."""
    try:
        command = process.cmdline()
        if "--data-dir" not in command or process.uids().real != os.getuid():
            return None
    except psutil.Error:  # it exited, or belongs to another user
        return None
    flags = dict(pairwise(command))
    is_program = any(Path(word).name == "label-studio" for word in command)
    return int(flags["--port"]) if is_program and flags["--data-dir"] == str(folder) else None


def read_login(folder: Path) -> Login:
    """The login of a server's first user. Raises InputError."""
    path = folder / LOGIN
    try:
        return Login(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, fix="Start the server: annotate.py start") from error
    except (ValueError, TypeError) as error:
        raise InputError("is not a login with user, password and token", where=path, fix="Repair the file.") from error


def stop_server(folder: Path = SERVER_FOLDER) -> bool:
    """Stop the server of `folder`; False if none was running."""
    with locked(folder.resolve() / "lock"):
        server = find_server(folder)
        if server is not None:
            terminate(server.pid)
        return server is not None


def terminate(pid: int) -> None:
    """Terminate a process; kill it if that takes too long."""
    try:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(STOP_TIMEOUT)
    except psutil.TimeoutExpired:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return


def is_running(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
