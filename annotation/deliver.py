"""What was made here and belongs on the server: corrections of answers, and the findings of lint as a column to filter.

A correction is put only over the text that it was made for: what people wrote since stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from annotation import project as projects
from annotation import server
from annotation.answers import Reader, Values, fields_of, read_item
from annotation.client import Client, connect
from annotation.corrections import Answer, Correction, answers, read_corrections
from annotation.locks import locked
from annotation.project import Project
from annotation.pull import Pulled, pull
from annotation.push import caption_screen
from annotation.records import read_history
from annotation.tasks import tasks_by_picture
from data.errors import InputError

LINT = "lint"  # the task data that the Data Manager filters by


def deliver(client: Client, project: Project, folder: Path) -> tuple[list[Answer], list[Answer]]:
    """Put every correction that the server does not have yet, then pull. Returns (put, left as people have them)."""
    found = answers(read_history(folder), read_corrections(folder))
    pending = [each for each in found.all if each.corrected and each.record.screen in project.screens]
    put: list[Answer] = []
    left: list[Answer] = []
    for each in tqdm(pending, desc="correcting", unit="answer", disable=None, leave=False):
        (put if put_one(client, project, each) else left).append(each)
    if pending:
        pull(client, project, folder)
    return put, left


def put_one(client: Client, project: Project, answer: Answer) -> bool:
    """Correct one answer if it is still the one that was corrected; an answer that is gone is not."""
    from label_studio_sdk.core.api_error import ApiError

    record = answer.record
    reader = Reader(record.screen, fields_of(record.screen, project.types))

    def ask(sdk: Any) -> Any:
        try:
            return sdk.annotations.get(id=record.annotation).result
        except ApiError as error:
            if error.status_code == 404:
                return None
            raise

    result = client.read(ask)
    now = reader.values(result)
    if result is not None and now == answer.values:
        return True
    if result is None or now != record.values:
        return False
    items = replaced(result, answer.values)
    client.insist(lambda sdk: sdk.annotations.update(id=record.annotation, result=items))
    return True


def replaced(result: Sequence[Mapping[str, Any]], values: Values) -> list[dict[str, Any]]:
    """A result with other texts: all of a field in the first item of that field; other controls stay."""
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    for item in result:
        name, _ = read_item(item)
        if name not in values:
            items.append(dict(item))
        elif name not in seen:
            kind = "text" if "text" in item["value"] else "choices"
            items.append({**item, "value": {**item["value"], kind: values[name]}})
            seen.add(name)
    return items


def mark(client: Client, project: Project, marks: Mapping[str, str]) -> int:
    """Write findings into the caption tasks, SHA-256 -> words, "" for none; returns how many tasks changed."""
    tasks, _ = tasks_by_picture(client, project.screens[caption_screen()])
    looked_at = [tasks[sha256] for sha256 in marks if sha256 in tasks]
    new = [task for task in looked_at if task.data.get(LINT, "") != marks[task.sha256]]
    for task in tqdm(new, desc="marking", unit="task", disable=None, leave=False):
        data = task.data | {LINT: marks[task.sha256]}
        client.insist(lambda sdk, task=task, data=data: sdk.tasks.update(id=str(task.id), data=data))
    return len(new)


# ---- for commands that work without a server, too


def reach(name: str | None, token_file: Path | None = None) -> tuple[Client, Project, Path] | None:
    """The project of that name on its server; None if it has none yet, or its own server does not run."""
    if not projects.names():
        return None
    found = projects.load(name)
    own = found.server == projects.OWN
    if own and server.find() is None:
        return None
    return connect(None if own else found.server, token_file), found, projects.folder_of(found.name)


def to_server(name: str | None) -> Callable[[Sequence[Correction]], Sequence[Correction]] | None:
    """Takes corrections to the server and returns those that were left; None if the server cannot be asked now."""
    reached = reach(name)
    if reached is None:
        return None
    client, project, folder = reached

    def take(made: Sequence[Correction]) -> Sequence[Correction]:
        with client, locked(folder / ".lock"):
            _, left = deliver(client, project, folder)
        late = {(each.record.screen, each.record.annotation) for each in left}
        return [each for each in made if (each.screen, each.annotation) in late]

    return take


def refresh(name: str | None) -> Pulled | None:
    """Pull, if the server can be asked now."""
    reached = reach(name)
    if reached is None:
        return None
    client, project, folder = reached
    with client, locked(folder / ".lock"):
        return pull(client, project, folder)


def show_findings(name: str | None, marks: Mapping[str, str]) -> int:
    """Mark tasks, or say that the server does not run."""
    reached = reach(name)
    if reached is None:
        raise InputError("the server is not running", where="--mark", fix="Start it: annotate.py start")
    client, project, _ = reached
    with client:
        return mark(client, project, marks)
