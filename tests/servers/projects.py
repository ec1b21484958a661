"""Projects to try the browser on, created as `annotate.py push` creates them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from annotation import images, project, push
from annotation.client import Client
from annotation.drafts import Draft
from annotation.server import Server, start_server, stop_server
from data import sample_set

Screens = dict[str, int]  # screen -> number of its Label Studio project


class MakeProject(Protocol):
    """What push_pictures does, on a given server."""

    def __call__(
        self, *, count: int = ..., drafts: Mapping[str, str] = ..., types: Sequence[str] = ..., folder: Path = ...
    ) -> Screens: ...


@contextmanager
def running_server(folder: Path, variables: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server for the length of a block, on any free port."""
    server = start_server(folder, port=0, variables=variables)
    try:
        yield server
    finally:
        stop_server(folder)


def push_pictures(
    client: Client,
    *,
    folder: Path,
    count: int = 4,
    drafts: Mapping[str, str] | None = None,
    types: Sequence[str] = sample_set.TYPES,
    name: str = "",
) -> Screens:
    """Push the first `count` pictures of a folder, in the order of their names, to screens that nobody touched yet.

    drafts: file name -> text; a picture without one gets an empty draft.
    """
    samples, formats, _ = images.examine_folder(folder)
    offered = {each.sha256: Draft((drafts or {}).get(each.annotation.file_name, ""), "a test", 0.5) for each in samples}
    name = name or f"try {len(project.list_projects(client))}"
    made = project.create_screens(client, project.new_project(name, project.LOCAL, folder, types))
    push.push(client, made, samples[:count], formats, drafts=offered)
    return made.screens
