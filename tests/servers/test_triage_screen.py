"""The triage screen, in a real browser on a real server: one key per choice."""

from __future__ import annotations

import pytest

from annotation import labeling_config
from annotation.client import Client
from data import sample_set
from tests.servers.labelling import Labelling, answers
from tests.servers.projects import MakeProject

pytestmark = pytest.mark.servers

SAVE, SKIP = "Control+Enter", "Control+Space"
TYPES = [*sample_set.TYPES, *(f"kind {index}" for index in range(20))]  # more than there are keys


def press_every_key(labelling: Labelling) -> None:
    """Every key that a choice can have, against Label Studio's own ones."""
    choices = labeling_config.choices_by_field(TYPES)
    keys = labeling_config.assign_keys(choices, labeling_config.Annotation)
    assert set(keys.values()) == set(labeling_config.DIGITS + labeling_config.LETTERS)
    before = labelling.page.inner_text(".lsf-editor")
    chosen: dict[str, str] = {}
    for (field, option), key in keys.items():
        labelling.press(key)
        chosen[field] = option
        assert labelling.chosen() == [chosen[each] for each in choices if each in chosen], key
    labelling.press(*"hru")  # Label Studio's own: to move and draw on pictures, and to let go of what was drawn
    assert labelling.chosen() == [chosen[each] for each in choices]
    assert labelling.page.inner_text(".lsf-editor") == before
    shown = [line.strip("[]") for line in before.splitlines() if line.startswith("[")]
    assert set(keys.values()) <= set(shown)  # and every key is on the screen


def test_type_quality_and_reason_by_single_keys(
    labelling: Labelling, client: Client, make_project: MakeProject
) -> None:
    number = make_project(count=5, types=TYPES)["triage"]
    labelling.open(number)
    press_every_key(labelling)
    labelling.finish("1", "g", "b", "b", SAVE)  # another one takes its place; the same one again takes it back
    assert labelling.chosen() == []  # nothing is left over from the picture before
    labelling.press("2", "3", "f", "p", "p")
    assert labelling.chosen() == ["grass"]
    labelling.finish(SAVE)
    labelling.finish("0", "p", "b", SAVE)
    labelling.finish("d", SKIP)
    labelling.page.click("text=fairy")
    labelling.finish("o", SAVE)  # keys are heard after the mouse was used, too
    assert labelling.at_end()
    given = answers(client, number)
    assert [answer.values for answer in given] == [
        {"type": "water", "quality": "good"},
        {"type": "grass"},
        {"type": "metal", "quality": "poor", "skip_reason": "blurred"},
        {"skip_reason": "duplicate"},
        {"type": "fairy", "skip_reason": "off-topic"},
    ]
    assert [answer.skipped for answer in given] == [False, False, False, True, False]
    assert [answer.file_name for answer in given] == [f"{index:05d}.png" for index in range(5)]
