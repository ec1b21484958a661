"""Corrections and lint findings are written to the server; `status --watch` and `start` read from it."""

import json
from pathlib import Path

import pytest

from annotation import server
from annotation.cli import dispatch, run_status
from annotation.client import LINT, Client
from annotation.config import StatusOptions
from annotation.history import latest, read_history
from annotation.images import Selection
from annotation.project import LOCAL, ROOT, Project, create_screens, new_project, save_project
from annotation.pull import condition, pull, query_tasks, write_findings
from annotation.push import push
from tests.servers.project.conftest import Make, answer, tasks_of

pytestmark = pytest.mark.servers

TEXTS = ["a gray fridge", "a gray fridge", "a gray fridge", "a kettle"]


@pytest.fixture
def answered(
    client: Client, selection: Selection, captions_alone: None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> Project:  # fmt: skip
    """Four captions, pulled into a work folder of this test's own."""
    monkeypatch.chdir(tmp_path)
    made = create_screens(
        client, new_project(request.node.name.removeprefix("test_")[:38], LOCAL, selection.folder, ())
    )
    save_project(made)
    push(client, made, selection.samples, selection.formats)
    for task, text in zip(tasks_of(client, made), TEXTS, strict=False):
        answer(client, task, text, seconds=12.5)
    pull(client, made, ROOT / made.name)
    return made


@pytest.fixture
def own(label_studio: server.Server) -> list[str]:
    return ["--server", str(label_studio.folder)]


def texts_of(client: Client, found: Project) -> list[str]:
    """The captions on the server, in the order of their tasks."""
    tasks = tasks_of(client, found)[: len(TEXTS)]
    results = [client.sdk.annotations.list(id=task.id)[0].result or [] for task in tasks]
    return [result[0]["value"]["text"][0] for result in results]


def test_a_correction_reaches_the_server_but_not_over_newer_work(
    client: Client, answered: Project, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, second, third, _ = tasks_of(client, answered)[:4]
    rewritten, deleted = (client.sdk.annotations.list(id=task.id)[0].id or 0 for task in (second, third))
    item = {"id": "x", "from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": ["my own words"]}}
    client.sdk.annotations.update(id=rewritten, result=[item])  # type: ignore[arg-type]
    client.sdk.annotations.delete(id=deleted)
    assert dispatch(["fix", "--find", "gray", "--replace", "grey", "--apply", *own]) == 0
    assert "on the server: 1 changed, 2 changed by annotators since" in capsys.readouterr().out
    first, *others = latest(read_history(ROOT / answered.name))
    assert [record.values["text"] for record in (first, *others)] == [["a grey fridge"], ["my own words"], ["a kettle"]]
    assert (first.annotator, first.seconds) == (server.USER, 12.5)  # still hers, and it took her as long

    assert dispatch(["fix", "--undo", *own]) == 0
    records = latest(read_history(ROOT / answered.name))
    assert [record.values["text"][0] for record in records] == ["a gray fridge", "my own words", "a kettle"]


def test_a_correction_made_offline_is_written_by_the_next_push(
    client: Client, answered: Project, own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--server", str(tmp_path / "no server")]
    assert dispatch(["fix", "--find", "gray", "--replace", "grey", "--apply", *nowhere]) == 0
    assert "on the server: not yet" in capsys.readouterr().out
    assert texts_of(client, answered) == TEXTS
    assert dispatch(["push", *own]) == 0
    assert "corrected  3 answers; 0 " in capsys.readouterr().out
    assert texts_of(client, answered) == ["a grey fridge"] * 3 + ["a kettle"]
    assert dispatch(["push", *own]) == 0
    assert "corrected  " not in capsys.readouterr().out


def test_lint_findings_can_be_filtered(
    client: Client, answered: Project, selection: Selection, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    number = answered.screens["text"]
    checks = ["lint", "--banned", "gray", *(f"--leave-out={name}" for name in ("alike", "neighbours", "spelling"))]

    def filtered(word: str) -> set[str]:
        """As the Data Manager filters."""
        tasks = query_tasks(client, number, "and", condition(f"data.{LINT}", "contains", "String", word))
        return {task["data"]["sha256"] for task in tasks}

    columns = client.http.get(
        f"{client.url}/api/dm/columns", params={"project": number}, headers=client.sdk._client_wrapper.get_headers()
    ).json()["columns"]
    assert LINT in {column["id"] for column in columns if column.get("parent") == "data"}
    assert filtered("banned") == set()
    assert dispatch([*checks, *own]) == 1
    assert "on the server: 3 tasks changed" in capsys.readouterr().out
    assert filtered("banned") == {task.sha256 for task in tasks_of(client, answered)[:3]}
    again = push(client, answered, selection.samples, selection.formats)
    assert again.moved == 0 and not any(again.created.values())
    assert pull(client, answered, ROOT / answered.name).changed == 0

    first = selection.samples[0].annotation.file_name
    dispatch(["fix", "--find", "gray ", "--replace", "", "--file", first, "--apply", *own])
    capsys.readouterr()
    assert dispatch([*checks, "--json", *own]) == 1
    printed = capsys.readouterr()
    assert [each["rule"] for each in json.loads(printed.out)["findings"]].count("banned") == 2
    assert "on the server: 1 tasks changed" in printed.err
    assert filtered("banned") == {task.sha256 for task in tasks_of(client, answered)[1:3]}
    assert write_findings(client, answered, {}) == 2 and filtered("banned") == set()
    nowhere = ["--server", "no server"]
    assert dispatch([*checks, *nowhere]) == 1
    assert "not marked on the server" in capsys.readouterr().out


def test_watch_pulls_new_answers(
    client: Client, answered: Project, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    looks = 0

    def wait(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise KeyboardInterrupt
        answer(client, tasks_of(client, answered)[5], "seen while watching")

    with pytest.raises(KeyboardInterrupt):
        run_status(StatusOptions.model_validate({"watch": True, "server": own[1]}), wait=wait)
    said = capsys.readouterr().out
    assert "0 new, 0 changed, 0 deleted\n" in said and "4 done" in said
    assert "1 new, 0 changed, 0 deleted\n" in said and "5 done" in said


def test_start_prints_the_links(
    client: Client, answered: Project, make: Make, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = make(name="gone")
    save_project(gone)
    client.sdk.projects.delete(id=gone.screens["text"])
    assert dispatch(["start", *own]) == 0
    said = capsys.readouterr().out.splitlines()
    link = f"{client.url}/projects/{answered.screens['text']}/data?labeling=1"
    assert [line.split()[-1] for line in said if line.startswith(f"{answered.name} captions ")] == [link]
    assert any("the project 'gone captions' is gone. Push again" in line for line in said)
