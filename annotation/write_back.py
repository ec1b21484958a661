"""Write corrections of answers and lint findings to the server.

A correction only replaces the text that it was made for: what people wrote since stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from annotation.client import LINT, Client, connect, tasks_by_sha256
from annotation.environment import locked
from annotation.history import Answer, lay_over, read_corrections, read_history
from annotation.labeling_config import caption_field
from annotation.project import Project
from annotation.pull import AnswerParser, Values, parse_item, pull, screen_fields
from annotation.server import find_server
from data.progress import ProgressBar


@contextmanager
def opened(project: Project, server: Path, token_file: Path | None) -> Iterator[Client]:
    """A client of a project's server, while no other process works on the project."""
    with locked(project.folder / ".lock"), connect(project.url, token_file, folder=server) as client:
        yield client


def is_reachable(project: Project, server: Path) -> bool:
    """Whether the project was pushed, and the local server runs if it is there."""
    return bool(project.key) and (project.url is not None or find_server(server) is not None)


def write_corrections(client: Client, project: Project, folder: Path) -> tuple[list[Answer], list[Answer]]:
    """Write every pending correction, then pull. After a kill the next call continues.

    Returns the answers that were written, and those skipped because somebody changed them on the server.
    """
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
