"""Pictures to tasks, once each: what is on the server already is found by its SHA-256, and only the rest is made.

Nothing is noted here about what was done; every push looks at the server. So it may be killed anywhere, or the server
may, and the same command finishes the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from annotation import delivery, interface
from annotation.client import Client, UnsureError
from annotation.offers import Drafts, offer, prediction
from annotation.project import Project, drop_twins, projects_titled
from annotation.tasks import LINT, Task, listed, tasks_by_picture
from data.errors import InputError
from data.schema import Annotation, Sample

if TYPE_CHECKING:
    from label_studio_sdk import LabelStudio

BATCH = 250  # tasks of one request
TRIES = 5  # looks at the server after requests that were not answered
TWO = 2  # people who are asked about a task of the overlapping share


@dataclass
class Pushed:
    """What came of it."""

    created: dict[str, int] = field(default_factory=dict)  # screen -> tasks
    present: dict[str, int] = field(default_factory=dict)  # screen -> tasks that were there
    drafted: int = 0  # new or changed drafts of captions
    doubled: int = 0  # tasks that stood twice and were taken out
    moved: int = 0  # tasks whose picture has a new address
    elsewhere: int = 0  # tasks of pictures that are no longer in the folder: they stay
    asked_twice: int = 0  # caption tasks that wait for two people


@dataclass(frozen=True)
class Screen:
    """One screen of a project and what is to be on it."""

    name: str
    number: int  # of its Label Studio project
    pictures: Sequence[Sample]
    addresses: delivery.Addresses
    drafts: Drafts  # empty but for the captions

    @property
    def takes_drafts(self) -> bool:
        """A box to write in has the focus only if there is a prediction in it, be it an empty one."""
        return self.name != interface.TRIAGE

    def task(self, sample: Sample) -> dict[str, Any]:
        """A task as it is imported."""
        address = self.addresses[sample.sha256]
        data = {"image": address, "file_name": sample.annotation.file_name}
        if self.name == caption_screen():
            data |= {LINT: ""}  # the Data Manager knows only the columns that came with an import, in their order
        data |= {"sha256": sample.sha256}
        if not self.takes_drafts:
            return {"data": data}
        return {"data": data, "predictions": [prediction(self.name, self.drafts.get(sample.sha256))]}


def push(
    client: Client,
    project: Project,
    pictures: Sequence[Sample],
    formats: Mapping[str, str],
    *,
    drafts: Drafts | None = None,
    overlap: float = 0.0,
) -> Pushed:
    """Make what is missing on every screen of `project`, whose screens are there. Raises InputError: run it again then.

    formats: SHA-256 -> "PNG". drafts: SHA-256 -> draft of its caption; tasks that nobody touched yet get them too.
    overlap: share of the caption tasks, in [0, 1], that two people are asked about.
    """
    done = Pushed()
    linked = delivery.link(client.own, project.key, pictures, formats) if client.own else None
    for name, number in project.in_order():
        if client.own:
            delivery.make_storage(client, client.own, number, project.key)
        addresses = linked or delivery.upload(client, number, pictures, formats)
        caption = name == caption_screen()
        screen = Screen(name, number, pictures, addresses, drafts or {} if caption else {})
        tasks, fresh = fill(client, screen, done)
        if screen.takes_drafts:
            done.drafted += offer(client, name, number, tasks, screen.drafts, fresh)
        if caption and overlap:
            done.asked_twice = ask_twice(client, tasks, overlap)
    drop_twins(client, project)
    return done


def known_pictures(client: Client, project: Project) -> set[str]:
    """The SHA-256 of the pictures that were pushed before; none if a project is new, or gone."""
    number = projects_titled(client, project).get(caption_screen(), {}).get("id")
    return set() if number is None else {task.sha256 for task in listed(client, number)}


def caption_screen() -> str:
    """The screen on which captions are written."""
    return next(name for name, how in Annotation.asked().items() if how["ask"] == "caption")


def fill(client: Client, screen: Screen, done: Pushed) -> tuple[dict[str, Task], set[str]]:
    """Make the missing tasks of a screen; returns all its tasks by SHA-256, and which of them are new."""

    def look() -> dict[str, Task]:
        found, doubled = tasks_by_picture(client, screen.number)
        done.doubled += doubled
        return found

    before = look()
    wanted = {sample.sha256 for sample in screen.pictures}
    done.moved += mend(client, before, screen.addresses)
    done.present[screen.name] = len(wanted & before.keys())
    done.elsewhere = max(done.elsewhere, len(before.keys() - wanted))
    fresh = wanted - before.keys()
    done.drafted += len(screen.drafts.keys() & fresh)
    done.created[screen.name] = len(fresh)
    if not fresh:
        return before, fresh
    count = tasks_in(client, screen)
    made = import_all(client, screen, set(before), look)
    if made.keys() == fresh and tasks_in(client, screen) == count + len(fresh):
        return before | made, fresh
    return look(), fresh  # an answer was lost, or somebody else, such as a push that was killed, made tasks meanwhile


def tasks_in(client: Client, screen: Screen) -> int:
    """How many tasks there are on a screen, ours or not; far quicker than to list them."""
    return client.read(lambda sdk: sdk.projects.get(id=screen.number)).task_number or 0


def import_all(client: Client, screen: Screen, there: set[str], look: Callable[[], dict[str, Task]]) -> dict[str, Task]:
    """Import what is not `there`; whenever an answer gets lost, look at what is there now, and go on.

    Returns what was made last: everything, if no answer got lost.
    """
    for left in range(TRIES, 0, -1):
        try:
            return import_missing(client, screen, there)
        except UnsureError as error:
            if left == 1:
                fix = "Run the same command again; what was done is kept."
                raise InputError(f"the server does not answer ({error})", where=client.url, fix=fix) from None
        there = set(look())
    raise AssertionError("the last try returns or raises")


def import_missing(client: Client, screen: Screen, there: set[str]) -> dict[str, Task]:
    """Import in batches; returns the new tasks by SHA-256. Raises UnsureError if an answer is missing."""
    missing = [sample for sample in screen.pictures if sample.sha256 not in there]
    made: dict[str, Task] = {}
    with tqdm(total=len(missing), desc=f"pushing {screen.name}", unit="task", disable=None, leave=False) as bar:
        for start in range(0, len(missing), BATCH):
            request: Any = [screen.task(sample) for sample in missing[start : start + BATCH]]
            numbers = client.change(lambda sdk, request=request: imported(sdk, screen.number, request))
            for number, each in zip(numbers, request, strict=False):  # without the numbers, fill() looks for itself
                data, drafts = each["data"], len(each.get("predictions", []))
                made[data["sha256"]] = Task(number, data["sha256"], data, overlap=1, drafts=drafts, touched=False)
            bar.update(len(request))
    return made


def imported(sdk: LabelStudio, number: int, request: Any) -> list[int]:
    """Import tasks; returns their numbers, in the order of the request."""
    answer = sdk.projects.import_tasks(id=number, request=request, return_task_ids=True)
    return list(getattr(answer, "task_ids", None) or [])


def mend(client: Client, tasks: Mapping[str, Task], addresses: delivery.Addresses) -> int:
    """Give tasks the address at which their picture is now, should it have changed."""
    known = {sha256: task for sha256, task in tasks.items() if sha256 in addresses}
    moved = [task for sha256, task in known.items() if addresses[sha256] != task.data.get("image")]
    for task in moved:
        data = task.data | {"image": addresses[task.sha256]}
        client.insist(lambda sdk, task=task, data=data: sdk.tasks.update(id=str(task.id), data=data))
    return len(moved)


def ask_twice(client: Client, tasks: Mapping[str, Task], share: float) -> int:
    """Have two people asked about a share of the tasks. Which ones is a function of the picture alone.

    A task that is answered already is left alone: Label Studio would not ask anybody again.
    """
    chosen = [task for sha256, task in tasks.items() if int(sha256[:8], 16) < share * 2**32]
    new = [task for task in chosen if task.overlap < TWO and not task.touched]
    for task in tqdm(new, desc="asking two people", unit="task", disable=None, leave=False):
        client.insist(lambda sdk, task=task: sdk.tasks.update(id=str(task.id), overlap=TWO))
    return sum(task.overlap >= TWO for task in chosen) + len(new)
