"""Push, answer, pull: every answer arrives unchanged and once, however often it is pulled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from annotation import project, pull, server
from annotation.client import Client
from annotation.drafts import Draft
from annotation.history import latest, read_history
from annotation.images import Selection
from annotation.push import push
from data.errors import InputError
from tests.servers.project.conftest import COUNT, Make, answer, tasks_of

pytestmark = pytest.mark.servers


def drafts_for(selection: Selection, words: str = "a draft") -> dict[str, Draft]:
    half = selection.samples[::2]
    return {each.sha256: Draft(f"{words} of {each.annotation.file_name}", "a-test-1", 0.5) for each in half}


def chosen_item(field: str, choice: str) -> dict[str, Any]:
    return {"id": field, "from_name": field, "to_name": "image", "type": "choices", "value": {"choices": [choice]}}


def test_a_second_push_creates_nothing(client: Client, selection: Selection, make: Make) -> None:
    found = make(types=("water", "fire"))
    first = push(client, found, selection.samples, selection.formats, drafts=drafts_for(selection), overlap=0.3)
    assert first.created == {"text": COUNT, "name": COUNT, "triage": COUNT}
    assert first.drafted == COUNT / 2
    twice = {task.sha256 for task in tasks_of(client, found) if task.overlap == 2}
    assert len(twice) == first.asked_twice == sum(int(each.sha256[:8], 16) < 0.3 * 2**32 for each in selection.samples)

    again = project.create_screens(client, found)
    second = push(client, again, selection.samples, selection.formats, drafts=drafts_for(selection))
    assert second.created == dict.fromkeys(found.screens, 0)
    assert second.present == dict.fromkeys(found.screens, COUNT)
    assert second.drafted == second.duplicates == second.moved == second.elsewhere == 0
    order = [task.sha256 for task in tasks_of(client, found)]
    assert order == [each.sha256 for each in selection.samples], "shown in another order than like beside like"
    for screen in found.screens:
        assert {task.drafts for task in tasks_of(client, found, screen)} == {0 if screen == "triage" else 1}


@pytest.mark.usefixtures("captions_alone")
def test_images_are_served(client: Client, selection: Selection, make: Make) -> None:
    found = make()
    push(client, found, selection.samples, selection.formats)
    headers = client.sdk._client_wrapper.get_headers()
    tasks = tasks_of(client, found)
    for task in tasks:
        shown = client.http.get(client.url + task.data["image"], headers=headers)
        original = next(each for each in selection.samples if each.sha256 == task.sha256).path.read_bytes()
        assert shown.content == original and shown.headers["content-type"] == "image/png"
    assert client.http.get(client.url + tasks[0].data["image"]).status_code in {401, 403}


@pytest.mark.usefixtures("captions_alone")
def test_untouched_tasks_get_new_drafts(client: Client, selection: Selection, make: Make, tmp_path: Path) -> None:
    found = make()
    push(client, found, selection.samples, selection.formats, drafts=drafts_for(selection))
    first, _, third, *_ = tasks_of(client, found)
    answer(client, first, "mine")
    again = push(client, found, selection.samples, selection.formats, drafts=drafts_for(selection, "a better draft"))
    assert again.drafted == COUNT / 2 - 1
    answer(client, third, "corrected")
    pull.pull(client, found, tmp_path)
    old, new = read_history(tmp_path)
    assert (old.draft, old.draft_by) == (f"a draft of {old.file_name}", "a-test-1")
    assert (new.draft, new.draft_by) == (f"a better draft of {new.file_name}", "a-test-1")
    assert all(task.drafts == 1 for task in tasks_of(client, found))


def test_every_kind_of_answer_is_pulled(client: Client, selection: Selection, make: Make, tmp_path: Path) -> None:
    found = make(types=("water", "fire"))
    push(client, found, selection.samples, selection.formats)
    tasks = tasks_of(client, found)
    text = 'a "quoted" fridge, émile 日本\n<b>second</b> line'
    numbers = [answer(client, tasks[0], text, seconds=12.5), answer(client, tasks[1], "one", "two")]
    numbers += [answer(client, tasks[2], "   "), answer(client, tasks[3], "half", was_cancelled=True)]
    numbers += [answer(client, tasks[4], "first"), answer(client, tasks[4], "second")]
    chosen = [chosen_item("quality", "good"), chosen_item("type", "ice")]
    client.sdk.annotations.create(id=tasks_of(client, found, "triage")[0].id, result=chosen)  # type: ignore[arg-type]

    done = pull.pull(client, found, tmp_path)
    assert (done.new, done.changed, done.deleted) == (7, 0, 0)
    assert done.ignored == {"unknown choice 'ice' of 'type'": 1}
    assert not done.changed_screens
    records = {record.annotation: record for record in read_history(tmp_path) if record.screen == "text"}
    texts = [records[number].values.get("text") for number in numbers]
    assert texts == [[text], ["one", "two"], None, ["half"], ["first"], ["second"]]
    kinds = [records[number].status for number in numbers]
    assert kinds == ["written", "written", "blank", "skipped", "written", "written"]
    first = records[numbers[0]]
    assert (first.sha256, first.file_name) == (tasks[0].sha256, tasks[0].data["file_name"])
    assert (first.annotator, first.seconds, first.draft) == (server.USER, 12.5, None)
    (triaged,) = [record for record in read_history(tmp_path) if record.screen == "triage"]
    assert triaged.values == {"quality": ["good"]}


@pytest.mark.usefixtures("captions_alone")
def test_a_later_pull_reads_only_what_changed(client: Client, selection: Selection, make: Make, tmp_path: Path) -> None:
    found = make()
    push(client, found, selection.samples, selection.formats)
    tasks = tasks_of(client, found)
    numbers = [answer(client, task, "before") for task in tasks[:4]] + [answer(client, tasks[4], was_cancelled=True)]
    assert pull.pull(client, found, tmp_path).read_whole == ["text"]
    text = [{"id": "x", "from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": ["after"]}}]
    client.sdk.annotations.update(id=numbers[0], result=text)  # type: ignore[arg-type]
    client.sdk.annotations.delete(id=numbers[1])
    answer(client, tasks[5], "late")

    done = pull.pull(client, found, tmp_path)
    assert "text" not in done.read_whole, "everything was read again"
    assert (done.new, done.changed, done.deleted) == (1, 1, 1)
    history = read_history(tmp_path)
    texts = [record.values.get("text") for record in history if record.annotation == numbers[0]]
    assert texts == [["before"], ["after"]]
    assert [record.status for record in history if record.annotation == numbers[1]] == ["written", "deleted"]
    assert done.statuses == {"written": 4, "skipped": 1}
    before = (tmp_path / "history.jsonl").read_bytes()
    again = pull.pull(client, found, tmp_path)
    assert (again.new, again.changed, again.deleted) == (0, 0, 0)
    whole = pull.pull(client, found, tmp_path, everything=True)
    assert (whole.new, whole.changed, whole.deleted) == (0, 0, 0)
    assert (tmp_path / "history.jsonl").read_bytes() == before


@pytest.mark.usefixtures("captions_alone")
def test_answers_deleted_in_bulk_are_noticed(
    client: Client, selection: Selection, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Data Manager's bulk actions may not update the time of a task: then the counts do not add up."""
    found = make()
    push(client, found, selection.samples, selection.formats)
    tasks = tasks_of(client, found)
    monkeypatch.setattr(pull, "FEW", 2)
    for task in tasks[:3]:
        answer(client, task, "gone soon")
    pull.pull(client, found, tmp_path)
    selected: Any = {"all": False, "included": [task.id for task in tasks[:3]]}
    client.sdk.actions.create(id="delete_tasks_annotations", project=found.screens["text"], selected_items=selected)
    with pytest.raises(InputError, match=r"3 of 3 answers on screen 'text' are gone.*--accept-deleted"):
        pull.pull(client, found, tmp_path)
    assert len(latest(read_history(tmp_path))) == 3, "nothing may change before somebody said so"
    assert pull.pull(client, found, tmp_path, accept_deleted=True).deleted == 3


