"""Figures and tables kept from a run: small, whole, and refused where there is nothing to keep or it is too large."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from docs.scripts import figures, plots, runs

NAMES = {"unet2d": "UNet2DModel", "basic": "BasicUNet", "plain": "BasicUNet without skips"}
LINE = {"x": [1, 2, 3], "y": [0.5, 0.2, 0.1], "low": [0.4, 0.1, 0.05], "high": [0.6, 0.3, 0.2]}
COMPARISON: dict[str, Any] = {
    "names": NAMES,
    "curves": {kind: [{"name": words, **LINE} for words in NAMES.values()] for kind in ("errors", "losses")},
    "settings": {"seeds": 2, "data": {"set": "digits"}, "steps": 9, "batch_size": 4, "resamples": 2000},
    "verdicts": [{"claim": "Better:", "word": "yes", "difference": {"mean": -0.1, "low": -0.2, "high": -0.05}}],
    "table": [{"network": "BasicUNet", "parameters": 309057, "bits/dim": None, "error of x_0": 0.123456}],
}


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_comparison_becomes_figures_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, docs = tmp_path / "of", tmp_path / "docs"
    folder.mkdir()
    docs.mkdir()
    (folder / "compare.json").write_text(json.dumps(COMPARISON))
    for place, key in enumerate(NAMES):
        for sheet in ("predictions", "samples"):
            Image.new("RGB", (60 + 10 * place, 30), (80 * place, 0, 0)).save(folder / f"{sheet}-{key}.png")
    page = docs / "ddpm-runs.md"
    page.write_text("before\n<!-- compare -->\nold\n<!-- /compare -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["figures.py", "keep", str(folder), "compare", "--out", str(docs)])
    assert figures.main() == 0
    found = sorted(path.name for path in (docs / "figures").iterdir())
    assert found == [f"ddpm-compare-{part}.png" for part in ("errors", "predictions", "samples")]
    with Image.open(docs / "figures" / "ddpm-compare-samples.png") as sheet:
        assert sheet.size == (80, 3 * (30 + runs.LABEL))
        shades = [sheet.convert("RGB").getpixel((5, (place + 1) * (30 + runs.LABEL) - 5)) for place in range(3)]
    assert shades == [(0, 0, 0), (80, 0, 0), (160, 0, 0)]
    words = page.read_text()
    assert words.startswith("before\n<!-- compare -->\n2 runs of each network on digits: 9 steps of 4 images")
    assert "- Better: **yes** (-0.1000, from -0.2000 to -0.0500)\n" in words
    assert "| BasicUNet | 309,057 |  | 0.1235 |\n" in words and words.endswith("\n<!-- /compare -->\nafter\n")
    assert "losses, which are three scales](figures/ddpm-compare-errors.png)\n" in words
    assert figures.main() == 0 and page.read_text() == words
    assert not runs.fill(page, "other", folder)


def test_a_training_becomes_its_curves_and_says_how_far_it_came(tmp_path: Path) -> None:
    rows = [{"step": 0, "validation": {"held-out": 0.9}}]
    rows += [{"step": step + 1, "loss": 1.0 - step / 100} for step in range(45)]
    rows += [{"step": 45, "validation": {"held-out": 0.4}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data.json").write_text(json.dumps({"set": "digits", "pictures": 1614, "steps": 50}))
    (tmp_path / "drawings").mkdir()
    for step, shade in ((250, 10), (505, 20)):
        Image.new("L", (96, 48), shade).save(tmp_path / "drawings" / f"{step:06d}.png")
    curves, drawn = runs.keep_figures(tmp_path, "tutorial", tmp_path)
    assert (curves.name, drawn.name) == ("ddpm-tutorial-training.png", "ddpm-tutorial-drawn.png")
    with Image.open(drawn) as last:
        assert last.getpixel((0, 0)) == 20
    words = "\n".join(runs.lines_of(tmp_path))
    assert "1,614 images of digits, 50 steps. Stopped after step 45" in words
    assert "| mean loss | 0.98 | 0.93 | 0.88 | 0.83 | 0.78 | 0.73 | 0.68 | 0.63 | 0.58 |  |" in words
    assert "from before step 1 to step 45: held-out 0.9000 to 0.4000." in words


def test_scores_stand_above_the_lectures_table(tmp_path: Path) -> None:
    row = {"name": "drawn", "pictures": 400, "frechet": 1.5, "spatial": None, "kernel": {"value": 0.01, "error": 0.002}}
    row["manifold"] = {"precision": 0.9, "recall": 0.5, "density": 1.0, "coverage": 0.8}
    facts = {"features": "classifier 1", "rows": [row], "bits": {"whole bound": {"mean": 3.5, "low": 3.4, "high": 3.6}}}
    facts["learnt"] = {"400 drawn pictures": {"right": 150, "count": 180}}
    (tmp_path / "score.json").write_text(json.dumps(facts))
    words = "\n".join(runs.lines_of(tmp_path))
    assert "| drawn | 400 | 1.5 |  | 0.01 | 0.9 | 0.5 | 1 | 0.8 |" in words
    assert "| whole bound | 3.5 | 3.4 to 3.6 |" in words
    assert "| 400 drawn pictures | 83.3 % |" in words
    assert "| LSUN bedrooms 256 | DDPM | 4.89 | 9.07 | 0.60 | 0.45 |" in words
    assert runs.keep_figures(tmp_path, "score", tmp_path) == []  # no bits were measured
    facts["curve"] = {"rate": [0.001, 0.01, 0.2, 3.0], "rmse": [130.0, 90.0, 40.0, 1.0]}
    (tmp_path / "score.json").write_text(json.dumps(facts))
    assert [figure.name for figure in runs.keep_figures(tmp_path, "score", tmp_path)] == ["ddpm-score-bits.png"]


def test_sheets_are_kept_as_they_are_or_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "drawn", tmp_path / "docs"
    folder.mkdir()
    with pytest.raises(InputError, match="contains no output of fit"):
        runs.keep_figures(folder, "x", out)
    with pytest.raises(InputError, match="contains no results"):
        runs.lines_of(folder)
    Image.new("L", (96, 48)).save(folder / "grid.png")
    noise(1000, 100).save(folder / "trajectory.png")
    noise(100, 100).save(folder / "walk.gif")
    found = {path.name.split("-")[2]: path for path in runs.keep_figures(folder, "digits", out)}
    assert set(found) == {"grid.png", "trajectory.png", "walk.gif"}
    assert found["grid.png"].read_bytes() == (folder / "grid.png").read_bytes()
    with Image.open(found["trajectory.png"]) as smaller:
        assert smaller.size == (runs.WIDTH, 90)
    monkeypatch.setattr(plots, "LIMIT", 500)
    for make in (
        lambda: plots.save_image(noise(100, 100), out / "large.png"),
        lambda: runs.copy_sheet(folder / "walk.gif", out / "large.gif"),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert caught.value.allowed == "500 bytes"
    assert not [*out.glob("large*")]
