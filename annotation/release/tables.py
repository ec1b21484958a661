"""The rows of a release as CSV and as Parquet; equal rows give equal bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotation.release.join import Row

if TYPE_CHECKING:
    import pyarrow

COLUMNS: dict[str, str] = {
    "file_name": "string", "text": "string", "texts": "list", "type": "string", "name": "string", "quality": "string",
    "annotator": "string", "source": "string", "seconds": "number", "corrected": "boolean", "origin": "string",
    "draft_source": "string", "sha256": "string", "release": "string",
}  # fmt: skip


def columns(rows: Sequence[Row]) -> dict[str, str]:
    """Column -> its kind: those above, and a text for each field that the schema has beside them."""
    more = {key for row in rows for key in dict(row.annotation) if key not in COLUMNS}
    return COLUMNS | dict.fromkeys(sorted(more), "string")


def as_csv(rows: Sequence[Row]) -> str:
    """A header and a row a picture; `texts` as JSON, as metadata.csv is read; what is missing is an empty cell."""
    names = columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = dict(row.annotation)
        writer.writerow([cell(values.get(name)) for name in names])
    return text.getvalue()


def cell(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """One file with one row group a thousand rows; nothing in it depends on time or place."""
    import pyarrow
    import pyarrow.parquet

    names = columns(rows)
    arrays = [
        pyarrow.array([value_of(dict(row.annotation).get(name), kind) for row in rows], arrow_type(kind))
        for name, kind in names.items()
    ]
    table = pyarrow.table(arrays, names=list(names))
    pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=1000)


def value_of(value: Any, kind: str) -> Any:
    return value if value is None or kind != "string" else str(value)


def arrow_type(kind: str) -> pyarrow.DataType:
    import pyarrow

    kinds = {
        "string": pyarrow.string(),
        "list": pyarrow.list_(pyarrow.string()),
        "number": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
    }
    return kinds[kind]
