"""Check every caption: length in tokens, words, spelling, type, likeness. Exit code 1 if anything is found."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from annotation.commands.push import FOLDER
from annotation.review.lint import Checks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotation.place import Place
    from annotation.review.findings import Caption

ALIASES = {"--json": "--as-json"}
FOUND = 1  # exit code


class Options(Checks):
    """What `annotate.py lint` can be told."""

    name: str | None = None
    """project, a folder in captions/; default: the only one"""
    images: Path | None = None
    """picture folder, if it is not where the project says"""
    as_json: bool = False
    """(also --json) print everything as JSON"""
    mark: bool = True
    """show the findings on the server, in the column `lint` of the Data Manager, which can be filtered by them"""
    token_file: Path | None = None
    """file with the access token, if the project is on somebody's server; default: LABEL_STUDIO_API_KEY"""
    server: Path = FOLDER
    """folder of the server that `start` started"""


def run(options: Options) -> int:
    """Print the findings; see `Checks`. Raises InputError for a bad setting or a missing project."""
    from annotation.place import place, triage_types
    from annotation.review.findings import captions_of, per_picture
    from annotation.review.lint import lint, rules, told
    from data.summary import EMBEDDED, load_tokenizer

    where = place(options.name, options.images)
    answers = where.answers()
    captions = captions_of(answers, triage_types(answers))
    made = rules(
        options,
        tokenizer=load_tokenizer(options.tokenizer or EMBEDDED),
        types=options.types or where.types,
        features=features_of(where, captions, options.extractor) if "neighbours" not in options.leave_out else {},
    )
    found = lint(captions, made)
    pictures = per_picture(found, captions)
    if options.as_json:
        print(json.dumps({"findings": [finding.fields() for finding in found], "pictures": pictures}, indent=1))
    else:
        print("\n".join(told(found, captions, made)))
    if options.mark:
        said = marked(options, where.name, pictures)
        print(said, file=sys.stderr if options.as_json else sys.stdout)
    return FOUND if found else 0


def marked(options: Options, name: str, pictures: Mapping[str, str]) -> str:
    """Show the findings on the server. That it cannot be asked is no finding: it is said, and all goes on."""
    from annotation.deliver import Way
    from data.errors import InputError

    try:
        count = Way(name, options.server, options.token_file).show_findings(pictures)
    except InputError as error:
        return f"not marked on the server: {error}"
    if count is None:
        return "not marked on the server, which does not run"
    return f"on the server: {count} tasks changed in the column `lint`, by which the list of tasks can be filtered"


def features_of(where: Place, captions: list[Caption], extractor: str) -> dict[str, NDArray[np.float32]]:
    """SHA-256 -> features of the captioned pictures that are still there; nothing if the folder is not known."""
    from annotation.pictures import pictures_in, sound
    from data.errors import InputError
    from data.features import features, make

    if where.pictures is None:
        return {}
    wanted = {caption.sha256 for caption in captions}
    there = [picture for sha256, picture in pictures_in(where.pictures).items() if sha256 in wanted]
    try:
        rows = features(make(extractor), [picture.path for picture in there])
    except InputError:  # of a picture that cannot be opened: lint is about captions, push and prepare name it
        there = sound(there, [])
        rows = features(make(extractor), [picture.path for picture in there])
    return {picture.sha256: row for picture, row in zip(there, rows, strict=True)}
