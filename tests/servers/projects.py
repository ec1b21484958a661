"""Projects for the browser to be tried on, made as `annotate.py push` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from annotation import intake, project, push
from annotation.client import Client
from data import sample_set

Screens = dict[str, int]  # screen -> number of its Label Studio project


class MakeProject(Protocol):
    """What push_pictures does, on a given server."""

    def __call__(
        self, *, count: int = ..., drafts: Mapping[str, str] = ..., types: Sequence[str] = ..., folder: Path = ...
    ) -> Screens: ...


@dataclass(frozen=True)
class Offered:
    """A draft."""

    text: str
    source: str = "a test"
    score: float = 0.5


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
    samples, formats, _ = intake.examine(folder)
    offered = {each.sha256: Offered((drafts or {}).get(each.annotation.file_name, "")) for each in samples}
    name = name or f"try {len(project.listed(client))}"
    made = project.make_screens(client, project.new(name, project.OWN, folder, types))
    push.push(client, made, samples[:count], formats, drafts=offered)
    return made.screens
