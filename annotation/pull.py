"""Answers from the server into captions/NAME/history.jsonl: only what changed, every version kept, nothing twice.

captions/NAME/pulled.json     how far each screen was read; it may be lost: then everything is read again
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from annotation.answers import Reader, fields_of
from annotation.client import Client
from annotation.project import Project, digest, open_project
from annotation.records import Record, read_history, standing, write_history
from annotation.tasks import PAGE
from data.errors import InputError
from data.files import write_atomic

STATE = "pulled.json"
FEW = 10  # answers that may be gone at once without a question
BEHIND = timedelta(seconds=2)  # read once more: a change may carry an earlier time than one that was seen already
FIELDS = (  # nested names too: Label Studio applies the list at every level
    "id,data,updated_at,created_at,annotations,predictions,result,was_cancelled,lead_time,completed_by,"
    "parent_prediction,model_version"
)
Task = dict[str, Any]


@dataclass(frozen=True)
class Reach:
    """How far a screen was read. rules: a hash of what its answers were checked against."""

    rules: str = ""
    until: str = ""  # updated_at of the newest task that was seen; empty: read everything
    others: int = 0  # answers on the server that are none of ours, when everything was read last


@dataclass
class Pulled:
    """What came of it. changed_screens: screens whose configuration on the server is not the one push gave them."""

    new: int = 0
    changed: int = 0
    deleted: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # status -> standing answers
    odd: Counter[str] = field(default_factory=Counter)
    changed_screens: list[str] = field(default_factory=list)
    everything: list[str] = field(default_factory=list)  # screens that were read whole


def pull(
    client: Client, project: Project, folder: Path, *, everything: bool = False, accept_deleted: bool = False
) -> Pulled:
    """Read what changed on all screens and add it to the history. Raises InputError; what was written before stays.

    everything: look at unchanged answers too. accept_deleted: believe a server on which most answers are gone.
    """
    done = Pulled()
    there = open_project(client, project)
    users = {user.id: user.email for user in client.read(lambda sdk: sdk.users.list()) if user.id and user.email}
    reaches = {} if everything else read_reaches(folder / STATE)
    history = read_history(folder)
    for screen, number in project.screens.items():
        if digest(there[screen]["label_config"]) != project.configurations.get(screen):
            done.changed_screens.append(screen)
        reader = Reader(screen, fields_of(screen, project.types), users)
        more, reach = read_screen(client, number, reader, reaches.get(screen, Reach()), history, done)
        if not accept_deleted:
            check_deleted(more, history, screen, client.url)
        tally(more, history, done)
        if more:  # at once: the next screen may fail
            history += more
            write_history(folder, history)
        reaches[screen] = reach
        write_reaches(folder / STATE, reaches)
    done.kinds = Counter(record.status for record in standing(history))
    return done


def read_screen(
    client: Client, number: int, reader: Reader, reach: Reach, history: Sequence[Record], done: Pulled
) -> tuple[list[Record], Reach]:
    """The new versions of a screen's answers. Everything is read if the number of answers does not add up."""
    rules = rules_of(reader)
    if reach.until and reach.rules == rules:
        tasks = changed_since(client, number, reach.until)
        more = versions(tasks, reader, history, whole=False)
        if answers_of(reader.screen, [*history, *more]) + reach.others == count(client, number):
            done.odd += reader.odd
            return more, replace(reach, until=newest(tasks, reach.until))
        reader.odd.clear()
    done.everything.append(reader.screen)
    tasks = touched(client, number)
    more = versions(tasks, reader, history, whole=True)
    done.odd += reader.odd
    others = sum(len(task.get("annotations") or []) for task in tasks) - answers_of(reader.screen, [*history, *more])
    return more, Reach(rules, newest(tasks, ""), others)


def answers_of(screen: str, history: Sequence[Record]) -> int:
    """How many answers of a screen stand."""
    return sum(record.screen == screen for record in standing(history))


def check_deleted(more: Sequence[Record], history: Sequence[Record], screen: str, url: str) -> None:
    """Most answers gone is more often a server that was made anew than somebody's wish. Raises InputError."""
    gone, known = sum(record.status == "deleted" for record in more), answers_of(screen, history)
    if gone > max(FEW, known / 2):
        fix = "Start the server with its old database (see backups/), or say --accept-deleted if it was meant."
        raise InputError(f"{gone} of {known} answers on screen {screen!r} are gone", where=url, fix=fix)


