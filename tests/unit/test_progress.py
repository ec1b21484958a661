"""Speed, the use of drafts and the forecast, against numbers worked out by hand; the command `status`."""

import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from annotation import cli
from annotation.config import StatusOptions
from annotation.history import read_history, write_history
from annotation.images import images_by_sha256
from annotation.progress import draft_use, forecast, measure_progress, measure_speed
from annotation.pull import PullResult
from data.errors import InputError
from tests.answers import project, record


def test_images_are_counted_and_not_answers() -> None:
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
    found = measure_progress(history, [f"{number:064x}" for number in (1, 2, 9)])
    assert (found.total, found.done, found.skipped, found.open) == (6, 2, 1, 3)
    assert {name: each.answers for name, each in found.annotators.items()} == {"ana@lab": 4, "ben@lab": 1}


def test_speed() -> None:
    records = [record(number, "a fox", seconds=seconds) for number, seconds in enumerate((10, 20, 30, 40, 2000))]
    found = measure_speed(records)  # the last annotator was away: it counts as 900 s
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
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        past, future = random.gamma(4, 10, 30), random.gamma(4, 10, 100).sum()
        found = forecast(past.tolist(), 100)
        assert found is not None
        held += found.low <= future / 3600 <= found.high
    assert abs(held / 400 - 0.9) < 3 * math.sqrt(0.9 * 0.1 / 400)


@pytest.mark.parametrize(
    ("text", "draft", "origin", "use"),
    [
        ("a fox", None, None, "no draft"),
        ("a fox", " ", None, "no draft"),
        ("a fox", "a  fox", "prediction-changed", "accepted"),  # white space is not an edit
        ("a fox", "a cat", "prediction", "accepted"),  # the page says it is unchanged
        ("a red fox", "a red cat", None, "edited"),  # ROUGE-L 2/3
        ("a red fox in snow", "a cat", None, "rewritten"),  # 2/7
        ("a fox", "a cat", None, "edited"),  # 1/2, on the edge
    ],
)
def test_what_became_of_a_draft(text: str, draft: str | None, origin: str | None, use: str) -> None:
    assert draft_use(record(1, text, draft=draft, origin=origin)) == use


# ---- the command


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return project(tmp_path, [], count=3)


IMAGES = Path("pictures")
HISTORY = [
    record(1, "a fox", draft="a fox", draft_by="blip-1", seconds=10),
    record(2, "a cat", seconds=30),
    record(3, "a wolf", sha256=f"{2:064x}", annotator="ben\x1b@lab", seconds=20),
]


def status(capsys: pytest.CaptureFixture[str], **options: object) -> str:
    assert cli.run_status(StatusOptions.model_validate(options)) == 0
    return capsys.readouterr().out


def test_status_as_lines_and_as_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 done, 0 skipped, 3 open of 3 (0%)" in status(capsys)
    write_history(work, HISTORY)
    output = status(capsys)
    assert "2 done, 0 skipped, 3 open of 5 (40%)" in output
    assert "3 answers; median 20 s, 90th percentile 28 s; 180 per hour" in output
    assert "blip-1: 100% accepted of 1" in output and "token F1 0.50, ROUGE-L 0.50" in output
    assert "\x1b" not in output
    values = json.loads(status(capsys, as_json=True))
    assert (values["done"], values["agreement"]["token_f1"], values["late_corrections"]) == (2, 0.5, 0)
    keys = images_by_sha256(IMAGES)
    write_history(work, [record(number, "a fox", sha256=sha256) for number, sha256 in enumerate(keys)])
    output = status(capsys)
    assert "3 done, 0 skipped, 0 open of 3 (100%)" in output and "hours of work" not in output


def test_watch_pulls_before_each_round(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds: list[float] = []

    def pull(*_: object) -> PullResult:
        if len(rounds) == 2:
            raise InputError("cannot connect", where="http://127.0.0.1:1", fix="Start it.")
        write_history(work, [*read_history(work), record(len(rounds) + 1, "a fox")])
        return PullResult(new=1)

    def wait(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "is_reachable", lambda *_: True)
    monkeypatch.setattr(cli, "opened", lambda *_: nullcontext())
    monkeypatch.setattr(cli, "pull", pull)
    with pytest.raises(KeyboardInterrupt):
        cli.run_status(StatusOptions(watch=True, every=5), wait=wait)
    output = capsys.readouterr().out
    assert "1 done, 0 skipped" in output and "2 done, 0 skipped" in output and rounds == [5, 5, 5]
    assert " set, 1 new, 0 changed, 0 deleted\n" in output
    assert "http://127.0.0.1:1: cannot connect" in output, "a server that is off does not end the watch"
