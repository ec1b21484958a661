"""Where pictures go: a folder of its own for each command, a line for each picture, and one labelled sheet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.errors import InputError
from data.files import replaced_file, write_atomic
from infer import metadata, sheets
from infer.metadata import Recipe
from infer.prompts import Picture
from infer.sheets import Cell, Row

OUTPUTS = Path("outputs")
LOG, GRID, COMPARE, JOB = "run.jsonl", "grid.png", "compare.png", "job.json"


@dataclass(frozen=True)
class Finished:
    """A picture on the disk. seconds: to draw it, or its micro-batch if it is the first of one; None if not by us."""

    path: Path
    picture: Picture
    recipe: Recipe
    seconds: float | None


def folder_for(asked: Path | None, job: str = "", *, resume: bool = False) -> Path:
    """The folder asked for, which must be new or empty or begun by the same job, or the next free number in outputs/;
    it exists afterwards and holds job.json until the job is finished.

    job: a hash over what decides the pictures. resume: the newest folder of outputs/ that this job began.
    Raises InputError when it holds something else (nothing is ever overwritten) or cannot be made.
    """
    try:
        if asked is None:
            folder = begun_by(job) if resume else next_free(OUTPUTS)
        else:
            folder = asked
            folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir()) and (not job or job_of(folder) != job)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=f"--outdir {asked or OUTPUTS}") from None
    if taken and job_of(folder) is not None:
        fix = "Name a new folder, or repeat the command that began it."
        raise InputError("was begun by another command and is not finished", where=f"--outdir {folder}", fix=fix)
    if taken:
        raise InputError(
            "is not empty, and nothing is overwritten", where=f"--outdir {folder}", fix="Name a new folder."
        )
    for part in folder.rglob(".*.part"):  # what a killed process was writing
        part.unlink(missing_ok=True)
    if job:
        write_atomic(folder / JOB, json.dumps({"job": job}))
    return folder


def job_of(folder: Path) -> str | None:
    """The job that began a folder and did not finish it."""
    try:
        return str(json.loads((folder / JOB).read_text(encoding="utf-8"))["job"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def begun_by(job: str) -> Path:
    """The newest numbered folder that this job began and did not finish. Raises InputError."""
    folders = sorted(OUTPUTS.glob("[0-9]*"), reverse=True) if OUTPUTS.is_dir() else []
    found = next((folder for folder in folders if job_of(folder) == job), None)
    if found is None:
        what = f"no unfinished folder in {OUTPUTS}/ was begun by this command"
        raise InputError(what, where="--resume", fix="Leave it out to begin anew.")
    return found


def close(folder: Path) -> None:
    """The job is finished."""
    (folder / JOB).unlink(missing_ok=True)


def found(path: Path, picture: Picture) -> Finished:
    """A picture that another process drew, or this command before it was stopped."""
    return Finished(path, picture, metadata.read(path), None)


def next_free(parent: Path) -> Path:
    """Make outputs/0001, or the number after the highest there; two commands at once get two folders."""
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(entry.name) for entry in parent.iterdir() if re.fullmatch(r"[0-9]{4,}", entry.name)]
    number = max(numbers, default=0) + 1
    while True:
        folder = parent / f"{number:04d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def write_log(folder: Path, finished: Sequence[Finished]) -> None:
    """run.jsonl, a line for each finished picture; without any, an empty folder is taken away again."""
    if finished:
        write_atomic(folder / LOG, "".join(f"{log_line(folder, done)}\n" for done in finished))
    elif folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {JOB}:
        close(folder)
        folder.rmdir()


def log_line(folder: Path, done: Finished) -> str:
    file = {"file": done.path.relative_to(folder).as_posix()}
    taken = {} if done.seconds is None else {"seconds": round(done.seconds, 3)}
    return json.dumps(file | taken | done.recipe.model_dump(mode="json"))


def lay_out(folder: Path, passes: Mapping[str, Sequence[Finished]]) -> Path:
    """The labelled sheet of the job, and its path: compare.png with a column for each pass, or grid.png for one."""
    path = folder / (COMPARE if len(passes) > 1 else GRID)
    sheet = comparison(passes) if len(passes) > 1 else grid(*passes.values())
    with replaced_file(path) as beside:
        sheet.save(beside, "PNG")
    return path


def grid(finished: Sequence[Finished]) -> Image.Image:
    """One cell for each picture, its prompt and seed under it."""
    per_prompt = sum(done.picture.prompt == finished[0].picture.prompt for done in finished)
    shown = finished[: sheets.MOST_CELLS]
    cells = [Cell(opened(done), f"{done.picture.prompt}  (seed {done.picture.seed})") for done in shown]
    footer = [settings(finished[0].recipe), left_out(len(shown), len(finished))]
    return sheets.grid(cells, sheets.columns_for(len(cells), per_prompt), footer="; ".join(filter(None, footer)))


def comparison(passes: Mapping[str, Sequence[Finished]]) -> Image.Image:
    """A row for each picture, base on the left: the same prompt, seed and start noise, other weights."""
    names = sorted(passes)  # base, tuned
    together = list(zip(*(passes[name] for name in names), strict=True))
    shown = together[: sheets.MOST_CELLS // len(names)]
    rows = [
        Row([Cell(opened(done)) for done in row], f"{row[0].picture.prompt}  (seed {row[0].picture.seed})")
        for row in shown
    ]
    about = [settings(passes[name][0].recipe, name) for name in names]
    return sheets.sheet(
        rows, columns=names, footer="; ".join(filter(None, [*about, left_out(len(shown), len(together))]))
    )


def opened(done: Finished) -> Image.Image:
    """The picture, read back from the disk: a job of thousands does not hold them all."""
    with Image.open(done.path) as picture:
        return picture.convert("RGB")


def settings(recipe: Recipe, name: str = "") -> str:
    """What all pictures of a pass share, in a line."""
    loras = "".join(f" + {lora.name}:{lora.weight:g}" for lora in recipe.loras)
    how = f"{recipe.steps} steps, guidance {recipe.guidance_scale:g}, {recipe.sampler}"
    return (
        f"{name}: {recipe.model.name}{loras}"
        if name == "base"
        else f"{name or 'model'}: {recipe.model.name}{loras}, {how}"
    )


def left_out(shown: int, count: int) -> str:
    return f"the first {shown} of {count}" if shown < count else ""
