"""Copies of everything that people wrote: the database, and each project as JSON that any Label Studio can import."""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from annotation.client import Client
from annotation.server import DATABASE, Server
from data.files import replaced_folder

FOLDER = "backups"
KEPT = 10  # copies; older ones are taken away


def copy(folder: Path, running: Server | None) -> Path:
    """Copy the database of `folder` and, from a running server, its projects. Returns the new folder in backups/."""
    backups = folder / FOLDER
    backups.mkdir(mode=0o700, exist_ok=True)
    path = backups / time.strftime("%Y-%m-%d-%H%M%S")
    with replaced_folder(path) as beside:
        copy_database(folder / DATABASE, beside / DATABASE)
        if running is not None:
            with Client(running.url, running.token, own=running) as client:
                export(client, beside)
    for old in sorted(each for each in backups.iterdir() if not each.name.startswith("."))[:-KEPT]:
        shutil.rmtree(old)
    return path


def copy_database(source: Path, target: Path) -> None:
    """A copy that is whole even while the server writes."""
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
    target.chmod(0o600)


def export(client: Client, folder: Path) -> None:
    """Every project with its tasks and answers, touched or not, as NUMBER-TITLE.json."""
    projects = client.read(lambda sdk: list(sdk.projects.list(page_size=1000, include="id,title")))
    for each in tqdm(projects, desc="copying projects", unit="project", disable=None, leave=False):
        content = client.read(
            lambda sdk, number=each.id: b"".join(
                sdk.projects.exports.download_sync(id=number, export_type="JSON", download_all_tasks=True)
            )
        )
        (folder / f"{each.id}-{safe(str(each.title))}.json").write_bytes(content)


def safe(title: str) -> str:
    """A title as part of a file name: nothing in it that leads anywhere."""
    return re.sub(r"[^\w -]+", "_", title)[:60].strip() or "untitled"
