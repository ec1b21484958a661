"""The captioning project: which pictures, which server, and one Label Studio project for each screen.

captions/NAME/project.json      written by push before the server is asked for anything: its key marks what is ours
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from annotation import interface
from annotation.client import Client, UnsureError
from data.errors import InputError, choose
from data.files import write_atomic
from data.schema import Annotation

ROOT = Path("captions")
PROJECT = "project.json"
OWN = "own"  # the server of a project that lives on captions/.server, whatever its port is today
MARK = "Made by Atelier (annotate.py push); key "
LONGEST_NAME = 38  # characters: Label Studio allows 50 in a title
SETTINGS = {  # of every project that is made; the comments say why
    "sampling": "Sequential sampling",  # in the order of push: neighbours look alike
    "show_skip_button": True,
    "show_collab_predictions": True,  # drafts are shown
    "show_instruction": False,
    "maximum_annotations": 1,  # a share of tasks is asked for twice: see push.overlap
    "show_annotation_history": False,
}


@dataclass(frozen=True)
class Project:
    """What project.json holds."""

    name: str
    key: str  # random: tells our projects from others of the same title
    server: str  # OWN or an address
    pictures: str  # absolute path of the picture folder
    types: tuple[str, ...]
    screens: dict[str, int]  # screen -> the id of its Label Studio project; empty until they are made
    configurations: dict[str, str]  # screen -> SHA-256 of the configuration it was given last

    def title(self, screen: str) -> str:
        return f"{self.name} {plural(screen)}"

    def in_order(self) -> list[tuple[str, int]]:
        """Screens and their Label Studio projects, the captions first."""
        return [(screen, self.screens[screen]) for screen in self.wanted() if screen in self.screens]

    def wanted(self) -> dict[str, str]:
        """Screen -> its configuration, of the screens that the types allow."""
        return wanted_screens(self.types)


def plural(screen: str) -> str:
    """What a screen is called in a title: text -> captions, name -> names, triage -> triage."""
    if screen == interface.TRIAGE:
        return screen
    return "captions" if Annotation.asked()[screen]["ask"] == "caption" else f"{screen}s"


def wanted_screens(types: Sequence[str]) -> dict[str, str]:
    """Every screen; without types there is no triage, as there would be nothing to choose from."""
    if types:
        return interface.screens(types)
    written = [field for field, how in Annotation.asked().items() if how["ask"] != "choice"]
    return {field: interface.writing_screen(field) for field in written}


def digest(configuration: str) -> str:
    """SHA-256 of a configuration as the server gives it back: without white space around it."""
    return hashlib.sha256(configuration.strip().encode()).hexdigest()


# ---- on disk


def folder_of(name: str, root: Path = ROOT) -> Path:
    """The work folder of a name that fits a folder and a title. Raises InputError."""
    unfit = name.startswith(".") or name != name.strip() or any(char in name for char in "/\\:") or not name
    if unfit or not name.isprintable() or len(name) > LONGEST_NAME:
        allowed = f"up to {LONGEST_NAME} characters without / \\ : and without a dot in front"
        raise InputError(f"{name!r} is no project name", where="--name", allowed=allowed, fix="Give --name NAME.")
    return root / name


def names(root: Path = ROOT) -> list[str]:
    """The projects that were made here."""
    return sorted(path.parent.name for path in root.glob(f"*/{PROJECT}"))


def load(name: str | None, root: Path = ROOT) -> Project:
    """The project of that name, or the only one. Raises InputError if there is none, or several could be meant."""
    there = names(root)
    if not there:
        fix = "Make one: python annotation/annotate.py push --images FOLDER"
        raise InputError("there is no project here", where=root.resolve(), fix=fix)
    if name is None and len(there) != 1:
        raise InputError("several projects could be meant", where="--name", allowed=", ".join(there))
    chosen = there[0] if name is None else choose(name, there, what="project", where="--name")
    return read(root / chosen / PROJECT)


def read(path: Path) -> Project:
    """project.json. Raises InputError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        project = Project(**values | {"types": tuple(values["types"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError("is not a project", where=path, fix="Restore it, or push under another --name.") from error
    if project.name != path.parent.name:
        fix = f"Call the folder {project.name} again, or push under another --name."
        raise InputError(f"belongs to the project {project.name!r}", where=path, fix=fix)
    return project


def save(project: Project, root: Path = ROOT) -> None:
    """Write project.json; the same project gives the same bytes."""
    path = folder_of(project.name, root) / PROJECT
    write_atomic(path, json.dumps(asdict(project), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def new(name: str, server: str, pictures: Path, types: Sequence[str]) -> Project:
    """A project that no server knows yet."""
    folder_of(name)
    return Project(name, secrets.token_hex(8), server, str(pictures.resolve()), tuple(types), {}, {})


# ---- on the server


def make_screens(client: Client, project: Project) -> Project:
    """Find or make the Label Studio project of every screen, with today's configuration. Raises InputError."""
    there = projects_titled(client, project)
    for screen, configuration in project.wanted().items():
        found = there.get(screen) or make_screen(client, project, screen, configuration)
        if found["label_config"].strip() != configuration.strip():
            configure(client, found["id"], configuration)
        project = replace(
            project,
            screens=project.screens | {screen: found["id"]},
            configurations=project.configurations | {screen: digest(configuration)},
        )
    return project


def projects_titled(client: Client, project: Project) -> dict[str, dict[str, Any]]:
    """Screen -> our Label Studio project of its title: the one we know, else the first.

    Raises InputError for a project of that title that is not ours.
    """
    titles = {project.title(screen): screen for screen in project.wanted()}
    found: dict[str, dict[str, Any]] = {}
    for each in sorted(listed(client), key=lambda each: each["id"]):
        screen = titles.get(each["title"])
        if screen is None:
            continue
        if each.get("description") != MARK + project.key:
            raise foreign(each, client)
        if screen not in found or each["id"] == project.screens.get(screen):
            found[screen] = each
    return found


def drop_twins(client: Client, project: Project) -> None:
    """Delete empty Label Studio projects of our titles and key beside ours.

    A push that was killed may have asked for one which the server made after the next push had looked.
    """
    titles, ours = {project.title(screen) for screen in project.wanted()}, project.screens.values()
    for each in listed(client):
        marked = each["title"] in titles and each.get("description") == MARK + project.key
        if marked and each["id"] not in ours and not each["task_number"]:
            client.insist(lambda sdk, twin=each["id"]: sdk.projects.delete(id=twin))


def listed(client: Client) -> list[dict[str, Any]]:
    """Every project that this account sees: id, title, description, configuration, number of tasks."""
    fields = "id,title,description,label_config,task_number"
    pages = client.read(lambda sdk: list(sdk.projects.list(page_size=1000, include=fields)))
    return [page.model_dump(include=set(fields.split(","))) for page in pages]


def foreign(other: Mapping[str, Any], client: Client) -> InputError:
    """Somebody else's project has our title."""
    ours = str(other.get("description", "")).startswith(MARK)
    whose = "made by push from another work folder" if ours else "not made by push"
    fix = "Give --name with another name" + (", or bring that folder's project.json here." if ours else ".")
    return InputError(f"has a project {other['title']!r} (number {other['id']}), {whose}", where=client.url, fix=fix)


def make_screen(client: Client, project: Project, screen: str, configuration: str) -> dict[str, Any]:
    """A new Label Studio project. If the answer gets lost, look whether it was made."""
    title, description = project.title(screen), MARK + project.key
    try:
        made = client.change(
            lambda sdk: sdk.projects.create(
                title=title, description=description, label_config=configuration, **SETTINGS
            )
        )
        return {"id": made.id, "label_config": configuration}
    except UnsureError:
        found = projects_titled(client, project).get(screen)
        return found or make_screen(client, project, screen, configuration)


def configure(client: Client, number: int, configuration: str) -> None:
    """Give a Label Studio project another configuration; answers given under the old one stay."""
    client.insist(lambda sdk: sdk.projects.update(id=number, label_config=configuration))


def open_project(client: Client, project: Project) -> dict[str, dict[str, Any]]:
    """Screen -> what the server says of it now. Raises InputError if one of them is gone, or is not ours any more."""
    there = {each["id"]: each for each in listed(client)}
    found: dict[str, dict[str, Any]] = {}
    for screen, number in project.screens.items():
        if number not in there:
            fix = "Push again to make it anew; what was pulled from it before stays in history.jsonl."
            raise InputError(f"the project {project.title(screen)!r} is gone", where=client.url, fix=fix)
        if there[number].get("description") != MARK + project.key:
            raise foreign(there[number], client)
        found[screen] = there[number]
    return found
