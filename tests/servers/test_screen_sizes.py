"""The screens as they are seen: everything in the window, nothing over anything else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image

from tests.servers.browser import LAPTOP
from tests.servers.labelling import Box, Labelling
from tests.servers.projects import MakeProject

pytestmark = pytest.mark.servers

NARROW = (700, 900)
PARTS = (".atelier .picture img", ".atelier .question", "{answer}", ".atelier .keys", "[name=submit]")
LONG = "a caption that goes on" + ", and on" * 80


def parts(labelling: Labelling, screen: str) -> list[Box]:
    """What must be seen, in the order of the screen."""
    answer = ".atelier .lsf-choices" if screen == "triage" else ".atelier textarea"
    return [labelling.where(part.format(answer=answer)) for part in PARTS]


def apart(one: Box, other: Box) -> bool:
    return one.right <= other.left or other.right <= one.left or one.bottom <= other.top or other.bottom <= one.top


@pytest.mark.parametrize("screen", ["text", "name", "triage"])
def test_everything_is_in_the_window(screen: str, labelling: Labelling, make_project: MakeProject) -> None:
    labelling.open(make_project(count=1)[screen])
    for width, height in (LAPTOP, NARROW):
        labelling.page.set_viewport_size({"width": width, "height": height})
        labelling.page.wait_for_function(f"innerWidth === {width}")
        seen = parts(labelling, screen)
        assert all(box.within(width, height) for box in seen), (screen, width, seen)
        assert all(itertools.starmap(apart, itertools.combinations(seen, 2))), (screen, width, seen)
        picture = seen[0]
        assert picture.right - picture.left >= 0.4 * width  # small pictures are shown large
        wider = "document.querySelector('.lsf-main-content').scrollWidth - document.documentElement.clientWidth"
        assert labelling.page.evaluate(wider) <= 0  # nothing to scroll to on the right


def test_pictures_of_any_shape_and_captions_of_any_length(
    labelling: Labelling, make_project: MakeProject, tmp_path: Path
) -> None:
    sizes = {"a tall one.png": (60, 600), "a wide one.png": (900, 60), "small.png": (16, 16)}
    for name, size in sizes.items():
        Image.new("RGB", size, (200, 100, len(name))).save(tmp_path / name)
    labelling.open(make_project(folder=tmp_path, drafts=dict.fromkeys(sizes, LONG))["text"])
    for _ in sizes:
        picture, _, box, keys, _ = seen = parts(labelling, "text")
        assert all(each.within(*LAPTOP) for each in seen)
        assert box.bottom - box.top > 200 and box.bottom <= keys.top  # the box grew with the caption
        assert picture.right <= box.left
        labelling.type("typed, then the window changed: ")
        labelling.page.set_viewport_size({"width": 900, "height": 700})
        labelling.page.set_viewport_size({"width": LAPTOP[0], "height": LAPTOP[1]})
        assert labelling.text() == "typed, then the window changed: " + LONG
        labelling.finish("Tab", "Control+Enter")
    assert labelling.at_end()
