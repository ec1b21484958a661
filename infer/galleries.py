"""The gallery: an index of every image by its content, its metadata and what it shows; search in it; a page of results.

The index is a SQLite file. Images are known by their bytes: one that was moved keeps its star and is not encoded again,
copies are one image in several places. Every batch is a transaction, so a killed run only leaves a shorter index.

A query such as `a blue fridge seed:42 steps:>20 model:"my run" -lora:ink star:` says with words what an image shows and
with field:value how it was made.
"""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
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
from infer.config import POCKET_SCORER, GalleryOptions
from infer.metadata import ImageMetadata
from infer.png_info import ImageSettings

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
INDEX_BATCH = 64  # images a transaction
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
NUMBER_FIELDS = ("seed", "steps", "cfg", "width", "height")
TEXT_FIELDS = ("prompt", "negative", "model", "lora", "sampler", "program", "verdict")
SEARCH_FIELDS = (*NUMBER_FIELDS, *TEXT_FIELDS, "file", "date", "star")
QUERY_TOKEN = re.compile(r'(?P<minus>-?)(?P<field>[a-z_]+):(?P<value>"[^"]*"|\S*)|(?P<word>"[^"]*"|\S+)', re.IGNORECASE)
NUMBER_CONDITION = re.compile(r"(?P<sign>>=|<=|>|<|=)?(?P<number>-?\d+(?:\.\d+)?)(?:\.\.(?P<last>-?\d+(?:\.\d+)?))?")
THUMBNAIL_SIDE = 320  # pixels
SHOWN_FIELDS = ("model", "lora", "sampler", "steps", "cfg", "seed")


@dataclass(frozen=True)
class IndexChanges:
    new: int = 0
    moved: int = 0
    gone: int = 0
    unreadable: tuple[str, ...] = ()

    def __str__(self) -> str:
        changes = f"{self.new} new, {self.moved} copied or moved, {self.gone} gone"
        return changes + (f", {len(self.unreadable)} unreadable" if self.unreadable else "")


