"""How far people are, how fast, what the drafts are worth, how far people agree, and how long the rest will take."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from annotation.commands.push import FOLDER
from data.options import Options as Flags

if TYPE_CHECKING:
    from annotation.deliver import Way
    from annotation.place import Place

ALIASES = {"--json": "--as-json"}


class Options(Flags):
    """What `annotate.py status` can be told."""

    name: str | None = None
    """project, a folder in captions/; default: the only one"""
    images: Path | None = None
    """picture folder, if it is not where the project says"""
    watch: bool = False
    """pull and print again and again, until Ctrl+C"""
    every: float = Field(default=30.0, ge=1)
    """seconds between two looks with --watch"""
    worst: int = Field(default=3, ge=0)
    """pairs of captions of one picture that agree least, to show side by side"""
    as_json: bool = False
    """(also --json) print everything as JSON"""
    token_file: Path | None = None
    """file with the access token, if the project is on somebody's server; default: LABEL_STUDIO_API_KEY"""
    server: Path = FOLDER
    """folder of the server that `start` started"""


def run(options: Options, *, wait: Callable[[float], None] = time.sleep) -> int:
    """Print where the project stands."""
    from annotation.deliver import Way
    from annotation.place import place

    where = place(options.name, options.images)
    way = Way(where.name, options.server, options.token_file)
    while options.watch:
        news = pulled(way)
        print(f"{time.strftime('%H:%M:%S')} {where.name}, {news}\n{told(where, options)}\n", flush=True)
        wait(options.every)
    print(told(where, options))
    return 0


def pulled(way: Way) -> str:
    """Pull, and say what came of it. A server that is off for a while does not end the watch."""
    from data.errors import InputError

    try:
        done = way.refresh()
    except InputError as error:
        return f"as pulled last: {error}"
    if done is None:
        return "as pulled last: the server does not run"
    return f"{done.new} new, {done.changed} changed, {done.deleted} deleted"


def told(where: Place, options: Options) -> str:
    """Everything, as lines or as JSON."""
    from annotation.pictures import pictures_in
    from annotation.review import pace
    from annotation.review.agreement import RULES, agreement, side_by_side

    known = pictures_in(where.pictures) if where.pictures else {}
    progress = pace.progress(where.history(), known)
    answers = where.answers()
    agreed = agreement(answers.captions())
    if options.as_json:
        values = progress.fields() | {"agreement": {"pictures": agreed.pictures, "pairs": len(agreed.pairs)}}
        values["agreement"] |= {"token_f1": agreed.token_f1, "rouge_l": agreed.rouge_l} if agreed.pairs else {}
        return json.dumps(values | {"late_corrections": len(answers.late)}, indent=1)
    lines = pace.told(progress)
    if agreed.pairs:
        scores = f"token F1 {agreed.token_f1:.2f}, ROUGE-L {agreed.rouge_l:.2f}"
        lines.append(pace.row("agreement", f"{scores} over {agreed.pictures} pictures with several captions"))
        lines.append(pace.row("taken is", RULES["central"]))
        lines += [f"    {line}" for pair in agreed.pairs[: options.worst] for line in side_by_side(pair)]
    if answers.late:
        lines.append(pace.row("corrections", f"{len(answers.late)} came too late: people's newer text stands"))
    return "\n".join(lines)
