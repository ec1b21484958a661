"""A captioning project: its work folder captions/NAME, and one Label Studio project for each screen.

captions/NAME/project.json      written by push before anything is created on the server: its key marks what is ours
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from annotation.client import PAGE_SIZE, Client, UnsureError
from annotation.history import Answers, Record, lay_over, read_corrections, read_history
from annotation.labeling_config import TRIAGE, caption_field, labeling_configs
from data.atomic_io import write_atomic
from data.errors import InputError, check_choice

ROOT = Path("captions")
PROJECT = "project.json"
LOCAL = "own"  # the server of a project that is on the local server, whatever its port is today
MARK = "Made by Atelier (annotate.py push); key "
LONGEST_NAME = 38  # characters: Label Studio allows 50 in a title
SETTINGS = {
    "sampling": "Sequential sampling",  # in the order of push: similar images in a row
    "show_skip_button": True,
    "show_collab_predictions": True,  # show drafts
    "show_instruction": False,
    "maximum_annotations": 1,  # push.ask_twice raises it for a share of the tasks
    "show_annotation_history": False,
}


@dataclass(frozen=True)
class Project:
    """The content of project.json, or a work folder that was not pushed yet (without a key)."""

    name: str
    key: str  # random: tells our Label Studio projects from others of the same title
    server: str  # LOCAL or an address
    pictures: str  # absolute path of the image folder; empty if not known yet
    types: tuple[str, ...]
    screens: dict[str, int]  # screen -> id of its Label Studio project; empty until they are created
    configurations: dict[str, str]  # screen -> SHA-256 of the labeling configuration it got last

    @property
    def folder(self) -> Path:
        return work_folder(self.name)

    @property
    def url(self) -> str | None:
        """The address of its server; None for the local one."""
        return None if self.server == LOCAL else self.server

    def image_folder(self) -> Path:
        if not self.pictures:
            raise InputError("the image folder is not known yet", where=self.folder, fix="Give --images FOLDER.")
        return Path(self.pictures)

    def history(self) -> list[Record]:
        return read_history(self.folder)

    def answers(self) -> Answers:
        return lay_over(self.history(), read_corrections(self.folder))

    def title(self, screen: str) -> str:
        """The title of a screen's Label Studio project, e.g. "animals captions", "animals names", "animals triage"."""
        plural = "captions" if screen == caption_field() else f"{screen}s"
        return f"{self.name} {TRIAGE if screen == TRIAGE else plural}"

    def in_order(self) -> list[tuple[str, int]]:
        """Screens and their Label Studio projects, the captions first."""
        return [(screen, self.screens[screen]) for screen in labeling_configs(self.types) if screen in self.screens]


# ---- on disk


def work_folder(name: str) -> Path:
    """The work folder of a name that works as a folder and as a title. Raises InputError."""
    invalid = name.startswith(".") or name != name.strip() or any(char in name for char in "/\\:") or not name
    if invalid or not name.isprintable() or len(name) > LONGEST_NAME:
        allowed = f"up to {LONGEST_NAME} characters without / \\ : and without a leading dot"
        raise InputError(f"{name!r} is not a project name", where="--name", allowed=allowed, fix="Give --name NAME.")
    return ROOT / name


def open_project(name: str | None, images: Path | None = None, *, new: bool = False) -> Project:
    """The project of that name, pushed or not, or the only one, with `images` as its image folder. Raises InputError.

    new: with `images` it need not exist yet; without a name it is named after the image folder.
    """
    existing = sorted(path.name for path in ROOT.glob("[!.]*") if path.is_dir())
    if name is None:
        name = images.expanduser().resolve().name if new and images is not None else only_one(existing)
    folder = work_folder(name)
    if not (new and images) and not folder.is_dir():
        check_choice(name, existing, what="project", where="--name")
    pushed = (folder / PROJECT).exists()
    project = load_project(name) if pushed else Project(name, "", LOCAL, "", (), {}, {})
    return replace(project, pictures=str(images.expanduser())) if images else project


def only_one(names: Sequence[str]) -> str:
    """The only project. Raises InputError if there is none, or more than one."""
    if not names:
        fix = "Create one: python annotation/annotate.py push --images FOLDER"
        raise InputError("no project yet", where=ROOT.resolve(), fix=fix)
    if len(names) > 1:
        raise InputError("there are several projects", where="--name", allowed=", ".join(names))
    return names[0]


def project_names() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob(f"*/{PROJECT}"))


