"""compare.py as people type it, on the embedded base: a table, a study, the thesis' figures, a run's checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.errors import InputError
from docs.scripts import overview
from infer import metadata
from infer.comparison.results import MAX_PNG
from infer.contact_sheet import GAP
from tests.commands import compare, log, pixels
from tests.errors import error_of
from tests.recipes.test_export import finetune

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "infer" / "compare.py")]


def test_the_command_as_typed(tmp_path: Path) -> None:
    """The embedded base from another folder: outputs/ is where the person is."""
    argv = ["--x", "seed=1,2", "--prompt", "a guitar", "--steps", "2", "--model", "pocket", "--cells", tmp_path / "c"]
    result = subprocess.run([*COMMAND, *argv], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "model: pocket",
        "settings: 2 steps, guidance 4 (the model's)",
        "2 images, 2 newly generated: outputs/0001/index.html and outputs/0001/sheet.png",
    ]
    assert "Traceback" not in result.stderr
    folder = tmp_path / "outputs" / "0001"
    names = ["cells", "compare.json", "index.html", "run.jsonl", "sheet.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert metadata.read_metadata(folder / "cells" / "00001-2.png").seed == 2


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = subprocess.run([*COMMAND, "--x", "stepz=1"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: --x: ")


def test_a_study_and_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--model", "pocket", "--cells", tmp_path / "kept"]
    study = ["--study", "steps", "--x", "steps=1,2", "--seeds", 2, "--prompt", "a guitar"]
    assert compare(*shared, *study, "--outdir", tmp_path / "s") == 0
    said = capsys.readouterr().out
    assert "from 1 to 2 steps the similarity to the prompt (data/pocket/scorer) changes by" in said
    kept = json.loads((tmp_path / "s" / "compare.json").read_text())
    assert kept["curves"]["simple"]["prompts"] == ["a guitar"]
    assert (tmp_path / "s" / "index.html").read_text().count("<svg viewBox") == 3
    assert compare(*shared, "--figures", "thesis", "--steps", 1, "--outdir", tmp_path / "t") == 0
    assert "18 panels of 8 figures, 17 images newly generated, twin prompts" in capsys.readouterr().out
    names = {f"fig-3.{number}.png" for number in range(1, 9)}
    assert names < {path.name for path in (tmp_path / "t").iterdir()}
    lines = log(tmp_path / "t")
    assert len(lines) == 18
    assert {line["figure"] for line in lines} > {"3.1a", "3.5d", "3.8b"}
    page = (tmp_path / "t" / "index.html").read_text()
    assert "the thesis: &#34;A mix of Pikachu and Rayquaza&#34;" in page
    assert len(page) < 18 * MAX_PNG * 2
    for_the_docs(tmp_path / "t", tmp_path / "s")
    for flags, where in (
        (["--study", "guidance", "--y", "seed=1,2"], "--y, --z"),
        (["--study", "guidance", "--x", "seed=1,2"], "--x"),
        (["--figures", "thesis", "--prompt", "a"], "--figures thesis"),
    ):
        assert error_of(compare, *shared, *flags, "--outdir", tmp_path / "n").where == where


def for_the_docs(figures: Path, study: Path) -> None:
    """All 18 panels on one sheet in three rows of six, and a study's curves."""
    sheet = overview.panels(figures)
    side = (sheet.width - GAP) // 6 - GAP
    with Image.open(figures / log(figures)[-1]["file"]) as last:
        shown = last.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    left = sheet.width - GAP - side
    boxes = [(left, top, left + side, top + side) for top in range(sheet.height - side)]
    assert any(sheet.crop(box).tobytes() == shown.tobytes() for box in boxes)
    assert [len(axes.lines) for axes in overview.curves(study, "steps").axes] == [2, 1]
    for make in (overview.panels, lambda folder: overview.curves(folder, "steps")):
        with pytest.raises(InputError, match=r"Make them: infer/compare\.py --"):
            make(figures / "cells")


def test_the_checkpoints_of_a_run(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """0 is the base, every kept step, and the end: which is the last checkpoint's picture."""
    run = finetune(tmp_path / "runs", tiny_model, tiny_data, "--lr", "0.01")
    number = run.path.name.partition("-")[0]
    argv = ["--model", tmp_path / "runs" / number, "--x", "checkpoint=all", "--prompt", "a fire", "--steps", 2]
    assert compare(*argv, "--cells", tmp_path / "kept", "--outdir", tmp_path / "a") == 0
    lines = log(tmp_path / "a")
    assert [line["place"]["checkpoint"].split()[1] for line in lines] == ["0", "1", "2", "final"]
    used = [[lora["name"] for lora in line["loras"]] for line in lines]
    names = [f"{run.path.name}-step-{step}.safetensors" for step in (1, 2)]
    assert used == [[], *[[name] for name in names], [f"{run.path.name}.safetensors"]]
    shown = [pixels(tmp_path / "a" / line["file"]) for line in lines]
    assert len(set(shown)) == 3 and shown[2] == shown[3], "the end is the last checkpoint"
    with pytest.raises(InputError, match="the weights of step 7 are not kept; allowed: 1, 2"):
        compare(*argv[:2], "--x", "checkpoint=7", "--prompt", "a", "--outdir", tmp_path / "b")