def rules_of(reader: Reader) -> str:
    fields = {name: sorted(choices) if choices else None for name, choices in reader.fields.items()}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


# ---- asking


def changed_since(client: Client, number: int, until: str) -> list[Task]:
    """The tasks of which anything changed, an answer that was deleted included."""
    start = datetime.fromisoformat(until) - BEHIND
    value = start.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return ask(client, number, "and", condition("updated_at", "greater", "Datetime", value))


def touched(client: Client, number: int) -> list[Task]:
    """The tasks that were answered or skipped."""
    some = [condition(name, "greater", "Number", 0) for name in ("total_annotations", "cancelled_annotations")]
    return ask(client, number, "or", *some)


def condition(name: str, operator: str, kind: str, value: object) -> dict[str, object]:
    return {"filter": f"filter:tasks:{name}", "operator": operator, "type": kind, "value": value}


def ask(client: Client, number: int, conjunction: str, *items: dict[str, object]) -> list[Task]:
    """The tasks that meet the conditions, with answers and drafts."""
    query = json.dumps({"filters": {"conjunction": conjunction, "items": items}})
    tasks = client.read(
        lambda sdk: list(sdk.tasks.list(project=number, page_size=PAGE, fields="all", include=FIELDS, query=query))
    )
    return [task.model_dump(mode="json", exclude_unset=True) for task in tasks]


def count(client: Client, number: int) -> int:
    """Answers of a project, skipped ones included."""
    project = client.read(lambda sdk: sdk.projects.get(id=number))
    kinds = (project.useful_annotation_number, project.skipped_annotations_number, project.ground_truth_number)
    return sum(kind or 0 for kind in kinds)


# ---- comparing


def versions(tasks: Iterable[Task], reader: Reader, history: Sequence[Record], *, whole: bool) -> list[Record]:
    """What is to be added to the history: new answers, changed ones, and marks for those that are gone.

    whole: `tasks` are all there are; else an answer is gone only if its picture is among them without it.
    """
    known = {record.annotation: record for record in standing(history) if record.screen == reader.screen}
    seen = {record.annotation: record for task in tasks for record in reader.records(task)}
    pictures = {str(task.get("data", {}).get("sha256")) for task in tasks}
    gone = [
        replace(record, status="deleted", values={})
        for number, record in known.items()
        if number not in seen and (whole or record.sha256 in pictures)
    ]
    more = [with_draft(record, known.get(record.annotation)) for record in seen.values()]
    return [record for record in more if differs(record, known.get(record.annotation))] + gone


def differs(record: Record, known: Record | None) -> bool:
    """Whether this is a version that the history does not have. A draft that was taken away later makes none."""
    if known is None:
        return True
    return (record.updated, record.status, record.values) != (known.updated, known.status, known.values)


def with_draft(record: Record, known: Record | None) -> Record:
    """A draft that was known once stays known."""
    if known is None or record.draft is not None:
        return record
    return replace(record, draft=known.draft, draft_by=known.draft_by)


def tally(more: Sequence[Record], history: Sequence[Record], done: Pulled) -> None:
    """Count what is added."""
    known = {(record.screen, record.annotation) for record in history}
    for record in more:
        if record.status == "deleted":
            done.deleted += 1
        elif (record.screen, record.annotation) in known:
            done.changed += 1
        else:
            done.new += 1


def newest(tasks: Iterable[Task], until: str) -> str:
    """The latest time of change among the tasks, and `until`."""
    times = [str(task["updated_at"]) for task in tasks] + ([until] if until else [])
    return max(times, key=lambda time: datetime.fromisoformat(time), default="")


# ---- how far


def read_reaches(path: Path) -> dict[str, Reach]:
    """Screen -> how far it was read; nothing if the file is not there or not ours: then everything is read again."""
    try:
        return {screen: Reach(**values) for screen, values in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_reaches(path: Path, reaches: dict[str, Reach]) -> None:
    values = {screen: asdict(reach) for screen, reach in reaches.items()}
    write_atomic(path, json.dumps(values, indent=1, sort_keys=True) + "\n")
