"""What was made here and belongs on the server: corrections of answers, and the findings of lint as a column to filter.

A correction is put only over the text that it was made for: what people wrote since stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from annotation import project as projects
from annotation import server as servers
from annotation.answers import Reader, Values, fields_of, read_item
from annotation.client import Client, connect
from annotation.corrections import Answer, Correction, answers, read_corrections
from annotation.locks import locked
from annotation.project import Project
from annotation.pull import Pulled, pull
from annotation.push import caption_screen
from annotation.records import read_history
from annotation.tasks import LINT, tasks_by_picture


@dataclass(frozen=True)
class Delivered:
    """What became of the corrections that the server did not have: taken, or left because somebody was faster."""

    put: list[Answer]
    left: list[Answer]


def deliver(client: Client, project: Project, folder: Path) -> Delivered:
    """Put every correction that the server does not have yet, then pull. Killed in between, the next one goes on."""
    found = answers(read_history(folder), read_corrections(folder))
    pending = [each for each in found.all if each.pending and each.record.screen in project.screens]
    done = Delivered([], [])
    for each in tqdm(pending, desc="correcting", unit="answer", disable=None, leave=False):
        (done.put if put_one(client, project, each) else done.left).append(each)
    if pending:
        pull(client, project, folder)
    return done


def put_one(client: Client, project: Project, answer: Answer) -> bool:
    """Correct one answer if it is still the one that was corrected; one that was changed, or is gone, is not."""
    record = answer.record
    result = client.read(lambda sdk: result_of(sdk, record.annotation))
    now = Reader(record.screen, fields_of(record.screen, project.types)).values(result)
    if result is None or now not in (record.values, answer.values):
        return False
    if now != answer.values:
        items = replaced(result, answer.values)
        client.insist(lambda sdk: sdk.annotations.update(id=record.annotation, result=items))
    return True


def result_of(sdk: Any, number: int) -> Any:
    """What an answer says on the server now; None if it is gone."""
    from label_studio_sdk.core.api_error import ApiError

    try:
        return sdk.annotations.get(id=number).result or []
    except ApiError as error:
        if error.status_code == 404:
            return None
        raise


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
    """Write findings (SHA-256 -> names of checks) into the caption tasks, "" where there is none.

    Returns how many tasks changed. The Data Manager has a column for them from the first push on.
    """
    tasks, _ = tasks_by_picture(client, project.screens[caption_screen()])
    new = {sha256: task for sha256, task in tasks.items() if task.data.get(LINT, "") != marks.get(sha256, "")}
    for sha256, task in tqdm(new.items(), desc="marking", unit="task", disable=None, leave=False):
        data = task.data | {LINT: marks.get(sha256, "")}
        client.insist(lambda sdk, task=task, data=data: sdk.tasks.update(id=str(task.id), data=data))
    return len(new)


# ---- for commands that work without a server, too


@dataclass(frozen=True)
class Way:
    """How a command comes to a project's server: the folder of our own, or a token for somebody's."""

    name: str
    server: Path = servers.FOLDER
    token_file: Path | None = None

    @contextmanager
    def reach(self) -> Iterator[tuple[Client, Project, Path] | None]:
        """The project on its server, with nobody else at work on it; None if it was never pushed, or ours is off."""
        found = projects.load(self.name) if self.name in projects.names() else None
        own = found is not None and found.server == projects.OWN
        if found is None or (own and servers.find(self.server) is None):
            yield None
            return
        folder = projects.folder_of(found.name)
        url = None if own else found.server
        with locked(folder / ".lock"), connect(url, self.token_file, folder=self.server) as client:
            yield client, found, folder

    def take(self, made: Sequence[Correction]) -> list[Correction] | None:
        """Take corrections to the server; returns those that were left, or None if it cannot be asked now."""
        with self.reach() as reached:
            if reached is None:
                return None
            left = {(each.record.screen, each.record.annotation) for each in deliver(*reached).left}
        return [each for each in made if (each.screen, each.annotation) in left]

    def refresh(self) -> Pulled | None:
        """Pull; None if the server cannot be asked now."""
        with self.reach() as reached:
            return pull(*reached) if reached else None

    def show_findings(self, marks: Mapping[str, str]) -> int | None:
        """See `mark`; None if the server cannot be asked now."""
        with self.reach() as reached:
            return mark(*reached[:2], marks) if reached else None
