"""The index: a SQLite file that knows every picture by its content, where it lies, how it was made and what it shows.

Pictures are known by their bytes: one that was moved keeps its star and is not looked at again, copies are one picture
with several places. Every batch is a transaction, so a killed run is only shorter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from sqlite3 import Row
from typing import Any

import numpy as np
from PIL import Image

from data.atomic_io import cache_root
from data.errors import InputError, check_choice, printable
from data.features import Clip
from data.progress import ProgressBar
from data.reports.page import Page
from infer import metadata, output, png_info
from infer.comparison.measures import POCKET_SCORER
from infer.config import GalleryOptions
from infer.metadata import ImageMetadata

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
INDEX_BATCH = 64  # pictures a transaction
SCHEMA = """
create table if not exists pictures (
  sha256 text primary key, prompt text, negative text, model text, lora text, sampler text, seed integer, steps integer,
  cfg real, width integer, height integer, program text, verdict text, star integer not null default 0,
  judge text, features blob, problem text
);
create table if not exists places (
  path text primary key, sha256 text not null references pictures, size integer, modified integer
);
create index if not exists by_content on places (sha256);
"""


@dataclass(frozen=True)
class IndexChanges:
    """What an index run found."""

    new: int = 0
    moved: int = 0
    gone: int = 0
    unreadable: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [f"{self.new} new", f"{self.moved} more places of known ones", f"{self.gone} gone"]
        return ", ".join(told) + (f", {len(self.unreadable)} no pictures" if self.unreadable else "")


class GalleryIndex:
    """An open index of one folder."""

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self.folder = folder.resolve()
        if not self.folder.is_dir():
            raise InputError("no such folder", where=f"--folder {folder}", fix="Draw something: infer/generate.py.")
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        self.file = file or cache_root() / "galleries" / f"{name}.sqlite"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(self.file, timeout=30.0)
        self.base.row_factory = sqlite3.Row
        try:
            self.base.executescript(SCHEMA)
        except sqlite3.DatabaseError:
            raise InputError(
                "is no index", where=self.file, fix="Delete it: it is made again, without stars."
            ) from None

    def close(self) -> None:
        self.base.close()

    # ---- filling

    def update(self, judge: Clip) -> IndexChanges:
        """Look for what is new, moved or gone; only new content is read and encoded."""
        known = {row["path"]: (row["size"], row["modified"]) for row in self.base.execute("select * from places")}
        there = {str(path.relative_to(self.folder)): path for path in image_files(self.folder)}
        changed = [name for name, path in there.items() if known.get(name) != file_stamp(path)]
        new, moved, bad = 0, 0, []
        for start in ProgressBar(range(0, len(changed), INDEX_BATCH), "indexing", unit="batch", delay=1.0):
            added, placed, failed = self.take(changed[start : start + INDEX_BATCH], there, judge)
            new, moved, bad = new + added, moved + placed, [*bad, *failed]
        gone = self.forget([name for name in known if name not in there])
        self.encode_missing(judge)
        return IndexChanges(new, moved, gone, tuple(bad))

    def take(self, names: Sequence[str], there: dict[str, Path], judge: Clip) -> tuple[int, int, list[str]]:
        """Take a batch in, in one transaction: how many new pictures, more places of known ones, and what is none."""
        fresh: dict[str, tuple[dict[str, Any], Image.Image]] = {}
        places, moved, bad = [], 0, []
        for name in names:
            try:
                content = there[name].read_bytes()
                sha = hashlib.sha256(content).hexdigest()
                if sha in fresh or self.knows(sha):
                    moved += 1
                else:
                    fresh[sha] = (read_facts(there[name]), open_rgb(there[name]))
                places.append((name, sha, *file_stamp(there[name])))
            except (OSError, InputError, SyntaxError, ValueError) as error:
                bad.append(f"{name}: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}")
        features = judge.encode([picture for _, picture in fresh.values()]) if fresh else []
        with self.base:
            for (sha, (facts, _)), row in zip(fresh.items(), features, strict=True):
                values = {**facts, "sha256": sha, "judge": judge.version, "features": row.tobytes()}
                names_of = ", ".join(values)
                self.base.execute(f"insert into pictures ({names_of}) values ({', '.join('?' * len(values))})",
                                  tuple(values.values()))  # fmt: skip
            self.base.executemany("insert or replace into places values (?, ?, ?, ?)", places)
        return len(fresh), moved, bad

    def knows(self, sha: str) -> bool:
        return self.base.execute("select 1 from pictures where sha256 = ?", (sha,)).fetchone() is not None

    def forget(self, names: Sequence[str]) -> int:
        """Places that are gone; a picture stays in the index for its star, should it come back."""
        with self.base:
            self.base.executemany("delete from places where path = ?", [(name,) for name in names])
        return len(names)

    def encode_missing(self, judge: Clip) -> None:
        """Encode again what another judge encoded."""
        rows = self.base.execute(
            "select sha256, min(path) as path from pictures join places using (sha256) where judge is not ? "
            "group by sha256",
            (judge.version,),
        ).fetchall()
        for start in range(0, len(rows), INDEX_BATCH):
            batch = rows[start : start + INDEX_BATCH]
            found = judge.encode([open_rgb(self.folder / row["path"]) for row in batch])
            with self.base:
                self.base.executemany(
                    "update pictures set judge = ?, features = ? where sha256 = ?",
                    [(judge.version, one.tobytes(), row["sha256"]) for one, row in zip(found, batch, strict=True)],
                )

    # ---- asking

    def star(self, path: Path, on: bool) -> None:
        """Mark a picture, wherever its copies lie. Raises InputError for one that is not in the gallery."""
        try:
            name = str(path.resolve().relative_to(self.folder))
        except ValueError:
            name = ""
        row = self.base.execute("select sha256 from places where path = ?", (name,)).fetchone()
        if row is None:
            raise InputError(f"{path} is not in the gallery", where="--star", allowed=f"pictures in {self.folder}")
        with self.base:
            self.base.execute("update pictures set star = ? where sha256 = ?", (int(on), row["sha256"]))

    def rows(self, where: str = "1", values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Pictures that are somewhere, the newest first; `places` are joined by a newline, copies folded."""
        return self.base.execute(
            "select pictures.*, group_concat(path, char(10)) as places, max(modified) as modified, count(*) as copies "
            f"from pictures join places using (sha256) where {where} group by sha256 order by modified desc, path",
            tuple(values),
        ).fetchall()


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of change: what must differ for a file to be read again."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def image_files(folder: Path) -> Iterator[Path]:
    """Every picture file below, without following links out of the folder or hidden folders.

    Sheets that generate.py laid out beside its pictures show nothing of their own.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        sheets = (
            {output.GRID_FILE, output.COMPARE_FILE} if output.LOG_FILE in files or output.JOB_FILE in files else set()
        )
        for name in sorted(files):
            path = Path(place, name)
            wanted = path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and name not in sheets
            if wanted and not path.is_symlink():
                yield path


def open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def read_facts(path: Path) -> dict[str, Any]:
    """How a picture was made, as far as it says; a foreign or damaged text leaves the fields empty and says so."""
    with Image.open(path) as picture:
        size = {"width": picture.width, "height": picture.height}
    try:
        texts = png_info.read_image_texts(path)
        if metadata.KEY in texts:
            return size | facts_from_metadata(metadata.read_metadata(path))
        found = png_info.read_foreign(texts, str(path))
        return size | (facts_from_foreign(found) if found else {})
    except (InputError, ValueError) as error:
        return size | {"problem": str(error).splitlines()[0][:200]}


def facts_from_metadata(recipe: ImageMetadata) -> dict[str, Any]:
    return {
        "prompt": recipe.prompt, "negative": recipe.negative_prompt, "model": recipe.model.name,
        "lora": ", ".join(f"{lora.name}:{lora.weight:g}" for lora in recipe.loras), "sampler": recipe.sampler,
        "seed": recipe.seed, "steps": recipe.steps, "cfg": recipe.guidance_scale, "program": "atelier",
        "verdict": recipe.verdict,
    }  # fmt: skip


def facts_from_foreign(found: png_info.ForeignSettings) -> dict[str, Any]:
    """Of another program's settings, under our names."""
    names = {"prompt": "prompt", "negative": "negative_prompt", "sampler": "scheduler", "seed": "seed",
             "steps": "steps", "cfg": "guidance_scale", "model": "model"}  # fmt: skip
    values = {ours: found.values.get(theirs) for ours, theirs in names.items()}
    kept = {name: value if isinstance(value, int | float | str) or value is None else json.dumps(value)
            for name, value in values.items()}  # fmt: skip
    return kept | {"program": found.program}


