"""What a report leaves: the page, the blind sheet, numbers for programs, a line for each picture."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.atomic_io import write_atomic
from data.errors import InputError
from infer.evaluation import blind_test, report
from infer.evaluation.collect import Gathered
from infer.evaluation.section import Number, Section

PAGE, JSON, NUMBERS, PICTURES, BLIND = "report.html", "report.json", "numbers.csv", "pictures.csv", "blind.html"
COLUMNS = ("section", "name", "value", "low", "high", "base", "floor", "ceiling", "p", "said")


def folder_for(found: Gathered, asked: Path | None, *, quick: bool) -> Path:
    """Where the report goes. Raises InputError for a folder that holds something else."""
    folder = asked or found.subject.run.path / ("evaluation-quick" if quick else "evaluation")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JSON).is_file():
        raise InputError("holds something else than a report", where=f"--outdir {folder}", fix="Name a new folder.")
    return folder


def write(found: Gathered, sections: Sequence[Section], folder: Path, facts: dict[str, Any]) -> Path:
    """All files; the page's path."""
    write_atomic(folder / JSON, json.dumps(finite({"facts": facts, "counts": asdict(found.counts),
                 "sections": [asdict(each) for each in sections]}), indent=1) + "\n")  # fmt: skip
    write_atomic(
        folder / NUMBERS, csv_of(COLUMNS, [line(each.title, number) for each in sections for number in each.numbers])
    )
    write_atomic(folder / PICTURES, csv_of(*pictures(found)))
    blind_test.page(found).write(folder / BLIND)
    return report.page(found, sections, facts).write(folder / PAGE)


def line(title: str, number: Number) -> list[Any]:
    low, high = (number.interval.low, number.interval.high) if number.interval else (None, None)
    return [
        title,
        number.name,
        number.value,
        low,
        high,
        number.base,
        number.floor,
        number.ceiling,
        number.p,
        number.said,
    ]


def pictures(found: Gathered) -> tuple[Sequence[str], list[list[Any]]]:
    """Every picture with where it lies and the training picture nearest to it."""
    rows = []
    for (side, ask), cell in found.drawings.cells.items():
        place, cosine = found.nearest[side, ask]
        rows.append(
            [side, ask.text, ask.seed, str(cell.path), found.sample(place).annotation.file_name, round(cosine, 4)]
        )
    return ("model", "prompt", "seed", "file", "nearest training picture", "cosine"), rows


def csv_of(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def prompts_hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
