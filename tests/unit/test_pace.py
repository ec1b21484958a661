"""Pace, the use of drafts, the forecast and agreement, against numbers worked out by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from annotation.commands import status
from annotation.commands.status import Options
from annotation.corrections import Answer, answers
from annotation.deliver import Way
from annotation.pull import Pulled
from annotation.records import Record, read_history, write_history
from annotation.review.agreement import agreement, ranked, side_by_side
from annotation.review.pace import draft_use, forecast, progress, speed, told
from data.errors import InputError
from tests.answers import project, record


def timed(*seconds: float) -> list[Record]:
    return [record(number, "a fox", seconds=each) for number, each in enumerate(seconds, 1)]


def test_counts_are_of_pictures_and_not_of_answers() -> None:
    history = [
        record(1, "a fox"),
        record(2, "a fox", sha256=f"{1:064x}", annotator="ben@lab"),
        record(3, status="skipped"),
        record(4),  # blank: open
        record(5, "a cat", status="skipped", sha256=f"{6:064x}"),  # skipped by one, written by another: done
        record(6, "a cat"),
        record(7, screen="triage", values={"type": ["water"]}),
        record(8, "gone"),
        record(8, "gone", status="deleted"),
    ]
    found = progress(history, [f"{number:064x}" for number in (1, 2, 9)])
    assert (found.total, found.done, found.skipped, found.open) == (6, 2, 1, 3)
    assert {name: each.answers for name, each in found.annotators.items()} == {"ana@lab": 4, "ben@lab": 1}


def test_speed() -> None:
    found = speed(timed(10, 20, 30, 40, 2000))  # the last was away: it counts as 900 s
    assert (found.answers, found.median, found.away) == (5, 30, 1)
    assert found.p90 == pytest.approx(40 + 0.6 * 860)
    assert found.an_hour == pytest.approx(3600 / 200)


def test_the_forecast_is_the_mean_and_a_t_interval() -> None:
    found = forecast([10.0, 20.0, 30.0], 12)
    assert found is not None
    # mean 20, deviation 10, t(0.95, 2) = 2.919986; half = t * 10 * sqrt(12 + 144 / 3) = t * 77.459667
    assert found.hours == pytest.approx(240 / 3600)
    assert found.high - found.hours == pytest.approx(2.919986 * 77.459667 / 3600, rel=1e-6)
    assert found.low == pytest.approx(max(0.0, (240 - 2.919986 * 77.459667) / 3600), rel=1e-5)
    assert forecast([5.0], 10) is None
    done = forecast([5.0, 6.0], 0)
    assert done is not None and (done.low, done.hours, done.high) == (0, 0, 0)


def test_the_interval_holds_as_often_as_it_says() -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        past, future = draw.gamma(4, 10, 30), draw.gamma(4, 10, 100).sum()
        found = forecast(past.tolist(), 100)
        assert found is not None
        held += found.low <= future / 3600 <= found.high
    assert abs(held / 400 - 0.9) < 3 * math.sqrt(0.9 * 0.1 / 400)


@pytest.mark.parametrize(
    ("text", "draft", "origin", "use"),
    [
        ("a fox", None, None, "no draft"),
        ("a fox", " ", None, "no draft"),
        ("a fox", "a  fox", "prediction-changed", "accepted"),  # white space is no edit
        ("a fox", "a cat", "prediction", "accepted"),  # the page says it was taken as it is
        ("a red fox", "a red cat", None, "edited"),  # ROUGE-L 2/3
        ("a red fox in snow", "a cat", None, "rewritten"),  # 2/7
        ("a fox", "a cat", None, "edited"),  # 1/2, on the edge
    ],
)
def test_what_became_of_a_draft(text: str, draft: str | None, origin: str | None, use: str) -> None:
    assert draft_use(record(1, text, draft=draft, origin=origin)) == use


def answer(text: str, annotator: str, updated: str = "t") -> Answer:
    made = record(hash(annotator) % 1000, text, annotator=annotator, updated=updated, sha256="same")
    return Answer(made, made.values, False)


A, B, C = (
    answer("a red fox", "a", "t1"),
    answer("a red fox in snow", "b", "t3"),
    answer("two cats", "c", "t4"),
)


def test_agreement() -> None:
    found = agreement([A, B, C, answer("alone", "a")])
    scores = [(p.first.record.annotator, p.second.record.annotator, p.token_f1) for p in found.pairs]
    assert found.pictures == 1
    assert scores[-1][2] == pytest.approx(2 * 3 / 8)
    assert found.token_f1 == pytest.approx(sum(score for *_, score in scores) / len(scores))
    assert agreement([A]).pairs == [] and agreement([A]).token_f1 == 1.0
    lines = side_by_side(agreement([A, answer("<b>\x1b" + "x " * 300, "c\n")]).pairs[0])
    assert len(lines) < 20 and not any("\x1b" in line or "\n" in line for line in lines)


def test_which_answer_wins() -> None:
    def names(*answers: Answer, **how: object) -> list[str]:
        return [each.record.annotator for each in ranked(answers, **how)]  # type: ignore[arg-type]

    assert names(A, B, C)[-1] == "c"  # shares nothing with the others
    assert names(A, B) == ["b", "a"]  # two agree with each other equally: the newest
    assert names(A, B, C, wins="newest") == ["c", "b", "a"]
    assert names(A, B, C, wins="first") == ["a", "b", "c"]
    assert names(A, B, C, prefer=["c", "a"]) == ["c", "a", "b"]


def test_status_as_lines_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    work = project(tmp_path, [], count=3)
    assert status.run(Options()) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  pictures                0 done, 0 skipped, 3 open of 3 (0%)",
        "  left                    not known before two answers",
    ]
    history = [
        record(1, "a fox", draft="a fox", draft_by="blip-1", seconds=10),
        record(2, "a cat", seconds=30),
        record(3, "a wolf", sha256=f"{2:064x}", annotator="ben\x1b@lab", seconds=20),
    ]
    write_history(work, history)
    assert status.run(Options()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "  pictures                2 done, 0 skipped, 3 open of 5 (40%)",
        "  all                     3 answers; median 20 s, 90th percentile 28 s; 180 an hour",
        "  ana@lab                 2 answers; median 20 s, 90th percentile 28 s; 180 an hour",
    ]
    assert "  drafts                  blip-1: 100% accepted of 1" in lines
    assert "  drafts                  2 captions had none" in lines
    assert "  agreement               token F1 0.50, ROUGE-L 0.50 over 1 pictures with several captions" in lines
    assert not any("\x1b" in line for line in lines)
    assert status.run(Options(as_json=True)) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["done"], values["agreement"]["token_f1"], values["late_corrections"]) == (2, 0.5, 0)


def test_watch_pulls_before_each_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    work = project(tmp_path, [], count=3)
    looks: list[float] = []

    def refresh(way: Way) -> Pulled | None:
        if len(looks) == 2:
            raise InputError("nobody answers", where="http://127.0.0.1:1", fix="Start it.")
        write_history(work, [*read_history(work), record(len(looks) + 1, "a fox")])
        return Pulled(new=1)

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Way, "refresh", refresh)
    with pytest.raises(KeyboardInterrupt):
        status.run(Options(watch=True, every=5), wait=wait)
    said = capsys.readouterr().out
    assert "1 done, 0 skipped" in said and "2 done, 0 skipped" in said and looks == [5, 5, 5]
    assert " set, 1 new, 0 changed, 0 deleted\n" in said
    assert " set, as pulled last: http://127.0.0.1:1: nobody answers. Start it.\n" in said


def test_nothing_is_left_once_all_is_done() -> None:
    lines = told(progress([record(1, "a fox"), replace(record(2), status="skipped")]))
    assert lines[0].split() == ["pictures", "1", "done,", "1", "skipped,", "0", "open", "of", "2", "(100%)"]
    assert not any(line.startswith("  left") for line in lines)
    assert answers([], []).all == []