def stack_features(rows: Sequence[sqlite3.Row]) -> np.ndarray:
    """(n, d) of the index' rows."""
    return np.stack([np.frombuffer(row["features"], np.float32) for row in rows])


NUMBER_FIELDS = {"seed": "seed", "steps": "steps", "cfg": "cfg", "width": "width", "height": "height"}
TEXT_FIELDS = {"prompt": "prompt", "negative": "negative", "model": "model", "lora": "lora", "sampler": "sampler",
         "program": "program", "verdict": "verdict"}  # fmt: skip
SEARCH_FIELDS = (*NUMBER_FIELDS, *TEXT_FIELDS, "file", "date", "star")
QUERY_TOKEN = re.compile(r'(?P<minus>-?)(?P<field>[a-z_]+):(?P<value>"[^"]*"|\S*)|(?P<word>"[^"]*"|\S+)', re.IGNORECASE)
NUMBER_CONDITION = re.compile(r"(?P<sign>>=|<=|>|<|=)?(?P<number>-?\d+(?:\.\d+)?)(?:\.\.(?P<last>-?\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Query:
    """words: what the picture shows, may be empty. where: SQL without values; values: for its question marks."""

    words: str
    where: str
    values: tuple[Any, ...]


def parse_query(text: str) -> Query:
    """Raises InputError for an unknown field or a value that it cannot have."""
    words, clauses, values = [], [], []
    for token in QUERY_TOKEN.finditer(text):
        if token["word"] is not None:
            words.append(token["word"].strip('"'))
            continue
        clause, given = field_condition(token["field"].lower(), token["value"].strip('"'))
        clauses.append(f"not ({clause})" if token["minus"] else clause)
        values += given
    return Query(" ".join(filter(None, words)), " and ".join(clauses) or "1", tuple(values))


def field_condition(field: str, value: str) -> tuple[str, list[Any]]:
    """SQL and its values for one field."""
    check_choice(field, SEARCH_FIELDS, what="field", where="--search")
    if field == "star":
        return ("star = 0" if value.lower() in ("no", "0", "off") else "star = 1"), []
    if field in NUMBER_FIELDS:
        return number_condition(NUMBER_FIELDS[field], value, field, float)
    if field == "date":
        return date_condition(value)
    column = "path" if field == "file" else TEXT_FIELDS[field]
    if not value:
        return f"coalesce({column}, '') != ''", []
    return f"coalesce({column}, '') like ? escape '\\'", [f"%{escape_like(value)}%"]


def escape_like(text: str) -> str:
    """For like: % and _ are themselves."""
    return re.sub(r"([%_\\])", r"\\\1", text)


def number_condition(column: str, value: str, field: str, kind: Callable[[str], float]) -> tuple[str, list[Any]]:
    """42, >20, <=7.5, 10..20."""
    found = NUMBER_CONDITION.fullmatch(value)
    if found is None:
        raise InputError(f"{field}:{value}", where="--search", allowed=f"{field}:42, {field}:>20, {field}:10..20")
    if found["last"] is not None:
        return f"{column} between ? and ?", [kind(found["number"]), kind(found["last"])]
    # a seed may be larger than a float can tell from its neighbour
    number = int(found["number"]) if found["number"].lstrip("-").isdecimal() else kind(found["number"])
    return f"{column} {found['sign'] or '='} ?", [number]


def date_condition(value: str) -> tuple[str, list[Any]]:
    """date:2026-11-21, date:>2026-11-01: of the file."""
    found = re.fullmatch(r"(>=|<=|>|<|=)?(\d{4}-\d{2}-\d{2})", value)
    try:
        day = date.fromisoformat(found[2]) if found else None
    except ValueError:
        day = None
    if found is None or day is None:
        raise InputError(f"date:{value}", where="--search", allowed="date:2026-11-21, date:>2026-11-01")
    start, end = (int(midnight_ns(each)) for each in (day, day + timedelta(days=1)))
    return {
        None: ("modified >= ? and modified < ?", [start, end]), "=": ("modified >= ? and modified < ?", [start, end]),
        ">": ("modified >= ?", [end]), ">=": ("modified >= ?", [start]),
        "<": ("modified < ?", [start]), "<=": ("modified < ?", [end]),
    }[found[1]]  # fmt: skip


def midnight_ns(day: date) -> float:
    """Midnight at the beginning of a day, here, in nanoseconds."""
    from datetime import datetime

    return datetime(day.year, day.month, day.day).astimezone().timestamp() * 1e9


@dataclass(frozen=True)
class SearchHit:
    """A picture; likeness: cosine to the words, None without words. places: relative, of all copies."""

    row: Row
    likeness: float | None

    @property
    def places(self) -> list[str]:
        return str(self.row["places"]).split("\n")

    def path(self, folder: Path) -> Path:
        return folder / self.places[0]


def search_index(index: GalleryIndex, text: str, judge: Clip, most: int | None = None) -> list[SearchHit]:
    """At most so many hits. Raises InputError for a query that makes no sense."""
    asked = parse_query(text)
    rows = index.rows(asked.where, asked.values)
    if not asked.words or not rows:
        return [SearchHit(row, None) for row in rows[:most]]
    likeness = stack_features(rows) @ judge.encode_text([asked.words])[0]
    order = np.argsort(-likeness, kind="stable")[:most]
    return [SearchHit(rows[place], float(likeness[place])) for place in order]


THUMBNAIL_SIDE = 320  # pixels of a thumbnail
SHOWN_FIELDS = ("model", "lora", "sampler", "steps", "cfg", "seed")


def write_gallery_page(hits: Sequence[SearchHit], folder: Path, asked: str, target: Path) -> Path:
    """The page, whole. Pictures that went since the search are left out."""
    page = Page("Gallery", f"{len(hits)} pictures" + (f' for "{asked}"' if asked else ""))
    pictures = []
    for hit in hits:
        path = hit.path(folder)
        if path.is_file():
            picture = open_rgb(path)
            picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            pictures.append((picture, hit_caption(hit)))
    page.strip(pictures, width=190)
    return page.write(target)


def hit_caption(hit: SearchHit) -> str:
    """Prompt, settings and place, on lines of their own."""
    settings = ", ".join(f"{name} {hit.row[name]}" for name in SHOWN_FIELDS if hit.row[name] not in (None, ""))
    star = "\N{BLACK STAR} " if hit.row["star"] else ""
    return "\n".join(filter(None, (f"{star}{hit.row['prompt'] or 'no prompt'}", settings, hit.places[0])))


def run_gallery(options: GalleryOptions) -> int:
    """Returns the exit code. Raises InputError."""
    judge = Clip(options.judge or POCKET_SCORER)
    index = GalleryIndex(options.folder, options.index)
    try:
        changes = index.update(judge)
        print(f"{options.folder}: {len(index.rows())} pictures ({changes})")
        for problem in changes.unreadable:
            print(f"no picture: {printable(problem)}")
        for path in options.star:
            index.star(path, True)
        for path in options.unstar:
            index.star(path, False)
        hits = search_index(index, options.search, judge, None if options.page else options.most)
    finally:
        index.close()
    for line in list_hits(hits[: options.most], options.folder):
        print(line)
    if options.page:
        print(f"page: {write_gallery_page(hits, index.folder, options.search, options.page)}")
    return 0


def list_hits(hits: Sequence[SearchHit], folder: Path) -> list[str]:
    """A line a picture: where it lies, its prompt, and how near it is to the words."""
    lines = []
    for hit in hits:
        near = "" if hit.likeness is None else f"{hit.likeness:.2f}  "
        star = "* " if hit.row["star"] else "  "
        more = f"  ({hit.row['copies']} copies)" if hit.row["copies"] > 1 else ""
        lines.append(f"{star}{near}{printable(folder / hit.places[0])}  {printable(hit.row['prompt'] or '')}{more}")
    return lines or ["nothing found"]