@pytest.mark.usefixtures("captions_alone")
def test_a_changed_configuration_is_reported_and_restored(
    client: Client, selection: Selection, make: Make, tmp_path: Path
) -> None:
    found = make()
    push(client, found, selection.samples[:2], selection.formats)
    number = found.screens["text"]
    other = client.sdk.projects.get(id=number).label_config or ""
    client.sdk.projects.update(id=number, label_config=other.replace('name="text"', 'name="words"'))
    answer(client, tasks_of(client, found)[0], "under another name", screen="words")
    done = pull.pull(client, found, tmp_path)
    assert done.changed_screens == ["text"]
    assert done.ignored == {"unknown control 'words'": 1}
    assert project.create_screens(client, found) == found
    assert not pull.pull(client, found, tmp_path).changed_screens


def test_other_peoples_projects_are_left_alone(client: Client, selection: Selection) -> None:
    mine = project.new_project("ours", project.LOCAL, selection.folder, ())
    client.sdk.projects.create(title="ours captions", description="by somebody")
    with pytest.raises(InputError, match=r"has a project 'ours captions' \(number \d+\), not created by push.*--name"):
        project.create_screens(client, mine)
    theirs = project.create_screens(client, project.new_project("yours", project.LOCAL, selection.folder, ()))
    with pytest.raises(InputError, match="pushed from another work folder"):
        project.create_screens(client, project.new_project("yours", project.LOCAL, selection.folder, ()))
    client.sdk.projects.delete(id=theirs.screens["name"])
    with pytest.raises(InputError, match=r"the project 'yours names' is gone.*Push again"):
        project.open_screens(client, theirs)
    assert project.create_screens(client, theirs).screens["text"] == theirs.screens["text"]


@pytest.mark.usefixtures("captions_alone")
def test_a_project_requested_by_a_killed_push_is_deleted_if_empty(
    client: Client, selection: Selection, make: Make
) -> None:
    """The server may create it after the next push has looked: the one in use stays, an empty duplicate goes."""
    found = make()
    mark = client.sdk.projects.get(id=found.screens["text"]).description
    late = client.sdk.projects.create(title=found.title("text"), description=mark)
    inverse = replace(found, screens={"text": late.id})
    assert project.create_screens(client, inverse).screens == inverse.screens, "the one that is in use, not the first"
    push(client, found, selection.samples[:2], selection.formats)
    there = [each["id"] for each in project.list_projects(client) if each["description"] == mark]
    assert there == [found.screens["text"]]
    busy = client.sdk.projects.create(title=found.title("text"), description=mark)
    assert busy.id is not None
    tasks: Any = [{"data": {"image": "x", "sha256": "0", "file_name": "y"}}]
    client.sdk.projects.import_tasks(id=busy.id, request=tasks)
    push(client, found, selection.samples[:2], selection.formats)
    there = {each["id"] for each in project.list_projects(client) if each["description"] == mark}
    assert there == {found.screens["text"], busy.id}, "what has tasks is nothing to throw away"


def test_a_project_that_was_created_but_not_saved_is_found(client: Client, selection: Selection) -> None:
    new = project.new_project("half made", project.LOCAL, selection.folder, ())
    made = project.create_screens(client, new)
    assert project.create_screens(client, new).screens == made.screens
