"""Every check of captions: a caption that it finds, and one beside it that it must let pass."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotation.corrections import answers
from annotation.review import vocabulary, wording
from annotation.review.findings import Caption, Finding, Rule, captions_of, per_picture
from annotation.review.lint import RULES, Checks, lint, rules, told
from annotation.review.neighbours import Alike, FarFromNeighbours
from data.errors import InputError
from tests.answers import record
from tests.tiny import tiny_tokenizer


def captions(*texts: str, **changes: object) -> list[Caption]:
    return [
        replace(Caption(f"{number:064x}", f"{number:03d}.png", text, "ana@lab", number), **changes)  # type: ignore[arg-type]
        for number, text in enumerate(texts)
    ]


def found(rule: Rule, *texts: str, **changes: object) -> list[tuple[int, str]]:
    """(number of the caption, what) of each finding."""
    return [(finding.caption.annotation, finding.what) for finding in rule.find(captions(*texts, **changes))]


def numbers(rule: Rule, *texts: str, **changes: object) -> list[int]:
    return [number for number, _ in found(rule, *texts, **changes)]


def test_tokens(tmp_path: Path) -> None:
    rule = wording.Tokens(tiny_tokenizer(tmp_path / "tokenizer"), near=5)
    fits, near, full, over = ("water " * count for count in (70, 71, 75, 77))
    said = found(rule, fits, near, full, over + "gone")
    assert [number for number, _ in said] == [1, 2, 3]
    assert said[0][1].startswith("is near the limit: 71 tokens of 75 (tokenizer ")
    assert said[1][1].startswith("is near the limit: 75 tokens of 75")
    assert said[2][1].startswith("has 81 tokens of 75 (tokenizer ")
    assert said[2][1].endswith("; not read: 'water water gone'")
    long = found(rule, "water " * 20_000)  # 120 kB
    assert len(long[0][1]) < 300


def test_blank() -> None:
    assert numbers(wording.Blank(), "", "  \n\u2003", ".", "a") == [0, 1]


def test_characters() -> None:
    hits = ["a\x00b", "a\u202eb", "a\ufffdb", "<b>a</b>", "<script src=x>", "a &amp; b", "&#39;"]
    near = ["a\tb\n", "رأس", "2 < 3 and 5 > 4", "Q&A; x", "R&D", "naïve 電気"]
    assert numbers(wording.Characters(), *hits, *near) == list(range(len(hits)))
    assert found(wording.Characters(), "x\u202e")[0][1] == (
        "holds characters that nobody types (U+202E RIGHT-TO-LEFT OVERRIDE)"
    )


def test_banned() -> None:
    rule = wording.Banned(("photo of", "cute"))
    assert numbers(rule, "A Photo  of a fox", "cute.", "photos of", "acute", "photo", "CUTE-ish fox") == [0, 1, 5]
    assert found(rule, "cute photo of")[0][1] == "holds 'photo of', 'cute', which this set does without"


def test_trigger() -> None:
    rule = wording.Trigger("pktstyle")
    assert numbers(rule, "a fox", "pktstyle, a fox", "a fox, PKTSTYLE", "pktstyles", "") == [0, 3]


def test_type() -> None:
    rule = wording.TypeNamed(("water", "fire"))
    assert found(rule, "a fox", "", "a water fox") == [(0, "names no type (water, fire)")]
    assert found(rule, "a fire fox by the water", "a wet fox", "a fire type fox by the water", type="water") == [
        (1, "does not name its type 'water'"),
        (2, "calls it 'fire' type, the triage says 'water'"),
    ]


def test_synonyms_and_spellings() -> None:
    rule = vocabulary.Drift(("belly tum",))
    texts = ["a photo"] * 3 + ["a photograph", "two photographs", "grey fox", "grey cat", "gray dog", "tum", "bellies"]
    assert numbers(rule, *texts, "a belly") == [3, 4, 8, 7]
    assert dict(found(rule, *texts))[4] == (
        "says 'photographs' where others say 'photos' (synonym; singular or plural, 3 captions)"
    )
    assert numbers(rule, "a photograph", "photographs", "a color", "colorless colours") == [3]
    assert numbers(rule, "a photograph", "a color") == []


def test_slips_of_the_keyboard_and_of_number() -> None:
    common = ["a creature with horns and a striped tail of the water type"] * 20
    rule = vocabulary.Misspelt()
    said = dict(found(rule, *common, "a craeture", "creatures", "corny horn", "a tpye", "stripe", "typo", "watch"))
    assert {number - 20 for number in said} == {0, 1, 2, 3, 4}
    assert said[20] == "says 'craeture', a slip of 'creature' (20 captions)?"
    assert said[21] == "says 'creatures', the other number of 'creature' (20 captions)?"
    assert numbers(vocabulary.Misspelt(("Craeture",)), *common, "a craeture") == []
    assert numbers(rule, *common[:9], "a craeture") == []  # too few to know
    assert numbers(rule, *common, *["a craeture"] * 3) == []  # too many for a slip


def test_the_same_caption_of_two_pictures() -> None:
    rule = Alike(0.9)
    long = "one two three four five six seven eight nine ten"
    texts = [long, long.upper() + "!", f"{long} eleven", "one two three", "", ""]
    assert found(rule, *texts) == [
        (1, "says the same as '000.png'"),
        (2, "says nearly the same as '000.png'"),
    ]
    assert numbers(rule, *texts, sha256="one picture, two people") == []
    assert numbers(Alike(0.99), *texts) == [1]
    assert numbers(rule) == numbers(rule, "", "") == []


def test_far_from_the_captions_of_like_pictures() -> None:
    reds, blues = ([f"a {colour} disc number {n} on a plain ground" for n in range(30)] for colour in ("red", "blue"))
    texts = [*reds, *blues]
    texts[3] = "two cats asleep on the sofa"
    rows = {f"{n:064x}": np.array([n >= 30, n / 1000], np.float32) for n in range(60)}
    said = found(FarFromNeighbours(rows), *texts)
    assert [number for number, _ in said] == [3]
    assert said[0][1].startswith("is unlike the captions of the pictures most like it ('002.png', '004.png', ")
    assert numbers(FarFromNeighbours(rows), *reds, *blues) == []
    assert numbers(FarFromNeighbours(rows), *texts[:15]) == []  # too few to have neighbours
    assert numbers(FarFromNeighbours({}), *texts) == []


def test_all_checks_together(tmp_path: Path) -> None:
    checks = Checks(trigger="pkt", banned=("cute",))
    features = {f"{n:064x}": np.ones(2, np.float32) for n in range(30)}
    made = rules(checks, tokenizer=tiny_tokenizer(tmp_path / "t"), types=["water"], features=features)
    assert tuple(rule.name for rule in made) == RULES
    few = rules(Checks(leave_out=("blank", "alike")), tokenizer=None, types=(), features={})
    assert [rule.name for rule in few] == ["characters", "vocabulary", "spelling"]
    hostile = captions("<script>", "\x00\u2028", "x " * 50_000, "\u202eرأس", "", *["a water fox, pkt"] * 25)
    findings = lint(hostile, made)
    assert {finding.rule for finding in findings} >= {"tokens", "blank", "characters", "trigger", "type", "alike"}
    lines = "\n".join(told(findings, hostile, made))
    assert "\x00" not in lines and "\u202e" not in lines and len(lines) < 60_000
    assert lines.splitlines()[-1].startswith("30 captions, 29 with findings (tokens 1, blank 1, characters 3,")
    assert json.loads(json.dumps([finding.fields() for finding in findings]))[0]["file_name"] == "000.png"


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(InputError, match="--leave-out: unknown check 'token', did you mean 'tokens'"):
        rules(Checks(leave_out=("token",)), tokenizer=None, types=(), features={})


def test_what_is_looked_at_and_what_goes_to_the_server() -> None:
    history = [
        record(1, "a fox"),
        record(2),
        record(3, "a cat", status="skipped"),
        record(4, screen="triage", values={"type": ["water"]}, sha256=f"{1:064x}"),
        record(5, values={"text": ["one", "two"]}),
    ]
    seen = captions_of(answers(history, []), {f"{1:064x}": "water"})
    assert [(caption.text, caption.type) for caption in seen] == [
        ("a fox", "water"), ("", None), ("one", None), ("two", None)
    ]  # fmt: skip
    findings = [Finding(rule, seen[1], "", "") for rule in ("type", "blank", "type")]
    assert per_picture(findings, seen) == {f"{1:064x}": "", f"{2:064x}": "blank type", f"{5:064x}": ""}


def test_a_finding_is_two_lines_whatever_is_in_it() -> None:
    caption = captions("a\nb\x1b[31m" + "x" * 500, file_name="a\nb.png")[0]
    lines = str(Finding("rule", caption, "is it?", "Do.")).split("\n")
    assert lines[0] == "a\\nb.png: rule: is it? Do."
    assert len(lines) == 2 and lines[1].startswith("    a\\nb\\x1b[31mxxx") and lines[1].endswith("...")
