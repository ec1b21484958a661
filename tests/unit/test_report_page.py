"""report.html: the verdict on top, the best step marked, previews base first; at every state of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from train.report import MOST_SHOWN, History, render_report, shown_steps
from train.run_folder import Run

PLAN: dict[str, Any] = {
    **dict.fromkeys(("tokens", "optimizer", "switches", "precision"), "words"),
    **{"config": "pocket.yaml", "model": "pocket", "data": "pocket", "adapter": "lora-r4", "device": "CPU"},
    **{"trainable": 10, "parameters": 100, "threads": 1, "done": 0, "training": 16, "held_out": 4, "steps": 30},
    **{"near_duplicates": 0, "batch_size": 4, "accumulate": 1, "processes": 1, "global_batch": 4, "epochs": 7.5},
    **{"left_out": [], "warnings": [], "captions_cut": [], "folders": [], "duration": None, "cost": None},
    "buckets": {
        "64x64": {"pictures": 16, "steps": 30.0, "mean_cropped": 0, "worst_cropped": 0, "enlarged": 0, "batches": 4.0}
    },
    "memory": {"parts": {"weights": 1}, "phases": {"training": 1}, "free": 1},
    "fits": {"needed": 1, "free": 1, "helps": []},
    "disk": {"checkpoint": 1, "kept": 2, "export": 3, "total": 6, "free": 9, "spare": 1},
    "flops": {"forward": 1.0, "step": 3.0},
}


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def look(step: int, held_out: float | None, train: float, word: str = "learns") -> dict[str, Any]:
    losses = {"held-out": held_out, "train": train}
    line = {"step": step, "validation": losses, "change": {}, "per_timestep": {s: [v, v] for s, v in losses.items()}}
    if step:
        change = {side: interval((value or 0) - 0.5) for side, value in losses.items()}
        line |= {"change": change, "gap": interval(0.02), "verdict": {"word": word, "because": f"why at {step}"}}
    return line


def training(*steps: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 0.5, "learning_rate": 1e-4, "gradient_norm": None if step == 2 else 1.0}
        for step in steps
    ]
    window = {"0-249": 0.6, "250-499": 0.4, "500-749": None, "750-999": 0.1}
    return [*rows, {"step": steps[-1], "window": 2, "images_per_second": 8.5, "loss_by_timestep": window, "mfu": 0.4}]


def html(tmp_path: Path, lines: list[dict[str, Any]], ended: str = "", best: int | None = None) -> str:
    return render_report(Run(tmp_path), PLAN, History(lines), ended=ended, best=best).html()


def test_before_the_first_step(tmp_path: Path) -> None:
    text = html(tmp_path, [look(0, 0.5, 0.5)])
    assert "Not trained yet. Still training: step 0 of 30" in text
    assert "no values yet" in text and "Memorisation gap" not in text


def test_the_verdict_and_the_best_step_stand_on_top(tmp_path: Path) -> None:
    lines = [look(0, 0.5, 0.5), *training(1, 2), look(10, 0.4, 0.4), look(20, 0.45, 0.2, "memorises")]
    text = html(tmp_path, lines)
    head = text[: text.index("<svg")]
    assert "It memorises (step 20): why at 20. Still training: step 20 of 30 at the last validation." in head
    assert "<dt>best step</dt><dd>10</dd>" in head and "<dd>-20.0%</dd>" in head
    assert "best, step 10" in text and 'r="6"' in text
    assert "Memorisation gap" in text and "t 750-999" in text
    assert "<dd>8.5</dd>" in text
    assert "(MFU)" in text and "waiting for data" not in text, "what was measured, and nothing else"
    ended = html(tmp_path, lines, "Stopped at step 20.", best=20)
    assert "why at 20. Stopped at step 20." in ended and "best, step 20" in ended


@pytest.mark.parametrize("missing", ["held-out", "train"])
def test_one_side_alone(tmp_path: Path, missing: str) -> None:
    lines = [look(0, 0.5, 0.5), look(10, 0.4, 0.4)]
    for line in lines:
        for key in ("validation", "change", "per_timestep"):
            line[key].pop(missing, None)
        line.pop("gap", None)
    assert "best, step 10" in html(tmp_path, lines)


def test_losses_that_are_not_finite(tmp_path: Path) -> None:
    lines = [look(0, 0.5, 0.5), look(10, 0.4, 0.4), look(20, None, 0.2)]
    lines[2]["change"]["held-out"] = dict.fromkeys(("mean", "low", "high"))
    assert History(lines).best_step == 10
    assert "not finite" in html(tmp_path, lines)


def test_after_other_questions_nothing_is_compared_with_those_before(tmp_path: Path) -> None:
    """More timesteps, other images: losses of their own, and a base that was never asked."""
    lines = [look(0, 0.5, 0.5), look(10, 0.1, 0.1), look(20, 0.4, 0.4), look(30, 0.3, 0.3)]
    for line in lines[2:]:
        more = {side: [value] * 3 for side, value in line["validation"].items()}
        line |= {"questions": "other", "change": {}, "per_timestep": more}
        del line["gap"]
    assert History(lines).validations == lines[2:] and History(lines).best_step == 30
    text = html(tmp_path, lines)
    assert "best, step 30" in text and "<dt>against the base</dt><dd>–</dd>" in text
    assert "not measured" in text and "Loss of held-out images, step 20 and now" in text


def draw(folder: Path, step: int, prompt: str = "a <b>fridge</b>") -> None:
    place = folder / "previews" / f"{step:06d}"
    place.mkdir(parents=True)
    Image.new("RGB", (600, 300), (step * 7 % 256, 0, 0)).save(place / "00000-42.png")
    facts = {"step": step, "pictures": [{"prompt": prompt, "seed": 42}]}
    (place / "preview.json").write_text(json.dumps(facts))


def test_previews_stand_base_first_and_small(tmp_path: Path) -> None:
    for step in (20, 0, 100):
        draw(tmp_path, step)
    (tmp_path / "previews" / ".000120.x.part").mkdir()
    text = html(tmp_path, [look(0, 0.5, 0.5)])
    strip = text[text.index('id="previews"') :]
    assert strip.index(">base<") < strip.index(">step 20<") < strip.index(">step 100<")
    assert strip.count('width="256" height="128"') == 3
    assert "a &lt;b&gt;fridge&lt;/b&gt;  (seed 42)" in strip


def test_many_previews_are_thinned_the_first_and_last_stay(tmp_path: Path) -> None:
    for step in range(0, 310, 10):
        draw(tmp_path, step)
    shown = [int(path.name) for path in shown_steps(tmp_path / "previews")]
    assert len(shown) == MOST_SHOWN and shown[0] == 0 and shown[-1] == 300


def test_previews_of_other_prompts_are_left_out(tmp_path: Path) -> None:
    draw(tmp_path, 0, "old")
    draw(tmp_path, 10, "new")
    draw(tmp_path, 20, "new")
    assert [int(path.name) for path in shown_steps(tmp_path / "previews")] == [10, 20]
    assert shown_steps(tmp_path / "nothing") == []
