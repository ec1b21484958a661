"""Diagnosis of everything between an image folder and an annotator's screen, step by step."""

import http.client
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from annotation import server as servers
from annotation.client import TESTED_VERSIONS, Client, connect
from annotation.environment import VERSION, environment_folder, is_installed
from annotation.project import Project, load_project, open_screens, project_names
from data.errors import InputError

LOW_DISK = 1 << 30  # bytes


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was checked. fix: what to do; empty if it works."""

    what: str
    result: str
    fix: str = ""

    def __str__(self) -> str:
        mark = "WRONG " if self.fix else "ok    "
        return f"{mark}{self.what:<13}{self.result}" + (f". {self.fix}" if self.fix else "")


def diagnose(folder: Path, url: str | None = None, token_file: Path | None = None) -> list[Diagnosis]:
    """Check the local server, or the one at `url`; a step that depends on a broken one is left out."""
    if url:
        return list(catch("server", lambda: check_token(lambda: connect(url, token_file))))
    found = [check_environment(), check_disk(folder)]
    if not (folder / servers.DATABASE).exists():
        return [*found, Diagnosis("server", f"never started in {folder}", "Run annotate.py start.")]
    found += [check_login(folder), check_database(folder)]
    server = servers.find_server(folder)
    if server is None:
        return [*found, check_port_of_stopped(folder)]
    found += list(catch("server", lambda: check_server(server)))
    if any(each.fix for each in found if each.what == "server"):
        return found
    for name in project_names():
        found += catch(name, lambda name=name: check_project(load_project(name), server))
    return found


def catch(what: str, check: Callable[[], Iterator[Diagnosis]]) -> Iterator[Diagnosis]:
    """An error of a step is a diagnosis too."""
    try:
        yield from check()
    except InputError as error:
        yield Diagnosis(what, f"{error.where}: {error.what}" if error.where else error.what, error.fix or "See above.")


# ---- on this machine


def check_environment() -> Diagnosis:
    folder = environment_folder()
    if is_installed(folder):
        return Diagnosis("environment", f"Label Studio {VERSION} in {folder}")
    return Diagnosis("environment", f"{folder} is not complete", "Run annotate.py start, which installs it.")


def check_disk(folder: Path) -> Diagnosis:
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return Diagnosis("disk", f"{free >> 20} MiB free for {folder}", "Free some space." if free < LOW_DISK else "")


def check_login(folder: Path) -> Diagnosis:
    path = folder / servers.LOGIN
    try:
        servers.read_login(folder)
    except InputError as error:
        return Diagnosis("login", str(error), "Restore it from a backup, or start in a new folder.")
    if path.stat().st_mode & 0o077:
        return Diagnosis("login", f"others may read {path}", f"Run chmod 600 {path}.")
    return Diagnosis("login", f"{path}, readable by you only")


def check_database(folder: Path) -> Diagnosis:
    path = folder / servers.DATABASE
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            (result,) = database.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        result = str(error)
    size = f"{path} ({path.stat().st_size >> 10} KiB)"
    if result == "ok":
        return Diagnosis("database", f"{size}, intact")
    fix = f"Stop the server and replace it by a copy from {folder}/backups."
    return Diagnosis("database", f"{size}: {result}", fix)


def check_port_of_stopped(folder: Path) -> Diagnosis:
    """Not running; name the program that has its port."""
    port, note = servers.last_port(folder), ""
    if port and not servers.is_free(port):
        note = f"; its port {port} is taken by {servers.port_owner(port)}, so it will use another one"
    return Diagnosis("server", f"not running{note}", "Run annotate.py start.")


# ---- on the server


def check_server(server: servers.Server) -> Iterator[Diagnosis]:
    """Whether it answers and accepts our token."""
    if servers.http_status(server, "/health") != http.client.OK:
        fix = f"Run annotate.py stop, then start; see {server.folder / servers.LOG}."
        yield Diagnosis("server", f"{server.url} does not answer (process {server.pid})", fix)
        return
    yield Diagnosis("server", f"{server.url} answers (process {server.pid})")
    yield from check_token(lambda: connect(folder=server.folder))


def check_token(connected: Callable[[], Client]) -> Iterator[Diagnosis]:
    with connected() as client:
        user = client.retry(lambda sdk: sdk.users.whoami())
        version = str(client.retry(lambda sdk: sdk.versions.get()).model_dump().get("release") or "of unknown version")
    kind = "legacy access token" if client.legacy_token else "personal access token, refreshed automatically"
    yield Diagnosis("token", f"{kind} of {user.email}")
    tested = version.startswith(TESTED_VERSIONS)
    yield Diagnosis("version", f"Label Studio {version}" + ("" if tested else f"; tested with {TESTED_VERSIONS}x"))


def check_project(project: Project, server: servers.Server) -> Iterator[Diagnosis]:
    """Whether its screens exist, and the browser can get its images."""
    if project.url:
        yield Diagnosis(project.name, f"is on {project.url}; check it with --url")
        return
    with connect(folder=server.folder) as client:
        screens = open_screens(client, project)
    numbered = ", ".join(f"{name} ({each['id']})" for name, each in screens.items())
    yield Diagnosis(project.name, f"screens {numbered}")
    yield check_images(project, server)


def check_images(project: Project, server: servers.Server) -> Diagnosis:
    """Get one image as the browser would; count broken links."""
    push = f"Run annotate.py push --name {project.name}."
    links = sorted((server.images / project.key).glob("*"))
    broken = [link for link in links if not link.exists()]
    if not links:
        return Diagnosis(project.name, "no image is linked", push)
    if broken:
        fix = f"Move them back to {project.pictures}, or push from where they are now: --images FOLDER."
        return Diagnosis(project.name, f"{len(broken)} of {len(links)} images have moved", fix)
    status = servers.http_status(server, f"/data/local-files/?d={project.key}/{links[0].name}", server.login.token)
    if status == http.client.OK:
        return Diagnosis(project.name, f"{len(links)} images, the first one is served")
    why = "their storage row is missing" if status == http.client.NOT_FOUND else f"HTTP {status}"
    return Diagnosis(project.name, f"images are not served: {why}", push)
