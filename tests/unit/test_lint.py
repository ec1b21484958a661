"""Every check of captions: captions that it finds, and similar ones that it must let pass."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from annotation import lint
from annotation.config import LintOptions
from annotation.history import lay_over
from annotation.lint import Caption, Finding
from annotation.vocabulary import inconsistent_words, likely_typos
from data.errors import InputError
from tests.answers import record
from tests.tiny import tiny_tokenizer

Check = Callable[[list[Caption]], lint.Found]


def captions(*texts: str, **changes: object) -> list[Caption]:
    return [
        replace(Caption(f"{number:064x}", f"{number:03d}.png", text, "ana@lab", number), **changes)  # type: ignore[arg-type]
        for number, text in enumerate(texts)
    ]


def found(check: Check, *texts: str, **changes: object) -> list[tuple[int, str]]:
    """(number of the caption, what) of each finding."""
    return [(caption.annotation, what) for caption, what, _ in check(captions(*texts, **changes))]


def numbers(check: Check, *texts: str, **changes: object) -> list[int]:
    return [number for number, _ in found(check, *texts, **changes)]


def test_tokens(tmp_path: Path) -> None:
    check = partial(lint.check_tokens, tokenizer=tiny_tokenizer(tmp_path / "tokenizer"), near=5)
    results = found(check, *("water " * count for count in (70, 71, 75)), "water " * 77 + "gone")
    assert [number for number, _ in results] == [1, 2, 3]
    for (_, what), count in zip(results, (71, 75, 81), strict=True):
        assert f"{count} tokens of 75" in what
    assert results[2][1].endswith("'water water gone'")
    assert len(found(check, "water " * 20_000)[0][1]) < 300  # 120 kB


def test_blank() -> None:
    assert numbers(lint.check_blank, "", "  \n\u2003", ".", "a") == [0, 1]


def test_characters() -> None:
    hits = ["a\x00b", "a\u202eb", "a\ufffdb", "<b>a</b>", "<script src=x>", "a &amp; b", "&#39;"]
    near = ["a\tb\n", "رأس", "2 < 3 and 5 > 4", "Q&A; x", "R&D", "naïve 電気"]
    assert numbers(lint.check_characters, *hits, *near) == list(range(len(hits)))
    assert "U+202E RIGHT-TO-LEFT OVERRIDE" in found(lint.check_characters, "x\u202e")[0][1]


def test_banned() -> None:
    check = partial(lint.check_banned, banned=("photo of", "cute"))
    assert numbers(check, "A Photo  of a fox", "cute.", "photos of", "acute", "photo", "CUTE-ish fox") == [0, 1, 5]


def test_trigger() -> None:
    check = partial(lint.check_trigger, trigger="pktstyle")
    assert numbers(check, "a fox", "pktstyle, a fox", "a fox, PKTSTYLE", "pktstyles", "") == [0, 3]


def test_type() -> None:
    check = partial(lint.check_type, types=("water", "fire"))
    assert numbers(check, "a fox", "", "a water fox") == [0]
    texts = ["a fire fox by the water", "a wet fox", "a fire type fox by the water"]
    assert numbers(check, *texts, type="water") == [1, 2]


def inconsistent(captions: list[Caption], groups: tuple[str, ...] = ()) -> lint.Found:
    return lint.check_words(captions, inconsistent_words([caption.text for caption in captions], groups))


def typos(captions: list[Caption], accepted: tuple[str, ...] = ()) -> lint.Found:
    return lint.check_words(captions, likely_typos([caption.text for caption in captions], accepted))


def test_synonyms_and_spellings() -> None:
    check = partial(inconsistent, groups=("belly tum",))
    texts = ["a photo"] * 3 + ["a photograph", "two photographs", "grey fox", "grey cat", "gray dog", "tum", "bellies"]
    assert sorted(numbers(check, *texts, "a belly")) == [3, 4, 7, 8]
    what = dict(found(check, *texts))[4]
    assert "'photographs'" in what and "'photos'" in what and "3 captions" in what
    assert numbers(check, "a photograph", "photographs", "a color", "colorless colours") == [3]
    assert numbers(check, "a photograph", "a color") == []


def test_typos_and_wrong_numbers() -> None:
    common = ["a creature with horns and a striped tail of the water type"] * 20
    results = dict(found(typos, *common, "a craeture", "creatures", "corny horn", "a tpye", "stripe", "typo", "watch"))
    assert {number - 20 for number in results} == {0, 1, 2, 3, 4}
    assert "'craeture'" in results[20] and "'creature'" in results[20]
    assert numbers(partial(typos, accepted=("Craeture",)), *common, "a craeture") == []
    assert numbers(typos, *common[:9], "a craeture") == []  # too few to know
    assert numbers(typos, *common, *["a craeture"] * 3) == []  # too many for a typo


def test_the_same_caption_for_two_images() -> None:
    check = partial(lint.check_alike, threshold=0.9)
    long = "one two three four five six seven eight nine ten"
    texts = [long, long.upper() + "!", f"{long} eleven", "one two three", "", ""]
    results = found(check, *texts)
    assert [number for number, _ in results] == [1, 2] and all("'000.png'" in what for _, what in results)
    assert numbers(check, *texts, sha256="one image, two people") == []
    assert numbers(partial(lint.check_alike, threshold=0.99), *texts) == [1]
    assert numbers(check) == numbers(check, "", "") == []


def test_captions_unlike_those_of_similar_images() -> None:
    reds, blues = ([f"a {colour} disc number {n} on a plain ground" for n in range(30)] for colour in ("red", "blue"))
    texts = [*reds, *blues]
    texts[3] = "two cats asleep on the sofa"
    rows = {f"{n:064x}": np.array([n >= 30, n / 1000], np.float32) for n in range(60)}
    check = partial(lint.check_neighbours, features=rows, deviations=3.0)
    ((number, what),) = found(check, *texts)
    assert number == 3 and "'002.png', '004.png'" in what
    assert numbers(check, *reds, *blues) == []
    assert numbers(check, *texts[:15]) == []  # too few to have neighbours
    assert numbers(partial(lint.check_neighbours, features={}, deviations=3.0), *texts) == []


def test_all_checks_together(tmp_path: Path) -> None:
    features = {f"{n:064x}": np.ones(2, np.float32) for n in range(30)}
    hostile = captions("<script>", "\x00\u2028", "x " * 50_000, "\u202eرأس", "", *["a water fox, pkt"] * 25)
    options = LintOptions(trigger="pkt", banned=("cute",))
    tokenizer = tiny_tokenizer(tmp_path / "t")
    findings, checks = lint.lint(hostile, options, tokenizer=tokenizer, types=["water"], features=features)
    assert {finding.rule for finding in findings} >= {"tokens", "blank", "characters", "trigger", "type", "alike"}
    assert {finding.rule for finding in findings} <= set(checks)
    lines = lint.format_findings(findings, hostile, checks)
    assert "\x00" not in "".join(lines) and "\u202e" not in "".join(lines) and len("".join(lines)) < 60_000
    assert lines[-1].startswith("30 captions, 29 with findings (tokens 1, blank 1, characters 3,")
    assert json.loads(json.dumps([finding.as_json() for finding in findings]))[0]["file_name"] == "000.png"

    options = LintOptions(leave_out=("blank", "alike"))
    _, fewer = lint.lint(hostile, options, tokenizer=None, types=(), features={})
    assert set(fewer) == set(checks) - {"blank", "alike", "tokens", "banned", "trigger", "type", "neighbours"}
    with pytest.raises(InputError, match="'tokens'") as error:
        lint.lint([], LintOptions(leave_out=("token",)), tokenizer=None, types=(), features={})
    assert error.value.where == "--leave-out"


def test_captions_are_checked_with_the_type_of_the_newest_triage() -> None:
    one = f"{1:064x}"
    history = [
        record(1, "a fox"),
        record(2),
        record(3, "a cat", status="skipped"),
        record(4, screen="triage", values={"type": ["water"]}, sha256=one, updated="t2"),
        record(6, screen="triage", values={"type": ["fire"]}, sha256=one, updated="t1"),
        record(5, values={"text": ["one", "two"]}),
    ]
    checked = lint.captions_of(lay_over(history, []))
    assert [(caption.text, caption.type) for caption in checked] == [
        ("a fox", "water"), ("", None), ("one", None), ("two", None)
    ]  # fmt: skip
    findings = [Finding(rule, checked[1], "", "") for rule in ("type", "blank", "type")]
    assert lint.rules_by_image(findings, checked) == {one: "", f"{2:064x}": "blank type", f"{5:064x}": ""}


def test_a_finding_is_two_lines_whatever_it_contains() -> None:
    caption = captions("a\nb\x1b[31m" + "x" * 500, file_name="a\nb.png")[0]
    lines = str(Finding("rule", caption, "is it?", "Do.")).split("\n")
    assert lines[0] == "a\\nb.png: rule: is it? Do."
    assert len(lines) == 2 and lines[1].startswith("    a\\nb\\x1b[31mxxx") and lines[1].endswith("...")