class GalleryIndex:
    """An open index of one folder."""

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self.folder = folder.resolve()
        if not self.folder.is_dir():
            fix = "Generate something first: infer/generate.py."
            raise InputError("no such folder", where=f"--folder {folder}", fix=fix)
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        self.file = file or cache_root() / "galleries" / f"{name}.sqlite"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(self.file, timeout=30.0)
        self.base.row_factory = sqlite3.Row
        try:
            self.base.executescript(SCHEMA)
        except sqlite3.DatabaseError:
            fix = "Delete it: it is built again, without stars."
            raise InputError("is not an index", where=self.file, fix=fix) from None

    def close(self) -> None:
        self.base.close()

    def update(self, judge: Clip) -> IndexChanges:
        """Find what is new, moved or gone; only new content is read and encoded."""
        known = {row["path"]: (row["size"], row["modified"]) for row in self.base.execute("select * from places")}
        files = {str(path.relative_to(self.folder)): path for path in image_files(self.folder)}
        changed = [name for name, path in files.items() if known.get(name) != file_stamp(path)]
        new, moved, bad = 0, 0, []
        for start in ProgressBar(range(0, len(changed), INDEX_BATCH), "indexing", unit="batch", delay=1.0):
            added, placed, failed = self.add(changed[start : start + INDEX_BATCH], files, judge)
            new, moved, bad = new + added, moved + placed, [*bad, *failed]
        gone = [(name,) for name in known if name not in files]
        with self.base:  # an image stays in the index for its star, should it come back
            self.base.executemany("delete from places where path = ?", gone)
        self.encode_missing(judge)
        return IndexChanges(new, moved, len(gone), tuple(bad))

    def add(self, names: Sequence[str], files: dict[str, Path], judge: Clip) -> tuple[int, int, list[str]]:
        """Add a batch in one transaction; counts of new images and new places of known ones, and what is unreadable."""
        fresh: dict[str, tuple[dict[str, Any], Image.Image]] = {}
        places, moved, bad = [], 0, []
        for name in names:
            path = files[name]
            try:
                sha = hashlib.sha256(path.read_bytes()).hexdigest()
                known = "select 1 from pictures where sha256 = ?"
                if sha in fresh or self.base.execute(known, (sha,)).fetchone() is not None:
                    moved += 1
                else:
                    fresh[sha] = (read_facts(path), output.open_image(path))
                places.append((name, sha, *file_stamp(path)))
            except (OSError, InputError, SyntaxError, ValueError) as error:
                bad.append(f"{name}: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}")
        features = judge.encode([image for _, image in fresh.values()]) if fresh else []
        with self.base:
            for (sha, (facts, _)), row in zip(fresh.items(), features, strict=True):
                values = {**facts, "sha256": sha, "judge": judge.version, "features": row.tobytes()}
                insert = f"insert into pictures ({', '.join(values)}) values ({', '.join('?' * len(values))})"
                self.base.execute(insert, tuple(values.values()))
            self.base.executemany("insert or replace into places values (?, ?, ?, ?)", places)
        return len(fresh), moved, bad

    def encode_missing(self, judge: Clip) -> None:
        """Encode again what another judge encoded."""
        rows = self.base.execute(
            "select sha256, min(path) as path from pictures join places using (sha256) where judge is not ? "
            "group by sha256",
            (judge.version,),
        ).fetchall()
        for start in range(0, len(rows), INDEX_BATCH):
            batch = rows[start : start + INDEX_BATCH]
            features = judge.encode([output.open_image(self.folder / row["path"]) for row in batch])
            values = [(judge.version, one.tobytes(), row["sha256"]) for one, row in zip(features, batch, strict=True)]
            with self.base:
                self.base.executemany("update pictures set judge = ?, features = ? where sha256 = ?", values)

    def star(self, path: Path, on: bool) -> None:
        """Mark an image, wherever its copies are. Raises InputError for one that is not in the gallery."""
        try:
            name = str(path.resolve().relative_to(self.folder))
        except ValueError:
            name = ""
        row = self.base.execute("select sha256 from places where path = ?", (name,)).fetchone()
        if row is None:
            raise InputError(f"{path} is not in the gallery", where="--star", allowed=f"images in {self.folder}")
        with self.base:
            self.base.execute("update pictures set star = ? where sha256 = ?", (int(on), row["sha256"]))

    def rows(self, where: str = "1", values: Sequence[Any] = ()) -> list[Row]:
        """Images that are on the disk, the newest first; `places` of copies are joined by line breaks."""
        return self.base.execute(
            "select pictures.*, group_concat(path, char(10)) as places, max(modified) as modified, count(*) as copies "
            f"from pictures join places using (sha256) where {where} group by sha256 order by modified desc, path",
            tuple(values),
        ).fetchall()


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and modification time: a file is read again only when they differ."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def image_files(folder: Path) -> Iterator[Path]:
    """Every image file below, without hidden ones, links, and the contact sheets beside generated images."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        is_output = output.LOG_FILE in files or output.JOB_FILE in files
        sheets = {output.GRID_FILE, output.COMPARE_FILE} if is_output else set()
        paths = [Path(place, name) for name in sorted(files) if not name.startswith(".") and name not in sheets]
        yield from (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_symlink())


def read_facts(path: Path) -> dict[str, Any]:
    """How an image was made, as far as it says; damaged metadata leaves the fields empty and is noted in `problem`."""
    with Image.open(path) as image:
        size = {"width": image.width, "height": image.height}
    try:
        texts = metadata.read_image_texts(path)
        if metadata.KEY in texts:
            return size | facts_from_metadata(metadata.parse_metadata(texts[metadata.KEY], path))
        found = png_info.read_foreign(texts, str(path))
        return size | (facts_from_foreign(found) if found else {})
    except (InputError, ValueError) as error:
        return size | {"problem": str(error).splitlines()[0][:200]}


def facts_from_metadata(info: ImageMetadata) -> dict[str, Any]:
    loras = ", ".join(f"{lora.name}:{lora.weight:g}" for lora in info.loras)
    return {
        "prompt": info.prompt, "negative": info.negative_prompt, "model": info.model.name, "lora": loras,
        "sampler": info.sampler, "seed": info.seed, "steps": info.steps, "cfg": info.guidance_scale,
        "program": "atelier", "verdict": info.verdict,
    }  # fmt: skip


def facts_from_foreign(found: ImageSettings) -> dict[str, Any]:
    """Another program's settings, under our names."""
    names = {"negative": "negative_prompt", "sampler": "scheduler", "cfg": "guidance_scale"}
    facts: dict[str, Any] = {"program": found.program}
    for name in ("prompt", "negative", "sampler", "seed", "steps", "cfg", "model"):
        value = found.values.get(names.get(name, name))
        facts[name] = value if isinstance(value, int | float | str) or value is None else json.dumps(value)
    return facts


# ---- search


@dataclass(frozen=True)
class Query:
    """words: what the image shows, may be empty. where: SQL without values; values: for its question marks."""

    words: str
    where: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class SearchHit:
    """likeness: cosine similarity to the words, None without words."""

    row: Row
    likeness: float | None

    @property
    def places(self) -> list[str]:
        """Relative paths of all copies."""
        return str(self.row["places"]).split("\n")


