"""The index: a SQLite file that knows every picture by its content, where it lies, how it was made and what it shows.

Pictures are known by their bytes: one that was moved keeps its star and is not looked at again, copies are one picture
with several places. Every batch is a transaction, so a killed run is only shorter.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.encoders import Clip
from data.errors import InputError
from data.files import cache_root
from infer import foreign, metadata, outputs
from infer.metadata import Recipe

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 64  # pictures a transaction
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
class Changes:
    """What an index run found."""

    new: int = 0
    moved: int = 0
    gone: int = 0
    unreadable: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [f"{self.new} new", f"{self.moved} more places of known ones", f"{self.gone} gone"]
        return ", ".join(told) + (f", {len(self.unreadable)} no pictures" if self.unreadable else "")


class Index:
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

    def update(self, judge: Clip) -> Changes:
        """Look for what is new, moved or gone; only new content is read and encoded."""
        known = {row["path"]: (row["size"], row["modified"]) for row in self.base.execute("select * from places")}
        there = {str(path.relative_to(self.folder)): path for path in pictures_in(self.folder)}
        changed = [name for name, path in there.items() if known.get(name) != stamp(path)]
        new, moved, bad = 0, 0, []
        for start in tqdm(range(0, len(changed), BATCH), "indexing", unit="batch", delay=1.0, leave=False):
            added, placed, failed = self.take(changed[start : start + BATCH], there, judge)
            new, moved, bad = new + added, moved + placed, [*bad, *failed]
        gone = self.forget([name for name in known if name not in there])
        self.encode_missing(judge)
        return Changes(new, moved, gone, tuple(bad))

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
                    fresh[sha] = (facts_of(there[name]), opened(there[name]))
                places.append((name, sha, *stamp(there[name])))
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
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            found = judge.encode([opened(self.folder / row["path"]) for row in batch])
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


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of change: what must differ for a file to be read again."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def pictures_in(folder: Path) -> Iterator[Path]:
    """Every picture file below, without following links out of the folder or hidden folders.

    Sheets that generate.py laid out beside its pictures show nothing of their own.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        sheets = {outputs.GRID, outputs.COMPARE} if outputs.LOG in files or outputs.JOB in files else set()
        for name in sorted(files):
            path = Path(place, name)
            wanted = path.suffix.lower() in SUFFIXES and not name.startswith(".") and name not in sheets
            if wanted and not path.is_symlink():
                yield path


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def facts_of(path: Path) -> dict[str, Any]:
    """How a picture was made, as far as it says; a foreign or damaged text leaves the fields empty and says so."""
    with Image.open(path) as picture:
        size = {"width": picture.width, "height": picture.height}
    try:
        texts = foreign.texts_of(path)
        if metadata.KEY in texts:
            return size | of_recipe(metadata.read(path))
        found = foreign.read(texts, str(path))
        return size | (of_values(found) if found else {})
    except (InputError, ValueError) as error:
        return size | {"problem": str(error).splitlines()[0][:200]}


def of_recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "prompt": recipe.prompt, "negative": recipe.negative_prompt, "model": recipe.model.name,
        "lora": ", ".join(f"{lora.name}:{lora.weight:g}" for lora in recipe.loras), "sampler": recipe.sampler,
        "seed": recipe.seed, "steps": recipe.steps, "cfg": recipe.guidance_scale, "program": "atelier",
        "verdict": recipe.verdict,
    }  # fmt: skip


def of_values(found: foreign.Found) -> dict[str, Any]:
    """Of another program's settings, under our names."""
    names = {"prompt": "prompt", "negative": "negative_prompt", "sampler": "scheduler", "seed": "seed",
             "steps": "steps", "cfg": "guidance_scale", "model": "model"}  # fmt: skip
    values = {ours: found.values.get(theirs) for ours, theirs in names.items()}
    kept = {name: value if isinstance(value, int | float | str) or value is None else json.dumps(value)
            for name, value in values.items()}  # fmt: skip
    return kept | {"program": found.program}


def features_of(rows: Sequence[sqlite3.Row]) -> np.ndarray:
    """(n, d) of the index' rows."""
    return np.stack([np.frombuffer(row["features"], np.float32) for row in rows])