def load_project(name: str | None) -> Project:
    """The pushed project of that name, or the only one. Raises InputError."""
    names = project_names()
    chosen = only_one(names) if name is None or not names else check_choice(name, names, what="project", where="--name")
    path = ROOT / chosen / PROJECT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        project = Project(**values | {"types": tuple(values["types"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        fix = "Restore it, or push under another --name."
        raise InputError("is not a project file", where=path, fix=fix) from error
    if project.name != chosen:
        fix = f"Name the folder {project.name} again, or push under another --name."
        raise InputError(f"belongs to the project {project.name!r}", where=path, fix=fix)
    return project


def save_project(project: Project) -> None:
    """Write project.json; equal projects give equal bytes."""
    text = json.dumps(asdict(project), indent=1, sort_keys=True, ensure_ascii=False)
    write_atomic(project.folder / PROJECT, text + "\n")


def new_project(name: str, server: str, images: Path, types: Sequence[str]) -> Project:
    """A project that no server knows yet."""
    work_folder(name)
    return Project(name, secrets.token_hex(8), server, str(images.resolve()), tuple(types), {}, {})


# ---- on the server


def config_hash(configuration: str) -> str:
    """SHA-256 of a labeling configuration as the server returns it: without surrounding white space."""
    return hashlib.sha256(configuration.strip().encode()).hexdigest()


def create_screens(client: Client, project: Project) -> Project:
    """Find or create the Label Studio project of every screen, with the current configuration. Raises InputError."""
    existing = projects_by_screen(client, project)
    for screen, configuration in labeling_configs(project.types).items():
        found = existing.get(screen) or create_screen(client, project, screen, configuration)
        if found["label_config"].strip() != configuration.strip():
            set_config(client, found["id"], configuration)
        screens = project.screens | {screen: found["id"]}
        hashes = project.configurations | {screen: config_hash(configuration)}
        project = replace(project, screens=screens, configurations=hashes)
    return project


def projects_by_screen(client: Client, project: Project) -> dict[str, dict[str, Any]]:
    """Screen -> our Label Studio project of its title: the one we know, else the first. InputError for another's."""
    titles = {project.title(screen): screen for screen in labeling_configs(project.types)}
    found: dict[str, dict[str, Any]] = {}
    for each in sorted(list_projects(client), key=lambda each: each["id"]):
        screen = titles.get(each["title"])
        if screen is None:
            continue
        check_ours(client, project, each)
        if screen not in found or each["id"] == project.screens.get(screen):
            found[screen] = each
    return found


def delete_duplicate_projects(client: Client, project: Project) -> None:
    """Delete our empty Label Studio projects that are not in use: a killed push may have requested one."""
    titles = {project.title(screen) for screen in labeling_configs(project.types)}
    for each in list_projects(client):
        ours = each["title"] in titles and each.get("description") == MARK + project.key
        if ours and each["id"] not in project.screens.values() and not each["task_number"]:
            client.retry(lambda sdk, number=each["id"]: sdk.projects.delete(id=number))


def list_projects(client: Client) -> list[dict[str, Any]]:
    fields = "id,title,description,label_config,task_number"
    found = client.retry(lambda sdk: list(sdk.projects.list(page_size=PAGE_SIZE, include=fields)))
    return [each.model_dump(include=set(fields.split(","))) for each in found]


def check_ours(client: Client, project: Project, other: Mapping[str, Any]) -> None:
    """Raise InputError if a Label Studio project with our title or number is not ours."""
    description = str(other.get("description"))
    if description == MARK + project.key:
        return
    pushed = description.startswith(MARK)
    origin = "pushed from another work folder" if pushed else "not created by push"
    fix = "Give another --name" + (", or bring that folder's project.json here." if pushed else ".")
    raise InputError(f"has a project {other['title']!r} (number {other['id']}), {origin}", where=client.url, fix=fix)


def create_screen(client: Client, project: Project, screen: str, configuration: str) -> dict[str, Any]:
    """A new Label Studio project. If the answer gets lost, look whether it was created."""
    values = SETTINGS | {"title": project.title(screen), "description": MARK + project.key}
    try:
        created = client.once(lambda sdk: sdk.projects.create(label_config=configuration, **values))
        return {"id": created.id, "label_config": configuration}
    except UnsureError:
        found = projects_by_screen(client, project).get(screen)
        return found or create_screen(client, project, screen, configuration)


def set_config(client: Client, number: int, configuration: str) -> None:
    """Give a Label Studio project another labeling configuration; existing answers stay."""
    client.retry(lambda sdk: sdk.projects.update(id=number, label_config=configuration))


def open_screens(client: Client, project: Project) -> dict[str, dict[str, Any]]:
    """Screen -> its Label Studio project as it is now. Raises InputError if one is gone, or no longer ours."""
    existing = {each["id"]: each for each in list_projects(client)}
    for screen, number in project.screens.items():
        if number not in existing:
            fix = "Push again to create it; what was pulled from it stays in history.jsonl."
            raise InputError(f"the project {project.title(screen)!r} is gone", where=client.url, fix=fix)
        check_ours(client, project, existing[number])
    return {screen: existing[number] for screen, number in project.screens.items()}
