"""Tables and figures of docs/ddpm-runs.md: results of the four commands, as Markdown between two markers."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.atomic_io import write_atomic
from data.errors import InputError
from train.metrics import read_metrics

LECTURE = Path(__file__).parents[2] / "data" / "metrics" / "lecture.csv"
PARTS = 10  # rows of a run's table of losses
CAPTIONS = {  # by the last word of a figure's name
    "training": "The loss of every step with its running mean, and the error of x_0 at fixed noise",
    "drawn": "Generated at the end of training, from the same noise as all previews",
    "errors": "Errors of x_0 on a common scale, with bands of 95 %, and the losses, which are three scales",
    "predictions": "Held-out images at rising noise, clean on the left, and below each the prediction",
    "samples": "Generated from noise: UNet2DModel by DDIM, the others by the course's naive sampler",
    "bits": "Bits of each step for held-out images, and the error of the prediction by rate",
    "grid": "Generated images",
    "trajectory": "x_t from noise to image",
    "progressive": "The predicted x_0 at each of those steps",
    "walk": "The same as an animation",
    "interpolation": "Between pairs of held-out images, which are at both ends",
    "inpainting": "Held-out images, the known part of each, and two completions",
}


def fill(page: Path, name: str, folder: Path, figures: Sequence[Path] = ()) -> bool:
    """Write a folder's results between <!-- NAME --> and <!-- /NAME --> of the page; False without such markers.

    figures: made from the folder, shown below its numbers. Raises InputError for a folder with neither.
    """
    text = page.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
    if not block.search(text):
        return False
    lines = [*lines_of(folder, found=bool(figures)), ""]
    for figure in figures:
        caption = CAPTIONS[figure.stem.rpartition("-")[2]]
        lines += [f"{caption}:", "", f"![{caption}]({figure.relative_to(page.parent).as_posix()})", ""]
    words = "\n".join(lines).strip()
    write_atomic(page, block.sub(lambda found: f"{found[1]}{words}\n{found[2]}", text))
    return True


def lines_of(folder: Path, *, found: bool = False) -> list[str]:
    """The Markdown of a folder's numbers. found: whether it has figures; then numbers are optional."""
    for file, lines in (("compare.json", of_comparison), ("score.json", of_score), ("metrics.jsonl", of_training)):
        if (folder / file).is_file():
            return lines(folder)
    if found:
        return []
    raise InputError("contains no results of compare.py, score.py or fit.py", where=folder)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [list(head), ["---"] * len(head), *[[word(cell) for cell in row] for row in rows]]
    return ["| " + " | ".join(line) + " |" for line in lines]


def word(cell: object) -> str:
    """A table cell: integers with commas, floats with four significant digits, empty for None."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


# ---- one function per command


def of_comparison(folder: Path) -> list[str]:
    facts = read(folder / "compare.json")
    settings, rows = facts["settings"], facts["table"]
    lines = [
        f"{settings['seeds']} runs of each network on {settings['data']['set']}: {settings['steps']} steps of "
        f"{settings['batch_size']} images; intervals of 95 % from {settings['resamples']:,} resamples of seeds and "
        f"images, paired.",
        "",
    ]
    for verdict in facts["verdicts"]:
        low, mean, high = (verdict["difference"][key] for key in ("low", "mean", "high"))
        lines.append(f"- {verdict['claim']} **{verdict['word']}** ({mean:+.4f}, from {low:+.4f} to {high:+.4f})")
    return [*lines, "", *table(list(rows[0]), [list(row.values()) for row in rows])]


def of_score(folder: Path) -> list[str]:
    """Our rows, then the published ones."""
    facts = read(folder / "score.json")
    kinds = ("precision", "recall", "density", "coverage")
    head = ("images", "n", "FD", "sFD", "KID", *kinds)
    rows = [
        [row["name"], row["pictures"], row["frechet"], row["spatial"], row["kernel"]["value"]]
        + [row["manifold"][kind] for kind in kinds]
        for row in facts["rows"]
    ]
    lines = [f"Features: {facts['features']}.", "", *table(head, rows), ""]
    bits = [(name, each["mean"], f"{each['low']:.4g} to {each['high']:.4g}") for name, each in facts["bits"].items()]
    lines += [*table(("part of the bound", "bits/dim", "95 % over images"), bits), ""] if bits else []
    accuracies = [(name, f"{100 * each['right'] / each['count']:.1f} %") for name, each in facts["learnt"].items()]
    lines += (
        [*table(("a classifier trained on", "accuracy on held-out real ones"), accuracies), ""] if accuracies else []
    )
    return [*lines, *lecture()]


def lecture() -> list[str]:
    """The published table. Source: Dhariwal & Nichol 2021, arXiv 2105.05233, table 5."""
    head, *rows = csv.reader(LECTURE.read_text(encoding="utf-8").splitlines())
    text = "Published, in Inception's features, of 50,000 samples (Dhariwal & Nichol 2021, table 5):"
    return [text, "", *table(head, rows)]


def of_training(folder: Path) -> list[str]:
    """Mean loss of each tenth of the run, and the error of x_0 at the end."""
    rows, facts = read_metrics(folder / "metrics.jsonl"), read(folder / "data.json")
    losses = [row["loss"] for row in rows if "loss" in row]
    validations = [row for row in rows if "validation" in row]
    done, whole = len(losses), facts["steps"]
    size = whole / PARTS
    means = []
    for part in range(PARTS):
        some = losses[round(part * size) : round((part + 1) * size)]
        means.append(sum(some) / len(some) if some else None)
    left = "" if done >= whole else f" Stopped after step {done:,}."
    lines = [f"{facts['pictures']:,} images of {facts['set']}, {whole:,} steps.{left}", ""]
    lines += table(("tenth", *map(str, range(1, PARTS + 1))), [("mean loss", *means)])
    first, last = validations[0], validations[-1]
    sides = last["validation"].items()
    ends = ", ".join(f"{side} {first['validation'][side]:.4f} to {error:.4f}" for side, error in sides)
    return [*lines, "", f"Error of x_0 at fixed noise, from before step 1 to step {last['step']:,}: {ends}."]
