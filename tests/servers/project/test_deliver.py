"""Corrections and findings on their way to the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from annotation import server
from annotation.client import Client
from annotation.commands import dispatch
from annotation.deliver import LINT, mark
from annotation.intake import Intake
from annotation.project import ROOT, Project, make_screens, new, save
from annotation.pull import pull
from annotation.push import push
from annotation.records import read_history, standing
from tests.servers.project.conftest import answer, tasks_of

pytestmark = pytest.mark.servers


@pytest.fixture
def answered(
    label_studio: server.Server, client: Client, taken: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """Three captions, pulled into a work folder of this test's own, for commands that look for the usual server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server, "find", lambda folder=None: label_studio)
    made = make_screens(client, new("corrected", "own", taken.folder, ()))
    save(made)
    push(client, made, taken.pictures, taken.formats)
    for task in tasks_of(client, made)[:3]:
        answer(client, task, "a gray fridge")
    pull(client, made, ROOT / made.name)
    return made


def texts_of(client: Client, found: Project) -> list[str]:
    """The captions on the server, in the order of their tasks."""
    tasks = tasks_of(client, found)[:3]
    results = [client.sdk.annotations.list(id=task.id)[0].result or [] for task in tasks]
    return [result[0]["value"]["text"][0] for result in results]


def test_a_correction_reaches_the_server_but_not_over_newer_work(
    client: Client, answered: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    second = client.sdk.annotations.list(id=tasks_of(client, answered)[1].id)[0]
    item = {"id": "x", "from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": ["my own words"]}}
    client.sdk.annotations.update(id=second.id, result=[item])  # type: ignore[arg-type]
    assert dispatch(["fix", "--find", "gray", "--replace", "grey", "--apply"]) == 0
    assert "on the server: 2 changed, 1 left as they are" in capsys.readouterr().out
    assert texts_of(client, answered) == ["a grey fridge", "my own words", "a grey fridge"]
    history = standing(read_history(ROOT / answered.name))
    assert [record.values["text"] for record in history] == [["a grey fridge"], ["my own words"], ["a grey fridge"]]

    assert dispatch(["fix", "--undo"]) == 0
    assert texts_of(client, answered) == ["a gray fridge", "my own words", "a gray fridge"]


def test_a_correction_made_without_a_server_goes_with_the_next_push(
    label_studio: server.Server, client: Client, answered: Project,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(server, "find", lambda folder=None: None)
    assert dispatch(["fix", "--find", "gray", "--replace", "grey", "--apply"]) == 0
    assert texts_of(client, answered)[0] == "a gray fridge"
    monkeypatch.setattr(server, "find", lambda folder=None: label_studio)
    assert dispatch(["push"]) == 0
    assert "corrected  3 answers; 0 left" in capsys.readouterr().out
    assert texts_of(client, answered) == ["a grey fridge"] * 3
    assert dispatch(["push"]) == 0
    assert "corrected" not in capsys.readouterr().out.replace("captions/corrected", "")


def test_findings_can_be_filtered_by(client: Client, answered: Project, taken: Intake) -> None:
    first, second, *_ = taken.pictures
    marks = {first.sha256: "too-long", second.sha256: ""}
    assert mark(client, answered, marks) == 1
    assert mark(client, answered, marks) == 0
    assert {task.data.get(LINT) for task in tasks_of(client, answered) if task.sha256 == first.sha256} == {"too-long"}
    assert mark(client, answered, {first.sha256: ""}) == 1
    again = push(client, answered, taken.pictures, taken.formats)
    assert again.moved == 0 and not any(again.created.values())
