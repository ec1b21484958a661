"""The tasks of a Label Studio project that push made, by the SHA-256 of their picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from annotation.client import Client

PAGE = 1000  # tasks of one answer
LINT = "lint"  # the task data in which the findings of lint are, for the Data Manager to filter by


@dataclass(frozen=True)
class Task:
    """A task on the server, without its answers."""

    id: int
    sha256: str
    data: dict[str, Any]
    overlap: int  # people who are asked
    drafts: int
    touched: bool  # somebody answered or skipped it


def tasks_by_picture(client: Client, number: int) -> tuple[dict[str, Task], int]:
    """The tasks of a project by SHA-256, in the order of the server; and how many doubles were taken out.

    A picture has two tasks when a push was killed while the server was still at work on its request, and the next one
    looked too early. The one that somebody touched stays, else the older one.
    """
    found: dict[str, Task] = {}
    doubles: list[Task] = []
    for task in sorted(listed(client, number), key=lambda task: (not task.touched, task.id)):
        if task.sha256 not in found:
            found[task.sha256] = task
        elif not task.touched:
            doubles.append(task)
    for task in doubles:
        client.insist(lambda sdk, task=task: delete_task(sdk, task.id))
    return {task.sha256: task for task in sorted(found.values(), key=lambda task: task.id)}, len(doubles)


def listed(client: Client, number: int) -> Iterator[Task]:
    """Every task that push made. Tasks that somebody added by hand have no SHA-256, and are none of its business."""
    fields = "id,data,overlap,total_annotations,cancelled_annotations,total_predictions"
    tasks = client.read(
        lambda sdk: list(sdk.tasks.list(project=number, page_size=PAGE, fields="task_only", include=fields))
    )
    for task in tasks:
        data = task.data if isinstance(task.data, dict) else {}
        if isinstance(data.get("sha256"), str):
            answers = (task.total_annotations or 0) + (task.cancelled_annotations or 0)
            yield Task(task.id, data["sha256"], data, task.overlap or 1, task.total_predictions or 0, bool(answers))


def delete_task(sdk: Any, number: int) -> None:
    """Take a task out; one that is gone already is as good."""
    from label_studio_sdk.core.api_error import ApiError

    try:
        sdk.tasks.delete(id=str(number))
    except ApiError as error:
        if error.status_code != 404:
            raise
