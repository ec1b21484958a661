"""Push images to the server as tasks, once each: existing tasks are found by their SHA-256, missing ones are created.

Nothing is recorded here: after a kill the same command finishes the work.
"""

import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from annotation.client import DRAFT_SOURCE, LINT, TRY_AGAIN, Client, Task, UnsureError, list_tasks, tasks_by_sha256
from annotation.drafts import Draft
from annotation.labeling_config import IMAGE, TRIAGE, caption_field
from annotation.project import Project, delete_duplicate_projects, projects_by_screen, set_config
from annotation.server import Server
from data.atomic_io import atomic_file
from data.errors import InputError
from data.images import FORMATS, open_image
from data.progress import ProgressBar
from data.schema import Sample

BATCH = 250  # tasks or predictions per request
TRIES = 5  # imports whose answer may get lost
BROWSER_FORMATS = {"JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "MPO"}  # everything else is converted to PNG
UPLOADS = 5  # images per request: Label Studio takes up to 100 files and 250 MB
IMAGE_ONLY = f'<View><Image name="{IMAGE}" value="${IMAGE}"/></View>'
DRAFTS = "drafts"  # one model version for all drafts: of several versions, Label Studio shows only one
Addresses = dict[str, str]  # SHA-256 -> the value of "image" in the task's data
Drafts = Mapping[str, Draft]  # SHA-256 -> draft


@dataclass
class PushResult:
    created: dict[str, int] = field(default_factory=dict)  # screen -> new tasks
    present: dict[str, int] = field(default_factory=dict)  # screen -> tasks that existed
    drafted: int = 0  # new or changed drafts
    duplicates: int = 0  # duplicate tasks that were deleted
    moved: int = 0  # tasks whose image has a new address
    elsewhere: int = 0  # tasks of images that are no longer in the folder: they stay
    asked_twice: int = 0  # caption tasks for two annotators


@dataclass(frozen=True)
class Screen:
    """The desired content of one screen."""

    name: str
    number: int  # of its Label Studio project
    samples: Sequence[Sample]
    addresses: Addresses
    drafts: Drafts  # for captions only

    @property
    def takes_drafts(self) -> bool:
        """A text box has the focus only if there is a prediction for it, even an empty one."""
        return self.name != TRIAGE

    def task(self, sample: Sample) -> dict[str, Any]:
        data = {IMAGE: self.addresses[sample.sha256], "file_name": sample.annotation.file_name}
        if self.name == caption_field():
            data |= {LINT: ""}  # the Data Manager only has columns that came with an import, in their order
        task: dict[str, Any] = {"data": data | {"sha256": sample.sha256}}
        if self.takes_drafts:
            task["predictions"] = [prediction(self.name, self.drafts.get(sample.sha256))]
        return task


def push(
    client: Client,
    project: Project,
    samples: Sequence[Sample],
    formats: Mapping[str, str],
    *,
    drafts: Drafts | None = None,
    overlap: float = 0.0,
) -> PushResult:
    """Create what is missing on every screen of `project`. Raises InputError; then run it again.

    formats: SHA-256 -> "PNG". drafts: of captions; existing tasks without answers get them too.
    overlap: share of the caption tasks, in [0, 1], given to two annotators.
    """
    result = PushResult()
    server = client.server
    links = link_images(server, project.key, samples, formats) if server else None
    for name, number in project.in_order():
        if server:
            create_storage(client, server, number, project.key)
        addresses = links or upload(client, number, samples, formats)
        is_caption = name == caption_field()
        screen = Screen(name, number, samples, addresses, drafts or {} if is_caption else {})
        tasks, new = fill(client, screen, result)
        if screen.takes_drafts:
            result.drafted += offer_drafts(client, name, number, tasks, screen.drafts, new)
        if is_caption and overlap:
            result.asked_twice = ask_twice(client, tasks, overlap)
    delete_duplicate_projects(client, project)
    return result


def pushed_images(client: Client, project: Project) -> set[str]:
    """The SHA-256 of the images pushed before; none if the project is new, or gone."""
    number = projects_by_screen(client, project).get(caption_field(), {}).get("id")
    return set() if number is None else {task.sha256 for task in list_tasks(client, number)}


# ---- tasks


def fill(client: Client, screen: Screen, result: PushResult) -> tuple[dict[str, Task], set[str]]:
    """Create the missing tasks of a screen; returns all its tasks by SHA-256, and which of them are new."""

    def look() -> dict[str, Task]:
        tasks, duplicates = tasks_by_sha256(client, screen.number)
        result.duplicates += duplicates
        return tasks

    tasks = look()
    wanted = {sample.sha256 for sample in screen.samples}
    new = wanted - tasks.keys()
    result.moved += update_addresses(client, tasks, screen.addresses)
    result.present[screen.name] = len(wanted & tasks.keys())
    result.elsewhere = max(result.elsewhere, len(tasks.keys() - wanted))
    result.drafted += len(screen.drafts.keys() & new)
    result.created[screen.name] = len(new)
    for left in range(TRIES, 0, -1):
        missing = [sample for sample in screen.samples if sample.sha256 not in tasks]
        if not missing:
            break
        try:
            import_tasks(client, screen, missing)
        except UnsureError as error:  # an answer got lost: look what exists now, and continue
            if left == 1:
                raise InputError(f"no answer ({error})", where=client.url, fix=TRY_AGAIN) from None
        tasks = look()
    return tasks, new


def import_tasks(client: Client, screen: Screen, samples: Sequence[Sample]) -> None:
    """Import in batches. Raises UnsureError if an answer got lost."""
    with ProgressBar(desc=f"pushing {screen.name}", total=len(samples), unit="task") as bar:
        for start in range(0, len(samples), BATCH):
            tasks: Any = [screen.task(sample) for sample in samples[start : start + BATCH]]
            client.once(lambda sdk, tasks=tasks: sdk.projects.import_tasks(id=screen.number, request=tasks))
            bar.update(len(tasks))


def update_addresses(client: Client, tasks: Mapping[str, Task], addresses: Addresses) -> int:
    """Update tasks whose image has a new address; returns how many."""
    known = {sha256: task for sha256, task in tasks.items() if sha256 in addresses}
    moved = [task for sha256, task in known.items() if addresses[sha256] != task.data.get(IMAGE)]
    for task in moved:
        data = task.data | {IMAGE: addresses[task.sha256]}
        client.retry(lambda sdk, task=task, data=data: sdk.tasks.update(id=str(task.id), data=data))
    return len(moved)


def ask_twice(client: Client, tasks: Mapping[str, Task], share: float) -> int:
    """Give a share of the unanswered tasks, by the image alone, to two annotators. Returns how many have two."""
    chosen = [task for sha256, task in tasks.items() if int(sha256[:8], 16) < share * 2**32]
    new = [task for task in chosen if task.overlap < 2 and not task.touched]
    for task in ProgressBar(new, "assigning two annotators", unit="task"):
        client.retry(lambda sdk, task=task: sdk.tasks.update(id=str(task.id), overlap=2))
    return sum(task.overlap >= 2 for task in chosen) + len(new)


# ---- images: linked into the folder that the local server serves, or uploaded to another one, named by their SHA-256


def link_images(server: Server, key: str, samples: Sequence[Sample], formats: Mapping[str, str]) -> Addresses:
    """Link the images in the folder that the local server serves; the files stay where they are."""
    folder = server.images / key
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    addresses: Addresses = {}
    for sample in samples:
        name = served_name(sample, formats)
        link_image(folder / name, sample, formats[sample.sha256])
        addresses[sample.sha256] = f"/data/local-files/?d={key}/{name}"
    return addresses


def served_name(sample: Sample, formats: Mapping[str, str]) -> str:
    """The SHA-256 with the suffix of the format that the browser gets."""
    name = formats[sample.sha256]
    return sample.sha256 + (FORMATS[name][0] if name in BROWSER_FORMATS else ".png")


def link_image(path: Path, sample: Sample, format_name: str) -> None:
    """Make `path` show the image; a link to an old place is replaced."""
    if format_name not in BROWSER_FORMATS:
        if not path.exists():
            with atomic_file(path) as temporary:
                open_image(sample.path).save(temporary, "PNG")
    elif not path.is_symlink() or os.readlink(path) != str(sample.path):
        path.unlink(missing_ok=True)
        path.symlink_to(sample.path)


def create_storage(client: Client, server: Server, number: int, key: str) -> None:
    """The storage row without which Label Studio shows no local file of a project, even though it serves them."""
    path = str(server.images / key)
    rows = client.retry(lambda sdk: list(sdk.import_storage.local.list(project=number)))
    if not any(row.path == path for row in rows):
        client.retry(lambda sdk: sdk.import_storage.local.create(project=number, path=path, use_blob_urls=True))


def upload(client: Client, number: int, samples: Sequence[Sample], formats: Mapping[str, str]) -> Addresses:
    """Upload to the Label Studio project `number` what it does not have yet."""
    addresses = uploaded(client, number)
    if missing := [sample for sample in samples if sample.sha256 not in addresses]:
        upload_missing(client, number, missing, formats)
        addresses = uploaded(client, number)
    if lost := [sample for sample in samples if sample.sha256 not in addresses]:
        name = lost[0].annotation.file_name
        raise InputError(f"rejected {len(lost)} images, first {name!r}", where=client.url)
    return addresses


def upload_missing(client: Client, number: int, missing: Sequence[Sample], formats: Mapping[str, str]) -> None:
    """Upload in batches, meanwhile with a screen that shows only the image: Label Studio refuses it otherwise."""
    configuration = str(client.retry(lambda sdk: sdk.projects.get(id=number)).label_config)
    set_config(client, number, IMAGE_ONLY)
    try:
        with ProgressBar(desc="uploading images", total=len(missing), unit="image") as bar:
            for start in range(0, len(missing), UPLOADS):
                batch = missing[start : start + UPLOADS]
                upload_batch(client, number, batch, formats)
                bar.update(len(batch))
    finally:
        set_config(client, number, configuration)


def uploaded(client: Client, number: int) -> Addresses:
    """The images that a project has; Label Studio puts eight letters and a dash before their names."""
    addresses: Addresses = {}
    for each in client.retry(lambda sdk: sdk.files.list(id=number, all_=True)):
        file = str(each.file)
        sha256 = Path(file).stem.rpartition("-")[2]
        addresses.setdefault(sha256, f"/data/{file.removeprefix('/data/').lstrip('/')}")
    return addresses


def upload_batch(client: Client, number: int, batch: Sequence[Sample], formats: Mapping[str, str]) -> None:
    files: list[tuple[str, tuple[str, bytes, str]]] = []
    for sample in batch:
        name = served_name(sample, formats)
        content = io.BytesIO()
        if formats[sample.sha256] in BROWSER_FORMATS:
            content.write(sample.path.read_bytes())
        else:
            open_image(sample.path).save(content, "PNG")
        files.append((name, (name, content.getvalue(), "application/octet-stream")))
    client.post(f"/api/projects/{number}/import", params={"commit_to_project": "false"}, files=files)


# ---- drafts: predictions in Label Studio, exactly one for every task with a text box


def prediction(screen: str, draft: Draft | None) -> dict[str, Any]:
    """A draft as a Label Studio prediction, an empty one for None. Its source is in the result's meta."""
    text, source, score = (draft.text, draft.source, draft.score) if draft else ("", "", 0.0)
    result: dict[str, Any] = {"id": "draft", "from_name": screen, "to_name": IMAGE, "type": "textarea"}
    result |= {"value": {"text": [text]}, "meta": {DRAFT_SOURCE: source}}
    return {"model_version": DRAFTS, "score": score, "result": [result]}


def offer_drafts(
    client: Client, screen: str, number: int, tasks: Mapping[str, Task], drafts: Drafts, new: Collection[str]
) -> int:
    """Give untouched tasks their current draft, and return how many changed. new: tasks created with their draft.

    Old drafts are deleted first: a kill in between leaves tasks without any, which the next push fills.
    """
    draft_of = {task.id: drafts.get(sha256) for sha256, task in tasks.items() if not task.touched}
    known = {sha256: task.id for sha256, task in tasks.items() if sha256 not in new and not task.touched}
    old = {known[sha256]: draft for sha256, draft in drafts.items() if sha256 in known}
    current = current_drafts(client, number, old) if old else {}
    stale = {task_id for task_id, draft in old.items() if current.get(task_id) != [draft.text]}
    miscounted = {task.id for task in tasks.values() if task.id in draft_of and task.drafts != 1}
    if renewed := sorted(stale | miscounted):
        which: Any = {"id": "delete_tasks_predictions", "selected_items": {"all": False, "included": renewed}}
        client.retry(lambda sdk: sdk.actions.create(project=number, **which))
        import_predictions(client, number, {task_id: prediction(screen, draft_of[task_id]) for task_id in renewed})
    return sum(draft_of[task_id] is not None for task_id in renewed)


def current_drafts(client: Client, number: int, wanted: Collection[int]) -> dict[int, list[str]]:
    """Task -> the texts of its drafts; a prediction that is not shaped like ours is a text that differs from all."""

    def text_of(values: Any) -> str:
        try:
            return "\n".join(values["result"][0]["value"]["text"])
        except (LookupError, TypeError):
            return "\0"

    return {
        task.id: [text_of(each if isinstance(each, dict) else each.model_dump()) for each in task.predictions or []]
        for task in client.tasks(number, "id,predictions,result")
        if task.id in wanted
    }


def import_predictions(client: Client, number: int, predictions: Mapping[int, dict[str, Any]]) -> None:
    """Import predictions for tasks that have none. If an answer gets lost, the next push repairs the rest."""
    items = [{"task": task_id, **values} for task_id, values in predictions.items()]
    for start in range(0, len(items), BATCH):
        batch: Any = items[start : start + BATCH]
        try:
            client.once(lambda sdk, batch=batch: sdk.projects.import_predictions(id=number, request=batch))
        except UnsureError as error:
            raise InputError(f"no answer ({error})", where=client.url, fix=TRY_AGAIN) from None
