"""What may be wrong between a folder of pictures and an annotator's screen, looked at piece by piece."""

from __future__ import annotations

import http.client
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from annotation import environment, ports, project
from annotation import server as servers
from annotation.client import VERSIONS, Client, connect
from annotation.project import Project
from annotation.server import Server
from data.errors import InputError

LITTLE = 1 << 30  # bytes of disk under which work is at risk


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. fix: what to do; empty if all is well."""

    what: str
    said: str
    fix: str = ""

    def __str__(self) -> str:
        mark = "WRONG " if self.fix else "ok    "
        return f"{mark}{self.what:<13}{self.said}" + (f". {self.fix}" if self.fix else "")


def examine(folder: Path, url: str | None = None, token_file: Path | None = None) -> list[Finding]:
    """Look at the local server, or at somebody's; a step that depends on a broken one is left out."""
    if url:
        return list(guarded("server", lambda: look_at_foreign(url, token_file)))
    findings = [installed(), disk(folder)]
    if not (folder / servers.DATABASE).exists():
        return [*findings, Finding("server", f"never started in {folder}", "Run annotate.py start.")]
    findings += [login(folder), database(folder)]
    server = servers.find(folder)
    if server is None:
        return [*findings, stopped(folder)]
    findings += list(guarded("server", lambda: look_at(server)))
    if any(finding.fix for finding in findings if finding.what == "server"):
        return findings
    for name in project.names():
        findings += guarded(name, lambda name=name: look_at_project(project.load(name), server))
    return findings


def guarded(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """An error of a step is a finding too."""
    try:
        yield from look()
    except InputError as error:
        yield Finding(what, f"{error.where}: {error.what}" if error.where else error.what, error.fix or "See above.")


# ---- on this machine


def installed() -> Finding:
    found = environment.place()
    if found.complete:
        return Finding("environment", f"Label Studio {environment.VERSION} in {found.folder}")
    state = "is not whole" if found.folder.exists() else "is not there"
    return Finding("environment", f"{found.folder} {state}", "Run annotate.py start, which makes it.")


def disk(folder: Path) -> Finding:
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    return Finding("disk", f"{free >> 20} MiB free for {folder}", "Make room." if free < LITTLE else "")


def login(folder: Path) -> Finding:
    path = folder / servers.LOGIN
    try:
        servers.read_login(folder)
    except InputError as error:
        return Finding("login", str(error), "Restore it from where you keep it, or start in a new folder.")
    if path.stat().st_mode & 0o077:
        return Finding("login", f"others may read {path}", f"Run chmod 600 {path}.")
    return Finding("login", f"{path}, for you alone")


def database(folder: Path) -> Finding:
    path = folder / servers.DATABASE
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
            (said,) = opened.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    size = f"{path} ({path.stat().st_size >> 10} KiB)"
    if said == "ok":
        return Finding("database", f"{size}, sound")
    return Finding("database", f"{size}: {said}", f"Stop the server and put a copy from {folder}/backups in its place.")


def stopped(folder: Path) -> Finding:
    """Not running; say who has its port meanwhile."""
    port = servers.last_port(folder)
    taken = port is not None and not ports.is_free(port)
    said = f"; its port {port} is taken by {ports.owner(port)}, so it will get another one" if taken and port else ""
    return Finding("server", f"not running{said}", "Run annotate.py start.")


# ---- on the server


def look_at(server: Server) -> Iterator[Finding]:
    """Does it answer, is it ours, does it take the token?"""
    status = servers.ask(server, "/health")
    if status != http.client.OK:
        fix = f"Run annotate.py stop, then start; see {server.folder / servers.LOG}."
        yield Finding("server", f"{server.url} does not answer (process {server.pid})", fix)
        return
    yield Finding("server", f"{server.url} answers (process {server.pid})")
    with connect(folder=server.folder) as client:
        yield from token(client)


def look_at_foreign(url: str, token_file: Path | None) -> Iterator[Finding]:
    with connect(url, token_file) as client:
        yield from token(client)


def token(client: Client) -> Iterator[Finding]:
    """Whose token it is, and which Label Studio answers to it."""
    who = client.read(lambda sdk: sdk.users.whoami())
    kind = "access token of 40 letters" if client.legacy else "personal access token, which is refreshed by itself"
    yield Finding("token", f"{kind}, of {who.email}")
    version = client.version()
    tried = version.startswith(VERSIONS)
    yield Finding("version", f"Label Studio {version}" + ("" if tried else f"; tried were {VERSIONS}x"))


def look_at_project(found: Project, server: Server) -> Iterator[Finding]:
    """Are its screens there, and can the browser get its pictures?"""
    if found.server != project.OWN:
        yield Finding(found.name, f"is on {found.server}; look there with --url")
        return
    with connect(folder=server.folder) as client:
        screens = project.open_project(client, found)
    numbered = ", ".join(f"{name} ({each['id']})" for name, each in screens.items())
    yield Finding(found.name, f"screens {numbered}")
    yield pictures(found, server)


def pictures(found: Project, server: Server) -> Finding:
    """Get one picture as the browser would; links that lead nowhere are counted."""
    push = f"Run annotate.py push --name {found.name}."
    links = sorted((server.pictures / found.key).glob("*"))
    broken = [link for link in links if not link.exists()]
    if not links:
        return Finding(found.name, "no picture is linked", push)
    if broken:
        fix = f"Bring them back to {found.pictures}, or push from where they are now: --images FOLDER."
        return Finding(found.name, f"{len(broken)} of {len(links)} pictures are not where they were", fix)
    status = servers.ask(server, f"/data/local-files/?d={found.key}/{links[0].name}", server.token)
    if status == http.client.OK:
        return Finding(found.name, f"{len(links)} pictures, the first one is shown")
    why = "their storage row is missing" if status == http.client.NOT_FOUND else f"HTTP {status}"
    return Finding(found.name, f"pictures are not shown: {why}", push)
