"""The text screens, in a real browser on a real server, by keyboard only."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from PIL import Image

from annotation.client import Client
from data import sample_set
from tests.servers.browser import LAPTOP
from tests.servers.labelling import Answer, Labelling, answers
from tests.servers.layout import check_layout, parts
from tests.servers.projects import MakeProject

pytestmark = pytest.mark.servers

SAVE = ("Tab", "Control+Enter")
SKIP = ("Tab", "Control+Space")
NAMES = [f"{index:05d}.png" for index in range(10)]
DRAFTS = {name: f"a creature, number {index}" for index, name in enumerate(NAMES)}
TYPED = [string.ascii_letters + string.digits, string.punctuation, "two  words, Água 水 — ‘é’ 🐉"]


@pytest.mark.usefixtures("captions_alone")
def test_ten_images_by_keyboard(labelling: Labelling, client: Client, make_project: MakeProject) -> None:
    number = make_project(count=10, drafts=DRAFTS)["text"]
    labelling.open(number, timed=True)
    check_layout(labelling)
    for text in TYPED:  # written anew: every character that is typed arrives
        labelling.press("Control+a")
        labelling.type(text)
        labelling.finish(*SAVE)
    # Label Studio makes key presses of its own of the numeric pad's; Playwright has its digits with Shift
    labelling.press("Control+a", *(f"Shift+Numpad{digit}" for digit in range(10)), "Enter", "b")
    labelling.finish(*SAVE)
    for _ in range(2):  # accepting a draft costs two keys
        assert labelling.text() == DRAFTS[labelling.file()]
        labelling.finish("Tab", "Control+Enter")
    labelling.finish(*SKIP)
    labelling.type("thrown away ")
    labelling.press("Escape")
    assert labelling.text() == DRAFTS[NAMES[7]]
    labelling.press("Tab")
    assert labelling.focus() == "Submit current annotation"
    labelling.press("Shift+Tab")
    labelling.finish(*SAVE)
    for name in NAMES[8:]:
        assert (labelling.file(), labelling.text()) == (name, DRAFTS[name])
        labelling.press("Control+End")
        labelling.type(", edited")
        labelling.finish(*SAVE)
    assert labelling.at_end()
    assert len(labelling.pauses()) == 8  # from Ctrl+Enter to the next box, once each

    given = answers(client, number)
    assert [answer.file_name for answer in given] == NAMES
    written = [*TYPED, "0123456789\nb"]
    assert given[:4] == [changed(name, text) for name, text in zip(NAMES, written, strict=False)]
    assert given[4:6] == [Answer(name, {"text": DRAFTS[name]}, False, "prediction") for name in NAMES[4:6]]
    assert given[6].skipped
    assert (given[7].values, given[7].skipped) == ({"text": DRAFTS[NAMES[7]]}, False)
    assert given[8:] == [changed(name, f"{DRAFTS[name]}, edited") for name in NAMES[8:]]


def changed(name: str, text: str) -> Answer:
    """What the server keeps of a draft that was edited or written anew."""
    return Answer(name, {"text": text}, False, "prediction-changed")


LONG = "a caption that goes on" + ", and on" * 80


@pytest.mark.usefixtures("captions_alone")
def test_images_of_any_shape_and_captions_of_any_length(
    labelling: Labelling, client: Client, make_project: MakeProject, tmp_path: Path
) -> None:
    sizes = {"a tall one.png": (60, 600), "a wide one.png": (900, 60), "small.png": (16, 16)}
    for name, size in sizes.items():
        Image.new("RGB", size, (200, 100, len(name))).save(tmp_path / name)
    number = make_project(folder=tmp_path, drafts=dict.fromkeys(sizes, LONG))["text"]
    labelling.open(number)
    for name in sizes:
        assert labelling.file() == name
        picture, _, box, keys, _ = seen = parts(labelling)
        assert all(each.within(*LAPTOP) for each in seen)
        assert box.bottom - box.top > 200 and box.bottom <= keys.top  # the box grew with the caption
        assert picture.right <= box.left
        if name == "a tall one.png":
            labelling.type("typed, then the window changed: ")
            labelling.page.set_viewport_size({"width": 900, "height": 700})
            labelling.page.set_viewport_size({"width": LAPTOP[0], "height": LAPTOP[1]})
            assert labelling.text() == "typed, then the window changed: " + LONG
            labelling.finish(*SAVE)
        elif name == "a wide one.png":  # the mouse reaches the rest
            labelling.page.click("[data-testid=bottombar-skip-button] span")
            labelling.wait_for("small.png")
    labelling.page.click(".lsf-current-task button:first-of-type span")
    labelling.wait_for("a wide one.png")
    assert [answer.skipped for answer in answers(client, number)] == [False, True]


HOSTILE = '<img src=x onerror="alert(1);window.hacked=1"><script>window.hacked=1;alert(2)</script>{{7*7}}${alert(3)}'


def test_html_and_script_are_only_text(
    labelling: Labelling, client: Client, make_project: MakeProject, tmp_path: Path
) -> None:
    names = ["<img src=x onerror=alert(1)>.png", "'\"><svg onload=alert(2)>$image {{7*7}}.png"]
    for index, name in enumerate(names):
        Image.new("RGB", (64, 64), (index * 100, 0, 0)).save(tmp_path / name)
    types = ["<img src=x onerror=alert(5)>", "<script>alert(6)</script>", *sample_set.TYPES[2:]]
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
    check_layout(labelling, ".atelier .lsf-choices")
    labelling.finish("1", "Control+Enter")
    assert answers(client, screens["triage"])[0].values == {"type": types[0]}
    for number in (screens["text"], screens["triage"]):  # the list of tasks shows names, drafts and answers
        labelling.page.goto(f"{labelling.url}/projects/{number}/data")
        labelling.page.wait_for_selector(f"text={names[0]}")
        labelling.page.wait_for_selector("img[src*=local-files]")  # small pictures, for whoever looks for one
    assert labelling.page.evaluate("window.hacked") is None
