"""What prepare.py does: read or import a folder, list every problem, show what training would make of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from data.captions import TEMPLATE
from data.errors import InputError, show
from data.options import Options, positional

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.problems import Problem
    from data.summary import Shape, Summary

ALIASES = {
    "--json": "--as-json",
    "--template": "--caption",
    "--pictures.caption": "--caption",
    "--pictures.size": "--size",
}
WRONG = 1  # exit code: something is to be mended or to be known


class Checkup(Options):
    """What prepare.py can be told."""

    folder: Path | None = positional(None)
    """captioned folder: pictures with metadata.jsonl, metadata.csv or a .txt beside each; default: the sample set"""
    model: Path | None = None
    """diffusers folder of the base model, for sizes and tokenizer; default: the embedded one"""
    tokenizer: Path | None = None
    """folder of the tokenizer to count captions with; default: the model's"""
    size: int | None = Field(default=None, gt=0)
    """pixels of the square bucket's side; default: the model's"""
    caption: str = TEMPLATE
    """the prompt of a picture: a template with {text}, {type}, {name} or any other key of its metadata"""
    seed: int = 0
    """of the held-out split"""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """share of pictures that training would hold out"""
    as_json: bool = False
    """(also --json) print everything as JSON"""
    html: Path | None = None
    """also write a page with pictures, to look through in a browser"""
    into: Path | None = None
    """first import FOLDER (here also: a Hugging Face dataset on disk, a Label Studio export) into this new folder"""
    pictures: Path | None = None
    """with --into and a Label Studio export: the folder that holds its pictures"""


def run(checkup: Checkup) -> int:
    """Check the folder, print what was found, and return the exit code: 0 if nothing is wrong, else 1.

    Raises InputError for a bad path or setting, before anything long begins.
    """
    from data import store, summary

    check_targets(checkup)
    shape = shape_of(checkup)
    tokenizer = tokenizer_of(checkup)
    folder, imported = folder_of(checkup, shape.size)
    found = summary.summarize(
        store.read(folder),
        shape=shape,
        tokenizer=tokenizer,
        template=checkup.caption,
        seed=checkup.seed,
        share=checkup.held_out,
        imported=imported,
    )
    if checkup.html:
        from data.summary_page import write_page

        write_page(found, checkup.html)
    print(json.dumps(summary.facts(found), indent=1) if checkup.as_json else told(found, checkup.html))
    return WRONG if found.problems else 0


def check_targets(checkup: Checkup) -> None:
    """A folder of pictures is only read: nothing may be written into it."""
    if checkup.html and checkup.html.is_dir():
        raise InputError("is a folder", where=f"--html {checkup.html}", fix="Give the name of a file.")
    source = checkup.folder.expanduser().resolve() if checkup.folder else None
    for flag, target in (("--html", checkup.html), ("--into", checkup.into)):
        if source and target and target.resolve().is_relative_to(source):
            raise InputError(
                "lies in the folder that is looked at", where=f"{flag} {target}", fix="Write it elsewhere."
            )


def shape_of(checkup: Checkup) -> Shape:
    """The size and step of the base model, unless --size says otherwise."""
    from data import buckets, summary

    shape = summary.shape_of(checkup.model or summary.EMBEDDED)
    shape = replace(shape, size=checkup.size or shape.size)
    buckets.make(shape.size, step=shape.step)  # refuses a size that does not fit the step
    return shape


def tokenizer_of(checkup: Checkup) -> PreTrainedTokenizerBase | None:
    """The tokenizer to count with; None if none was asked for and the embedded one is not built yet."""
    from data import summary

    asked = checkup.tokenizer or checkup.model
    if asked is None and not (summary.EMBEDDED / "tokenizer").is_dir():
        return None
    return summary.load_tokenizer(asked or summary.EMBEDDED)


def folder_of(checkup: Checkup, size: int) -> tuple[Path, list[Problem]]:
    """The captioned folder to look at, and what was wrong with its source if it was imported first."""
    if checkup.into is None and checkup.pictures is not None:
        raise InputError("is for importing", where="--pictures", fix="Say where to: --into NEW_FOLDER.")
    if checkup.folder is None:
        if checkup.into is not None:
            raise InputError("needs something to import", where="--into", fix="Give a folder or an export first.")
        from data.sample_set import sample_folder

        return sample_folder(size=size), []
    if checkup.into is None:
        return checkup.folder.expanduser(), []
    from data.importers import bring_in

    return checkup.into, bring_in(checkup.folder.expanduser(), checkup.into, pictures=checkup.pictures)


def told(found: Summary, html: Path | None) -> str:
    """Every problem on a line, then the summary, then the next command."""
    from data import summary

    lines = [str(problem) for problem in found.problems]
    lines += ["", show(found.listing.folder)] if lines else [show(found.listing.folder)]
    lines += [f"  {name:<13}{line}" for name, line in summary.rows(found)]
    lines += [f"  {'page':<13}{html}"] if html else []
    return "\n".join([*lines, "", advice(found)])


def advice(found: Summary) -> str:
    """What to do next."""
    train = f"python train/finetune.py --data {shlex.quote(str(found.listing.folder))}"
    if not found.samples:
        return "next: mend these; not one picture can be used."
    if any(problem.refused for problem in found.problems):
        return f"next: mend these and look again, or train on the {len(found.samples)} usable pictures: {train}"
    return f"next: {train}"
