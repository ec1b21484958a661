"""The screens with a box, in a real browser on a real server, by the keyboard alone."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from PIL import Image

from annotation.client import Client
from tests.servers.labelling import Answer, Labelling, answers
from tests.servers.projects import MakeProject

pytestmark = pytest.mark.servers

SAVE = ("Tab", "Control+Enter")
SKIP = ("Tab", "Control+Space")
DRAFTS = {f"{index:05d}.png": f"a creature, number {index}" for index in range(24)}


def test_every_character_that_is_typed_arrives(labelling: Labelling, client: Client, make_project: MakeProject) -> None:
    number = make_project()["text"]
    labelling.open(number)
    texts = [string.ascii_letters + string.digits, string.punctuation, "two  words, Água 水 — ‘é’ 🐉"]
    for text in texts:
        labelling.type(text)
        labelling.finish(*SAVE)
    # Label Studio makes key presses of its own of the numeric pad's; Playwright has its digits with Shift
    labelling.press(*(f"Shift+Numpad{digit}" for digit in range(10)), "Enter", "b")
    labelling.finish(*SAVE)
    assert [answer.values["text"] for answer in answers(client, number)] == [*texts, "0123456789\nb"]
    assert labelling.at_end()


def test_ten_pictures_by_the_keyboard_alone(labelling: Labelling, client: Client, make_project: MakeProject) -> None:
    number = make_project(count=10, drafts=DRAFTS)["text"]
    labelling.open(number)
    for index in range(10):
        name = f"{index:05d}.png"
        assert (labelling.file(), labelling.text()) == (name, DRAFTS[name])
        labelling.press("Control+End")
        labelling.type(f", edited {index}")
        labelling.finish(*SAVE)
    assert labelling.at_end()
    edited = [(name, f"{DRAFTS[name]}, edited {index}") for index, name in enumerate(list(DRAFTS)[:10])]
    assert answers(client, number) == [
        Answer(name, {"text": text}, False, "prediction-changed") for name, text in edited
    ]


def test_accept_for_two_keys_skip_go_back_to_the_draft_and_rewrite(
    labelling: Labelling, client: Client, make_project: MakeProject
) -> None:
    number = make_project(count=5, drafts=DRAFTS)["text"]
    labelling.open(number)
    labelling.finish("Tab", "Control+Enter")
    labelling.finish("Tab", "Control+Enter")
    assert len(labelling.pauses()) == 2
    labelling.finish(*SKIP)
    labelling.type("thrown away ")
    labelling.press("Escape")
    assert labelling.text() == DRAFTS["00003.png"]
    labelling.finish(*SAVE)
    labelling.press("Control+a")
    labelling.type("written anew")
    labelling.finish(*SAVE)
    assert labelling.at_end()
    *accepted, skipped, returned, rewritten = answers(client, number)
    kept = [Answer(name, {"text": DRAFTS[name]}, False, "prediction") for name in ("00000.png", "00001.png")]
    assert accepted == kept
    assert skipped.skipped
    assert (returned.values, returned.skipped) == ({"text": DRAFTS["00003.png"]}, False)
    assert rewritten == Answer("00004.png", {"text": "written anew"}, False, "prediction-changed")


def test_tab_leads_to_submit_and_the_mouse_reaches_the_rest(
    labelling: Labelling, client: Client, make_project: MakeProject
) -> None:
    number = make_project(count=3, drafts=DRAFTS)["text"]
    labelling.open(number)
    labelling.press("Tab")
    assert labelling.focus() == "Submit current annotation"
    labelling.press("Shift+Tab")
    assert labelling.text() == DRAFTS["00000.png"]
    labelling.page.click("[data-testid=bottombar-skip-button] span")
    labelling.wait_for("00001.png")
    labelling.page.click(".lsf-current-task button:first-of-type span")
    labelling.wait_for("00000.png")
    assert [answer.skipped for answer in answers(client, number)] == [True]


HOSTILE = '<img src=x onerror="alert(1);window.hacked=1"><script>window.hacked=1;alert(2)</script>{{7*7}}${alert(3)}'


def test_html_and_script_are_only_text(
    labelling: Labelling, client: Client, make_project: MakeProject, tmp_path: Path
) -> None:
    names = ["<img src=x onerror=alert(1)>.png", "'\"><svg onload=alert(2)>.png", "$image {{7*7}}.png"]
    for index, name in enumerate(names):
        Image.new("RGB", (64, 64), (index * 100, 0, 0)).save(tmp_path / name)
    types = ["<img src=x onerror=alert(5)>", "<script>alert(6)</script>"]
    screens = make_project(folder=tmp_path, drafts=dict.fromkeys(names, HOSTILE), types=types)
    labelling.open(screens["text"])
    for _ in names:
        assert labelling.file() in names
        assert labelling.text() == HOSTILE
        labelling.finish(*SAVE)
    assert {(answer.file_name, answer.values["text"]) for answer in answers(client, screens["text"])} == {
        (name, HOSTILE) for name in names
    }
    labelling.open(screens["triage"])
    labelling.finish("1", "Control+Enter")
    assert answers(client, screens["triage"])[0].values == {"type": types[0]}
    for number in (screens["text"], screens["triage"]):  # the list of tasks shows names, drafts and answers
        labelling.page.goto(f"{labelling.url}/projects/{number}/data")
        labelling.page.wait_for_selector(f"text={names[0]}")
        labelling.page.wait_for_selector("img[src*=local-files]")  # small pictures, for whoever looks for one
    assert labelling.page.evaluate("window.hacked") is None
