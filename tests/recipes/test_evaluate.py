"""evaluate.py on a run of two steps: the report, a kill and its resume, what is refused before anything is drawn."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data import sample_set
from data.cli import parse
from data.errors import InputError
from infer import metadata
from infer.comparison import figures
from infer.config import ALIASES, EvaluateOptions
from infer.evaluation import command, prompts
from tests.recipes.test_export import finetune
from tools.pocket.scorer import SCORER
from train.run_folder import Run

FEW = replace(prompts.QUICK, steps=1, captions=10, prompts=4, prompt_seeds=1, types=2, objects=3, grid_seeds=1,
              variety=3, variety_seeds=3, triggers=3, losses=8, timesteps=2)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    place = tmp_path_factory.mktemp("evaluate")
    sample_set.write_sample_folder(place / "sixty", count=60, size=32)
    flags = ["--lr", "0.01", "--pictures.held-out", "0.25"]
    return finetune(place / "runs", tiny_model, place / "sixty", *flags)


def evaluate(run: Path, place: Path, *flags: object) -> int:
    where = ["--scorer", SCORER, "--cells", place / "cells", "--outdir", place / "report"]
    words = [str(word) for word in (run, "--quick", *where, *flags)]
    return command.run(parse(EvaluateOptions, words, prog="evaluate.py", aliases=ALIASES))


def test_a_report_killed_and_gone_on_with(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_small(monkeypatch)
    with monkeypatch.context() as meanwhile:
        interrupt_after(5, meanwhile)
        assert evaluate(run.path, tmp_path, "--steps", 1) == 130
    capsys.readouterr()
    kept = len(list((tmp_path / "cells").rglob("*.png")))
    assert kept >= 5 and not (tmp_path / "report").exists()
    assert evaluate(run.path, tmp_path, "--steps", 1) == 0
    said = capsys.readouterr().out
    total = len(list((tmp_path / "cells").rglob("*.png")))
    assert f"{total} images, {total - kept} newly generated" in said
    names = ["blind.html", "numbers.csv", "pictures.csv", "report.html", "report.json"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == names
    assert "nothing-learned: " in said, "after two steps"
    check(tmp_path / "report", total)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    two = figures.load_figures()[:2]
    monkeypatch.setattr(prompts, "QUICK", FEW)
    monkeypatch.setattr(figures, "load_figures", lambda: two)


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when so many pictures are written."""

    write, seen = metadata.write_png, []

    def counted(*args: object) -> None:
        if len(seen) == count:
            raise KeyboardInterrupt
        seen.append(args)
        write(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(metadata, "write_png", counted)


def check(folder: Path, total: int) -> None:
    """Eight sections, numbers with intervals, and the nearest training picture of each drawn one."""
    report = json.loads((folder / "report.json").read_text())
    titles = ["Style", "Prompt adherence", "Types on objects", "Diversity", "Memorisation", "Forgetting"]
    assert [each["title"] for each in report["sections"]] == titles
    page = (folder / "report.html").read_text()
    headings = ["0. Provenance", *(f"{n}. {title}" for n, title in enumerate(titles, 1)), "7. Grid"]
    assert all(f"<h2>{heading}</h2>" in page for heading in headings)
    assert page.count("nearest in training") == 2 * (4 + 3) and "What this cannot say" in page
    assert "http" not in page.split("</style>")[1], "nothing is loaded from anywhere"
    numbers = list(csv.DictReader((folder / "numbers.csv").read_text().splitlines()))
    assert sum(bool(row["low"]) for row in numbers) > 20
    assert {row["section"] for row in numbers} == set(titles)
    pictures = list(csv.DictReader((folder / "pictures.csv").read_text().splitlines()))
    assert len({row["file"] for row in pictures}) == total
    assert all(row["nearest training picture"].endswith(".png") for row in pictures)
    with Image.open(pictures[0]["file"]) as picture:
        assert picture.size == (32, 32), "as large as it was trained"
    assert report["facts"]["features of joint"].startswith("clip 1-")
    blind = (folder / "blind.html").read_text()
    assert blind.count("<fieldset") == 2 * (4 + 3)
    assert "tuned" not in blind.split("<main>")[1].split("<script>")[0], "the page does not tell"


def test_errors_come_before_anything_is_generated(run: Run, tmp_path: Path) -> None:
    def error(**options: object) -> InputError:
        with pytest.raises(InputError) as caught:
            command.run(EvaluateOptions.model_validate({"quick": True, "scorer": SCORER, **options}))
        return caught.value

    assert error(run=run.path, scorer=None).where == "--scorer"
    assert error(run=tmp_path).where == tmp_path
    assert error(runs=tmp_path / "runs").where == "RUN"
    taken = tmp_path / "report"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    assert error(run=run.path, outdir=taken).where == f"--outdir {taken}"
    other = tmp_path / "0002-other"
    shutil.copytree(run.path, other)
    facts = json.loads((other / "data.json").read_text())
    facts["train"][next(iter(facts["train"]))] = "0" * 64
    (other / "data.json").write_text(json.dumps(facts))
    changed = error(run=other)
    assert changed.where == other / "data.json" and changed.what.startswith("2 of the train")
    (other / "done").unlink()
    assert error(run=other).where == f"--model {other}"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert error(run=run.path, scorer=empty).where == empty


def test_what_is_asked() -> None:
    plain = prompts.plain_texts()
    assert len(set(plain)) == 100
    assert plain[:2] == ["a fridge", "a red phone"] and "a line drawing of an apple" in plain
    assert (
        prompts.counts_of(EvaluateOptions()).captions == 0
        and prompts.counts_of(EvaluateOptions(quick=True)).captions == 24
    )
    assert prompts.counts_of(EvaluateOptions(quick=True, steps=3, prompts=5)).steps == 3
    assert prompts.EvalPrompt("a bus (red) [old]", 1).prompt == r"a bus \(red\) \[old\]"
    assert prompts.seed_of(1, "a bus", 0) != prompts.seed_of(1, "a bus", 1) < 2**32
