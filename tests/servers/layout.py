"""The layout of a screen: everything inside the window, nothing overlapping."""

from __future__ import annotations

import itertools

from tests.servers.browser import LAPTOP
from tests.servers.labelling import Box, Labelling

NARROW = (700, 900)
PARTS = (".atelier .picture img", ".atelier .question", "{answer}", ".atelier .keys", "[name=submit]")


def parts(labelling: Labelling, answer: str = ".atelier textarea") -> list[Box]:
    """What must be seen, in the order of the screen. answer: where one answers."""
    return [labelling.where(part.format(answer=answer)) for part in PARTS]


def apart(one: Box, other: Box) -> bool:
    return one.right <= other.left or other.right <= one.left or one.bottom <= other.top or other.bottom <= one.top


def check_layout(labelling: Labelling, answer: str = ".atelier textarea") -> None:
    """Look at the page on a laptop and in a narrow window; the laptop's size is what it has afterwards."""
    for width, height in (NARROW, LAPTOP):
        labelling.page.set_viewport_size({"width": width, "height": height})
        labelling.wait(f"() => innerWidth === {width}")
        seen = parts(labelling, answer)
        assert all(box.within(width, height) for box in seen), (width, seen)
        assert all(itertools.starmap(apart, itertools.combinations(seen, 2))), (width, seen)
        picture = seen[0]
        assert picture.right - picture.left >= 0.4 * width  # small pictures are shown large
        wider = "document.querySelector('.lsf-main-content').scrollWidth - document.documentElement.clientWidth"
        assert labelling.page.evaluate(wider) <= 0  # nothing to scroll to on the right
