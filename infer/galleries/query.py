"""What is typed into the search box: words say what a picture shows, field:value how it was made.

a blue fridge seed:42 steps:>20 model:"my run" -lora:ink star:
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from data.errors import InputError, choose

NUMBERS = {"seed": "seed", "steps": "steps", "cfg": "cfg", "width": "width", "height": "height"}
TEXTS = {"prompt": "prompt", "negative": "negative", "model": "model", "lora": "lora", "sampler": "sampler",
         "program": "program", "verdict": "verdict"}  # fmt: skip
FIELDS = (*NUMBERS, *TEXTS, "file", "date", "star")
TOKEN = re.compile(r'(?P<minus>-?)(?P<field>[a-z_]+):(?P<value>"[^"]*"|\S*)|(?P<word>"[^"]*"|\S+)', re.IGNORECASE)
COMPARED = re.compile(r"(?P<sign>>=|<=|>|<|=)?(?P<number>-?\d+(?:\.\d+)?)(?:\.\.(?P<last>-?\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Query:
    """words: what the picture shows, may be empty. where: SQL without values; values: for its question marks."""

    words: str
    where: str
    values: tuple[Any, ...]


def parse(text: str) -> Query:
    """Raises InputError for an unknown field or a value that it cannot have."""
    words, clauses, values = [], [], []
    for token in TOKEN.finditer(text):
        if token["word"] is not None:
            words.append(token["word"].strip('"'))
            continue
        clause, given = condition(token["field"].lower(), token["value"].strip('"'))
        clauses.append(f"not ({clause})" if token["minus"] else clause)
        values += given
    return Query(" ".join(filter(None, words)), " and ".join(clauses) or "1", tuple(values))


def condition(field: str, value: str) -> tuple[str, list[Any]]:
    """SQL and its values for one field."""
    choose(field, FIELDS, what="field", where="--search")
    if field == "star":
        return ("star = 0" if value.lower() in ("no", "0", "off") else "star = 1"), []
    if field in NUMBERS:
        return compared(NUMBERS[field], value, field, float)
    if field == "date":
        return compared_days(value)
    column = "path" if field == "file" else TEXTS[field]
    if not value:
        return f"coalesce({column}, '') != ''", []
    return f"coalesce({column}, '') like ? escape '\\'", [f"%{escaped(value)}%"]


def escaped(text: str) -> str:
    """For like: % and _ are themselves."""
    return re.sub(r"([%_\\])", r"\\\1", text)


def compared(column: str, value: str, field: str, kind: Callable[[str], float]) -> tuple[str, list[Any]]:
    """42, >20, <=7.5, 10..20."""
    found = COMPARED.fullmatch(value)
    if found is None:
        raise InputError(f"{field}:{value}", where="--search", allowed=f"{field}:42, {field}:>20, {field}:10..20")
    if found["last"] is not None:
        return f"{column} between ? and ?", [kind(found["number"]), kind(found["last"])]
    # a seed may be larger than a float can tell from its neighbour
    number = int(found["number"]) if found["number"].lstrip("-").isdecimal() else kind(found["number"])
    return f"{column} {found['sign'] or '='} ?", [number]


def compared_days(value: str) -> tuple[str, list[Any]]:
    """date:2026-11-21, date:>2026-11-01: of the file."""
    found = re.fullmatch(r"(>=|<=|>|<|=)?(\d{4}-\d{2}-\d{2})", value)
    try:
        day = date.fromisoformat(found[2]) if found else None
    except ValueError:
        day = None
    if found is None or day is None:
        raise InputError(f"date:{value}", where="--search", allowed="date:2026-11-21, date:>2026-11-01")
    start, end = (int(moment(each)) for each in (day, day + timedelta(days=1)))
    return {
        None: ("modified >= ? and modified < ?", [start, end]), "=": ("modified >= ? and modified < ?", [start, end]),
        ">": ("modified >= ?", [end]), ">=": ("modified >= ?", [start]),
        "<": ("modified < ?", [start]), "<=": ("modified < ?", [end]),
    }[found[1]]  # fmt: skip


def moment(day: date) -> float:
    """Midnight at the beginning of a day, here, in nanoseconds."""
    from datetime import datetime

    return datetime(day.year, day.month, day.day).astimezone().timestamp() * 1e9