def search_index(index: GalleryIndex, text: str, judge: Clip, most: int | None = None) -> list[SearchHit]:
    """At most so many hits, best first: fields filter, words order. Raises InputError for an invalid query."""
    query = parse_query(text)
    rows = index.rows(query.where, query.values)
    if not query.words or not rows:
        return [SearchHit(row, None) for row in rows[:most]]
    features = np.stack([np.frombuffer(row["features"], np.float32) for row in rows])
    likeness = features @ judge.encode_text([query.words])[0]
    order = np.argsort(-likeness, kind="stable")[:most]
    return [SearchHit(rows[place], float(likeness[place])) for place in order]


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
        return number_condition(field, value)
    if field == "date":
        return date_condition(value)
    column = "path" if field == "file" else field
    if not value:
        return f"coalesce({column}, '') != ''", []
    pattern = re.sub(r"([%_\\])", r"\\\1", value)  # % and _ stand for themselves
    return f"coalesce({column}, '') like ? escape '\\'", [f"%{pattern}%"]


def number_condition(field: str, value: str) -> tuple[str, list[Any]]:
    """42, >20, <=7.5, 10..20."""
    match = NUMBER_CONDITION.fullmatch(value)
    if match is None:
        raise InputError(f"{field}:{value}", where="--search", allowed=f"{field}:42, {field}:>20, {field}:10..20")
    if match["last"] is not None:
        return f"{field} between ? and ?", [float(match["number"]), float(match["last"])]
    # a seed may be larger than a float can tell from its neighbour
    number = int(match["number"]) if match["number"].lstrip("-").isdecimal() else float(match["number"])
    return f"{field} {match['sign'] or '='} ?", [number]


def date_condition(value: str) -> tuple[str, list[Any]]:
    """date:2026-11-21, date:>2026-11-01: when the file was last modified."""
    match = re.fullmatch(r"(>=|<=|>|<|=)?(\d{4}-\d{2}-\d{2})", value)
    try:
        day = date.fromisoformat(match[2]) if match else None
    except ValueError:
        day = None
    if match is None or day is None:
        raise InputError(f"date:{value}", where="--search", allowed="date:2026-11-21, date:>2026-11-01")
    days = (day, day + timedelta(days=1))
    start, end = (int(datetime(d.year, d.month, d.day).astimezone().timestamp() * 1e9) for d in days)
    if match[1] in (None, "="):
        return "modified >= ? and modified < ?", [start, end]
    return f"modified {'>=' if '>' in match[1] else '<'} ?", [end if match[1] in (">", "<=") else start]


# ---- the command


def run_gallery(options: GalleryOptions) -> int:
    """Update the index, mark, search, list and write a page; returns the exit code. Raises InputError."""
    judge = Clip(options.judge or POCKET_SCORER)
    index = GalleryIndex(options.folder, options.index)
    try:
        changes = index.update(judge)
        print(f"{options.folder}: {len(index.rows())} images ({changes})")
        for problem in changes.unreadable:
            print(f"unreadable: {printable(problem)}")
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
    """A line for each image: its path, its prompt, and how similar it is to the words."""
    lines = []
    for hit in hits:
        likeness = "" if hit.likeness is None else f"{hit.likeness:.2f}  "
        star = "* " if hit.row["star"] else "  "
        copies = f"  ({hit.row['copies']} copies)" if hit.row["copies"] > 1 else ""
        path, prompt = printable(folder / hit.places[0]), printable(hit.row["prompt"] or "")
        lines.append(f"{star}{likeness}{path}  {prompt}{copies}")
    return lines or ["nothing found"]


def write_gallery_page(hits: Sequence[SearchHit], folder: Path, query: str, target: Path) -> Path:
    """One self-contained HTML file with thumbnails, prompts and settings. Images that have gone are left out."""
    page = Page("Gallery", f"{len(hits)} images" + (f' for "{query}"' if query else ""))
    thumbnails = []
    for hit in hits:
        path = folder / hit.places[0]
        if path.is_file():
            image = output.open_image(path)
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            thumbnails.append((image, hit_caption(hit)))
    page.strip(thumbnails, width=190)
    return page.write(target)


def hit_caption(hit: SearchHit) -> str:
    """Prompt, settings and path, on lines of their own."""
    settings = ", ".join(f"{name} {hit.row[name]}" for name in SHOWN_FIELDS if hit.row[name] not in (None, ""))
    star = "\N{BLACK STAR} " if hit.row["star"] else ""
    return "\n".join(filter(None, (f"{star}{hit.row['prompt'] or 'no prompt'}", settings, hit.places[0])))
