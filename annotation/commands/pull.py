"""Fetch what people wrote into captions/NAME/history.jsonl: what changed since the last pull, and nothing twice."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from annotation.commands.push import FOLDER
from data.options import Options as Flags

if TYPE_CHECKING:
    from annotation.pull import Pulled


class Options(Flags):
    """What `annotate.py pull` can be told."""

    name: str | None = None
    """project, a folder in captions/; default: the only one"""
    everything: bool = False
    """read all answers again, not only those that changed"""
    accept_deleted: bool = False
    """go on although most of the answers are gone from the server; the history keeps them, marked as deleted"""
    strict: bool = False
    """exit 1 if anything on the server is not as push made it"""
    token_file: Path | None = None
    """file with the access token, if the project is on somebody's server; default: LABEL_STUDIO_API_KEY"""
    server: Path = FOLDER
    """folder of the server that `start` started"""


def run(options: Options) -> int:
    """Pull, and say what came of it."""
    from annotation import project
    from annotation.client import connect
    from annotation.locks import locked
    from annotation.pull import pull

    found = project.load(options.name)
    folder = project.folder_of(found.name)
    url = None if found.server == project.OWN else found.server
    with locked(folder / ".lock"), connect(url, options.token_file, folder=options.server) as client:
        done = pull(client, found, folder, everything=options.everything, accept_deleted=options.accept_deleted)
    which = "" if len(project.names()) == 1 else f" --name {shlex.quote(found.name)}"
    print("\n".join([*told(done, folder), f"next: python annotation/annotate.py status{which}"]))
    return int(options.strict and bool(done.odd or done.changed_screens))


def told(done: Pulled, folder: Path) -> list[str]:
    """What came of it, as lines."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in done.kinds.most_common()) or "none"
    lines = [f"{'pulled':<11}{done.new} new, {done.changed} changed, {done.deleted} deleted"]
    lines.append(f"{'answers':<11}{kinds}  ({folder / 'history.jsonl'})")
    lines += [f"{'left out':<11}{what} ({count})" for what, count in done.odd.most_common()]
    if done.changed_screens:
        what = "is not the one push gave: somebody changed it on the server. `push` sets it right"
        lines.append(f"{'warning':<11}the configuration of {', '.join(done.changed_screens)} {what}")
    return lines
