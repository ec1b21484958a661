"""Drafts on their way to the annotator: predictions, of which every task with a box to write in has exactly one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from annotation import interface
from annotation.client import Client, UnsureError
from annotation.tasks import PAGE, Task
from data.errors import InputError

DRAFTS = "drafts"  # one version for all: of several versions, Label Studio shows the drafts of one only
META = "draft_by"
BATCH = 250


class Draft(Protocol):
    """A text that is offered to be corrected."""

    @property
    def text(self) -> str: ...
    @property
    def source(self) -> str: ...  # what made it, e.g. "neighbours-1"
    @property
    def score(self) -> float: ...  # in [0, 1]


Drafts = Mapping[str, Draft]  # by SHA-256


def prediction(screen: str, draft: Draft | None) -> dict[str, Any]:
    """A draft as Label Studio keeps it, an empty one for None. Who made it is in the result's meta."""
    text, source, score = (draft.text, draft.source, draft.score) if draft else ("", "", 0.0)
    result: dict[str, Any] = {"id": "draft", "from_name": screen, "to_name": interface.PICTURE, "type": "textarea"}
    result |= {"value": {"text": [text]}, "meta": {META: source}}
    return {"model_version": DRAFTS, "score": score, "result": [result]}


def offer(
    client: Client, screen: str, number: int, tasks: Mapping[str, Task], drafts: Drafts, fresh: Collection[str]
) -> int:
    """Give tasks that nobody touched the draft they are to have, and none twice; returns how many drafts changed.

    fresh: SHA-256 of tasks that were made with their draft just now. Old drafts go first: a kill in between leaves
    tasks without any, which the next push finds and fills.
    """
    waiting = {task.id: drafts.get(sha256) for sha256, task in tasks.items() if not task.touched}
    old = {tasks[sha256].id: draft for sha256, draft in drafts.items() if sha256 in tasks and sha256 not in fresh}
    old = {task: draft for task, draft in old.items() if task in waiting}
    known = known_drafts(client, number, old) if old else {}
    stale = {task for task, draft in old.items() if known.get(task) != [draft.text]}
    odd = {task.id for task in tasks.values() if task.id in waiting and task.drafts != 1}
    renewed = sorted(stale | odd)
    if renewed:
        discard(client, number, renewed)
        send(client, number, {task: prediction(screen, waiting[task]) for task in renewed})
    return sum(waiting[task] is not None for task in renewed)


def discard(client: Client, number: int, tasks: Sequence[int]) -> None:
    """Take the predictions of these tasks out."""
    chosen: Any = {"all": False, "included": tasks}
    client.insist(lambda sdk: sdk.actions.create(id="delete_tasks_predictions", project=number, selected_items=chosen))


def known_drafts(client: Client, number: int, wanted: Mapping[int, object]) -> dict[int, list[str]]:
    """Task -> the texts of its drafts, of the tasks asked for."""
    listed = client.read(
        lambda sdk: list(sdk.tasks.list(project=number, page_size=PAGE, fields="all", include="id,predictions,result"))
    )
    return {task.id: list(texts(task.predictions or [])) for task in listed if task.id in wanted}


def texts(predictions: Sequence[Any]) -> Iterator[str]:
    """The text of each prediction; what is not shaped like one of ours is a text that differs from all."""
    for each in predictions:
        values = each if isinstance(each, dict) else each.model_dump()
        try:
            yield "\n".join(values["result"][0]["value"]["text"])
        except (LookupError, TypeError):
            yield "\0"


def send(client: Client, number: int, wanted: Mapping[int, dict[str, Any]]) -> None:
    """Import predictions for tasks that have none. If an answer gets lost, the next push sees to doubles and gaps."""
    items = [{"task": task, **values} for task, values in wanted.items()]
    for start in range(0, len(items), BATCH):
        batch: Any = items[start : start + BATCH]
        try:
            client.change(lambda sdk, batch=batch: sdk.projects.import_predictions(id=number, request=batch))
        except UnsureError as error:
            fix = "Run the same command again; what was done is kept."
            raise InputError(f"the server does not answer ({error})", where=client.url, fix=fix) from None
