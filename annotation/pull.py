"""Pull answers from the server into captions/NAME/history.jsonl, and write corrections and lint findings back.

Only what changed is read, every version is kept, nothing twice. The server validates nothing, so every answer is
checked here. A correction only replaces the text that it was made for: what people wrote since stays.

captions/NAME/pulled.json     how far each screen was read; if it is lost, everything is read again
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from annotation.client import DRAFT_SOURCE, LINT, Client, connect, tasks_by_sha256
from annotation.environment import locked
from annotation.history import Answer, Record, latest, lay_over, read_corrections, read_history, write_history
from annotation.labeling_config import TRIAGE, caption_field, choices_by_field
from annotation.project import Project, config_hash, open_screens
from annotation.server import find_server
from data.atomic_io import write_atomic
from data.captioned_folder import check_file_name
from data.errors import InputError, quoted
from data.progress import ProgressBar

STATE = "pulled.json"
FEW = 10  # answers that may be deleted at once without a question
OVERLAP = timedelta(seconds=2)  # read twice: a change may carry an earlier time than one already seen
FIELDS = (  # nested names too: Label Studio applies the list at every level
    "id,data,updated_at,created_at,annotations,predictions,result,was_cancelled,lead_time,completed_by,"
    "parent_prediction,model_version"
)
SHA256 = re.compile(r"[0-9a-f]{64}")
Task = Mapping[str, Any]
Values = dict[str, list[str]]


@dataclass(frozen=True)
class ReadState:
    """How far a screen was read. rules: a hash of what its answers were checked against."""

    rules: str = ""
    until: str = ""  # updated_at of the newest task seen; empty: read everything
    others: int = 0  # answers on the server that are not ours, when everything was read last


@dataclass
class PullResult:
    """What a pull did. changed_screens: screens whose configuration is not the one push set."""

    new: int = 0
    changed: int = 0
    deleted: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # status -> current answers
    ignored: Counter[str] = field(default_factory=Counter)  # what was ignored -> how often
    changed_screens: list[str] = field(default_factory=list)
    read_whole: list[str] = field(default_factory=list)  # screens that were read whole

    def __str__(self) -> str:
        return f"{self.new} new, {self.changed} changed, {self.deleted} deleted"


def pull(
    client: Client, project: Project, folder: Path, *, everything: bool = False, accept_deleted: bool = False
) -> PullResult:
    """Read what changed on all screens into the history. everything: unchanged answers too. Raises InputError."""
    result = PullResult()
    screens = open_screens(client, project)
    users = {user.id: user.email for user in client.retry(lambda sdk: sdk.users.list()) if user.id and user.email}
    states = {} if everything else read_states(folder / STATE)
    history = read_history(folder)
    for screen, number in project.screens.items():
        if config_hash(screens[screen]["label_config"]) != project.configurations.get(screen):
            result.changed_screens.append(screen)
        parser = AnswerParser(screen, screen_fields(screen, project.types), users)
        more, states[screen] = read_screen(client, number, parser, states.get(screen, ReadState()), history, result)
        if not accept_deleted:
            check_deleted(more, history, screen, client.url)
        known = {record.key for record in history}
        present = [each for each in more if each.status != "deleted"]
        result.deleted += len(more) - len(present)
        result.changed += sum(each.key in known for each in present)
        result.new += sum(each.key not in known for each in present)
        if more:  # at once: the next screen may fail
            history += more
            write_history(folder, history)
        text = json.dumps({name: asdict(state) for name, state in states.items()}, indent=1, sort_keys=True)
        write_atomic(folder / STATE, text + "\n")
    result.statuses = Counter(record.status for record in latest(history))
    return result


def read_screen(
    client: Client, number: int, parser: AnswerParser, state: ReadState, history: Sequence[Record], result: PullResult
) -> tuple[list[Record], ReadState]:
    """The new versions of a screen's answers. Everything is read if the number of answers does not add up."""
    rules = rules_hash(parser.fields)
    if state.until and state.rules == rules:
        start = (datetime.fromisoformat(state.until) - OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        tasks = query_tasks(client, number, "and", condition("updated_at", "greater", "Datetime", start))
        more = new_versions(tasks, parser, history, whole=False)
        if count_answers(parser.screen, [*history, *more]) + state.others == answers_on_server(client, number):
            result.ignored += parser.ignored
            return more, replace(state, until=newest(tasks, state.until))
        parser.ignored.clear()
    result.read_whole.append(parser.screen)
    touched = [condition(name, "greater", "Number", 0) for name in ("total_annotations", "cancelled_annotations")]
    tasks = query_tasks(client, number, "or", *touched)
    more = new_versions(tasks, parser, history, whole=True)
    result.ignored += parser.ignored
    total = sum(len(task.get("annotations") or []) for task in tasks)
    return more, ReadState(rules, newest(tasks, ""), total - count_answers(parser.screen, [*history, *more]))


def count_answers(screen: str, history: Sequence[Record]) -> int:
    return sum(record.screen == screen for record in latest(history))


def check_deleted(more: Sequence[Record], history: Sequence[Record], screen: str, url: str) -> None:
    """Raise InputError if most answers are gone, which is more often a new database than anybody's intention."""
    gone, known = sum(record.status == "deleted" for record in more), count_answers(screen, history)
    if gone > max(FEW, known / 2):
        fix = "Start the server with its old database (see backups/), or give --accept-deleted if it was intended."
        raise InputError(f"{gone} of {known} answers on screen {screen!r} are gone", where=url, fix=fix)


def rules_hash(fields: Mapping[str, frozenset[str] | None]) -> str:
    values = {name: sorted(choices) if choices else None for name, choices in fields.items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def read_states(path: Path) -> dict[str, ReadState]:
    """Screen -> how far it was read; empty if the file is missing or invalid: then everything is read again."""
    try:
        return {screen: ReadState(**values) for screen, values in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


# ---- queries


def condition(name: str, operator: str, kind: str, value: object) -> dict[str, object]:
    return {"filter": f"filter:tasks:{name}", "operator": operator, "type": kind, "value": value}


def query_tasks(client: Client, number: int, conjunction: str, *conditions: dict[str, object]) -> list[Task]:
    query = json.dumps({"filters": {"conjunction": conjunction, "items": conditions}})
    return [task.model_dump(mode="json", exclude_unset=True) for task in client.tasks(number, FIELDS, query=query)]


def answers_on_server(client: Client, number: int) -> int:
    project = client.retry(lambda sdk: sdk.projects.get(id=number))
    counts = (project.useful_annotation_number, project.skipped_annotations_number, project.ground_truth_number)
    return sum(count or 0 for count in counts)


def newest(tasks: Iterable[Task], until: str) -> str:
    """The latest time of change of the tasks, and `until`."""
    times = [str(task["updated_at"]) for task in tasks] + ([until] if until else [])
    return max(times, key=datetime.fromisoformat, default="")


# ---- versions


def new_versions(tasks: list[Task], parser: AnswerParser, history: Sequence[Record], *, whole: bool) -> list[Record]:
    """New, changed and deleted answers. whole: `tasks` are all; else only an image that is among them can lose one."""
    known = {record.annotation: record for record in latest(history) if record.screen == parser.screen}
    current = {record.annotation: record for task in tasks for record in parser.records(task)}
    images = {str(task.get("data", {}).get("sha256")) for task in tasks}
    deleted = [
        replace(record, status="deleted", values={})
        for number, record in known.items()
        if number not in current and (whole or record.sha256 in images)
    ]
    records: list[Record] = []
    for record in current.values():
        old = known.get(record.annotation)
        if old is None:
            records.append(record)
        elif (record.updated, record.status, record.values) != (old.updated, old.status, old.values):
            keep_draft = record.draft is None  # a draft that was known once stays known
            records.append(replace(record, draft=old.draft, draft_by=old.draft_by) if keep_draft else record)
    return records + deleted


# ---- parsing


@dataclass
class AnswerParser:
    """Reads the answers of one screen. fields: field -> its choices, None for a text. users: id -> e-mail address."""

    screen: str
    fields: Mapping[str, frozenset[str] | None]
    users: Mapping[int, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    def records(self, task: Task) -> list[Record]:
        """The answers to one task, oldest first; none for a task that push did not create."""
        answers = [each for each in task.get("annotations") or [] if isinstance(each, Mapping)]
        data = task.get("data")
        image = self.image(data if isinstance(data, Mapping) else {})
        if image is None:
            self.ignored["answer to a task that push did not create"] += len(answers)
            return []
        drafts = list(offered_drafts(task))
        return [self.record(image, answer, drafts) for answer in sorted(answers, key=lambda answer: answer["id"])]

    def image(self, data: Mapping[str, Any]) -> tuple[str, str] | None:
        """The SHA-256 and the file name of a task's image; None if they are not as push writes them."""
        sha256, name = data.get("sha256"), data.get("file_name")
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256) or not isinstance(name, str):
            return None
        try:
            check_file_name(name)
        except InputError as error:
            self.ignored[error.what] += 1
            return None
        return sha256, name

    def record(self, image: tuple[str, str], answer: Mapping[str, Any], drafts: list[OfferedDraft]) -> Record:
        """One answer. Label Studio keeps what was written when a task is skipped, and accepts a blank text."""
        values = self.values(answer.get("result"))
        draft = draft_behind(answer, drafts)
        return Record(
            *image,
            screen=self.screen,
            annotation=int(answer["id"]),
            annotator=self.user(answer.get("completed_by")),
            status="skipped" if answer.get("was_cancelled") else "written" if values else "blank",
            values=values,
            seconds=float(answer.get("lead_time") or 0.0),
            created=str(answer["created_at"]),
            updated=str(answer["updated_at"]),
            draft=draft.text if draft else None,
            draft_by=draft.source if draft else None,
            origin=origin(answer.get("result")),
        )

    def user(self, user: Any) -> str:
        """The address of a user, who comes as a number or as an object."""
        number = user.get("id") if isinstance(user, Mapping) else user
        return self.users.get(number) or f"user {number}" if number is not None else "unknown"

    def values(self, result: Any) -> Values:
        """Field -> texts or choices, in order, without blank ones. What is not ours is counted in `ignored`."""
        values: Values = {}
        for item in result if isinstance(result, list) else []:
            name, texts = parse_item(item)
            if name not in self.fields:
                self.ignored[f"unknown control {quoted(str(name))}"] += 1
            elif texts is None:
                self.ignored[f"unreadable value of {name!r}"] += 1
            else:
                given, choices = [text for text in texts if text.strip()], self.fields[name]
                valid = [text for text in given if choices is None or text in choices]
                self.ignored.update(f"unknown choice {quoted(text)} of {name!r}" for text in given if text not in valid)
                values |= {name: values.get(name, []) + valid} if valid else {}
        return values


def screen_fields(screen: str, types: tuple[str, ...]) -> dict[str, frozenset[str] | None]:
    """The fields of a screen with their choices, None for a text."""
    if screen != TRIAGE:
        return {screen: None}
    return {name: frozenset(choices) for name, choices in choices_by_field(types).items()}


def parse_item(item: Any) -> tuple[Any, list[str] | None]:
    """(control, its texts or choices) of one item of a result; None if unreadable."""
    if not isinstance(item, Mapping):
        return None, None
    value = item.get("value")
    texts = value.get("text", value.get("choices")) if isinstance(value, Mapping) else None
    if isinstance(texts, str):
        texts = [texts]
    valid = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return item.get("from_name"), texts if valid else None


def origin(result: Any) -> str | None:
    """What the page noted about the draft: "prediction" unchanged, "prediction-changed" edited."""
    for item in result if isinstance(result, list) else []:
        if isinstance(item, Mapping) and str(item.get("origin", "")).startswith("prediction"):
            return str(item["origin"])
    return None


class OfferedDraft(NamedTuple):
    """A draft of a task on the server."""

    id: int
    text: str
    source: str
    created: str


def offered_drafts(task: Task) -> Iterator[OfferedDraft]:
    """The drafts of a task that are not blank."""
    for each in task.get("predictions") or []:
        result = each.get("result") if isinstance(each, Mapping) else None
        first = result[0] if isinstance(result, list) and result and isinstance(result[0], Mapping) else {}
        text = "\n".join(parse_item(first)[1] or [])
        if text.strip():
            meta = first.get("meta")
            source = meta.get(DRAFT_SOURCE) if isinstance(meta, Mapping) else None
            source = str(source or each.get("model_version") or "unknown")
            yield OfferedDraft(each["id"], text, source, str(each["created_at"]))


def draft_behind(answer: Mapping[str, Any], drafts: list[OfferedDraft]) -> OfferedDraft | None:
    """The draft an answer started from; if the page did not note it, the newest that existed before it."""
    parent = answer.get("parent_prediction")
    if parent is not None:
        return next((draft for draft in drafts if draft.id == parent), None)
    earlier = [draft for draft in drafts if draft.created <= str(answer["created_at"])]
    return max(earlier, key=lambda draft: (draft.created, draft.id), default=None)


# ---- writing back


@contextmanager
def opened(project: Project, server: Path, token_file: Path | None) -> Iterator[Client]:
    """A client of a project's server, while no other process works on the project."""
    with locked(project.folder / ".lock"), connect(project.url, token_file, folder=server) as client:
        yield client


def is_reachable(project: Project, server: Path) -> bool:
    """Whether the project was pushed, and the local server runs if it is there."""
    return bool(project.key) and (project.url is not None or find_server(server) is not None)


def write_corrections(client: Client, project: Project, folder: Path) -> tuple[list[Answer], list[Answer]]:
    """Write every pending correction, then pull: the answers written, and those changed on the server since."""
    answers = lay_over(read_history(folder), read_corrections(folder))
    pending = [each for each in answers.all if each.pending and each.record.screen in project.screens]
    written: list[Answer] = []
    skipped: list[Answer] = []
    for answer in ProgressBar(pending, "correcting", unit="answer"):
        (written if write_correction(client, project, answer) else skipped).append(answer)
    if pending:
        pull(client, project, folder)
    return written, skipped


def write_correction(client: Client, project: Project, answer: Answer) -> bool:
    """Write one corrected answer; False if it was changed or deleted on the server since."""
    record = answer.record
    items = client.find(lambda sdk: sdk.annotations.get(id=record.annotation).result or [])
    current = AnswerParser(record.screen, screen_fields(record.screen, project.types)).values(items)
    if items is None or current not in (record.values, answer.values):
        return False
    if current != answer.values:
        corrected = replace_values(items, answer.values)
        client.retry(lambda sdk: sdk.annotations.update(id=record.annotation, result=corrected))
    return True


def replace_values(items: Sequence[Mapping[str, Any]], values: Values) -> list[dict[str, Any]]:
    """A result with other texts: all of a field in the first item of that field; other controls stay."""
    replaced: list[dict[str, Any]] = []
    seen: set[str] = set()
    for item in items:
        name, _ = parse_item(item)
        if name not in values:
            replaced.append(dict(item))
        elif name not in seen:
            kind = "text" if "text" in item["value"] else "choices"
            replaced.append({**item, "value": {**item["value"], kind: values[name]}})
            seen.add(name)
    return replaced


def write_findings(client: Client, project: Project, findings: Mapping[str, str]) -> int:
    """Write lint findings (SHA-256 -> names of checks) into the caption tasks; returns how many tasks changed."""
    tasks, _ = tasks_by_sha256(client, project.screens[caption_field()])
    changed = {sha256: task for sha256, task in tasks.items() if task.data.get(LINT, "") != findings.get(sha256, "")}
    for sha256, task in ProgressBar(changed.items(), "marking", unit="task"):
        data = task.data | {LINT: findings.get(sha256, "")}
        client.retry(lambda sdk, task=task, data=data: sdk.tasks.update(id=str(task.id), data=data))
    return len(changed)
