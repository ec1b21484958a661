"""Put pictures on the server, once each, with their drafts. FOLDER is only read.

Run it again after adding pictures or drafts, or after it was interrupted: what is there already is left alone.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from data.errors import InputError, show
from data.options import Options as Flags

if TYPE_CHECKING:
    from annotation.client import Client
    from annotation.intake import Intake
    from annotation.project import Project
    from annotation.push import Pushed

FOLDER = Path("captions") / ".server"
SHOWN = 5  # names that a line lists


class Pictures(Flags):
    """What is pushed."""

    images: Path | None = None
    """folder of pictures; default: the project's; without any project the sample creatures"""
    name: str | None = None
    """of the project, a folder in captions/; default: the picture folder's name, or the only project"""
    types: list[str] = Field(default_factory=list)
    """types to choose from in the triage, e.g. --types water,fire; default: the project's, else those in the \
folder's metadata; without any there is no triage"""
    overlap: float = Field(default=0.0, ge=0, le=1)
    """share of the caption tasks that two people are asked about"""
    keep_duplicates: bool = False
    """push near-duplicates too, e.g. a picture and its mirror image"""
    strict: bool = False
    """push nothing if a picture would be left out"""


class Options(Pictures):
    """What `annotate.py push` can be told."""

    url: str | None = None
    """an existing Label Studio; default: the server that `start` started"""
    token_file: Path | None = None
    """file with the access token for --url; default: the variable LABEL_STUDIO_API_KEY"""
    server: Path = FOLDER
    """folder of the server that `start` started"""


def run(options: Options) -> int:
    """Push, and say what came of it."""
    from annotation import project
    from annotation.client import connect

    found = settle(options, options.url)
    where = None if found.server == project.OWN else found.server
    with connect(where, options.token_file, folder=options.server) as client:
        push_pictures(client, found, options)
    return 0


def settle(options: Pictures, url: str | None = None) -> Project:
    """The project that is meant: the one there is, with what the options change in it, or a new one."""
    from annotation import project

    images = options.images.expanduser() if options.images else None
    if options.name is None and images is None and not project.names():
        images = sample()
    if images is not None and not images.is_dir():
        raise InputError("no such folder", where=f"--images {images}", fix="Give the folder that holds the pictures.")
    name = options.name or (images.resolve().name if images else None)
    server = url.rstrip("/") if url else project.OWN
    if name is not None and name not in project.names():
        if images is None:
            known = ", ".join(project.names()) or "none yet"
            raise InputError(f"no project {name!r}", where="--name", allowed=known, fix="Give --images to make it.")
        return project.new(name, server, images, types_of(options, images))
    known = project.load(name)
    if url and known.server != server:
        where = "the server of `annotate.py start`" if known.server == project.OWN else known.server
        raise InputError(f"{known.name} is on {where}", where="--url", fix="Give another --name.")
    if images is not None and str(images.resolve()) != known.pictures:
        if options.name is None:
            fix = f"Give --name with another name, or --name {known.name} if the folder was moved."
            raise InputError(f"captions/{known.name} is about {known.pictures}", where=f"--images {images}", fix=fix)
        known = replace(known, pictures=str(images.resolve()))
    return replace(known, types=tuple(types_given(options)) or known.types)


def sample() -> Path:
    """The sample creatures, for a first look."""
    from data.sample_set import sample_folder

    folder = sample_folder()
    print(f"no --images: taking the sample creatures in {folder}")
    return folder


def types_given(options: Pictures) -> list[str]:
    """`--types water,fire --types grass` as three. Raises InputError for what no screen can show."""
    from annotation.interface import check_types

    types = [each.strip() for given in options.types for each in given.split(",")]
    return check_types(types) if types else []


def types_of(options: Pictures, images: Path) -> tuple[str, ...]:
    """The types that were given, else those in the folder's metadata."""
    from annotation.interface import unfit
    from data.store import read_table
    from data.walk import walk

    found = (row.annotation.type for row in read_table(walk(images)).rows)
    return tuple(types_given(options)) or tuple(sorted({each for each in found if each and not unfit(each)}))


def push_pictures(client: Client, found: Project, options: Pictures) -> None:
    """Look at the pictures, write project.json, make the screens, push, and say what came of it."""
    from annotation import project
    from annotation.deliver import deliver
    from annotation.drafts.store import read_drafts
    from annotation.intake import take_in
    from annotation.locks import locked
    from annotation.push import known_pictures, push

    folder = project.folder_of(found.name)
    with locked(folder / ".lock"):
        taken = take_in(Path(found.pictures), known_pictures(client, found), keep_twins=options.keep_duplicates)
        print(told_of_pictures(taken), flush=True)
        if options.strict and (taken.problems or taken.twins):
            raise InputError("pictures would be left out", where="--strict", fix="Mend or remove them; see above.")
        project.save(found)  # before the server is asked for anything: its key marks what is ours
        found = project.make_screens(client, found)
        project.save(found)
        drafts = read_drafts(folder)
        done = push(client, found, taken.pictures, taken.formats, drafts=drafts, overlap=options.overlap)
        corrected = deliver(client, found, folder)
    if corrected.put or corrected.left:
        print(f"{'corrected':<11}{len(corrected.put)} answers; {len(corrected.left)} left as people have them now")
    print(told(client, found, done))


# ---- what is said


def told_of_pictures(taken: Intake) -> str:
    """What is in the folder, and what is left out of it, by name."""
    lines = [f"{'pictures':<11}{len(taken.pictures)} in {show(taken.folder)}, like beside like"]
    if taken.twins:
        pairs = [f"{show(name)} (see {show(other)})" for name, other in taken.twins.items()]
        lines.append(f"{'twice':<11}{len(pairs)} left out as near-duplicates: {listing(pairs)}")
    for problem in taken.problems[:SHOWN]:
        lines.append(f"{'left out':<11}{problem}")
    if len(taken.problems) > SHOWN:
        lines.append(f"{'left out':<11}and {len(taken.problems) - SHOWN} more; `python data/prepare.py` lists them")
    return "\n".join(lines)


def listing(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def told(client: Client, found: Project, done: Pushed) -> str:
    """What came of it, with the address of each screen, and the next command."""
    lines = []
    for screen, number in found.in_order():
        made = f"{done.created[screen]} new, {done.present[screen]} there before"
        lines.append(f"{found.title(screen).removeprefix(found.name)[1:]:<11}{made:<28}{stream(client.url, number)}")
    counts = {
        "drafts": (done.drafted, "new or changed"),
        "overlap": (done.asked_twice, "tasks wait for two people"),
        "moved": (done.moved, "tasks have a new address of their picture"),
        "doubled": (done.doubled, "tasks stood twice and were taken out"),
        "elsewhere": (done.elsewhere, "tasks are about pictures that are no longer in the folder; they stay"),
    }
    lines += [f"{name:<11}{count} {what}" for name, (count, what) in counts.items() if count]
    if "triage" not in found.screens:
        lines.append(f"{'no triage':<11}no types are known: --types water,fire,grass makes it")
    from annotation.project import names

    which = "" if len(names()) == 1 else f" --name {shlex.quote(found.name)}"
    return "\n".join([*lines, f"next: caption in the browser, then python annotation/annotate.py pull{which}"])


def stream(url: str, number: int) -> str:
    """The address at which a screen asks about one picture after the other."""
    return f"{url}/projects/{number}/data?labeling=1"
