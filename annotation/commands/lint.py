"""Check every caption: length in tokens, words, spelling, type, likeness. Exit code 1 if anything is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

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
    if options.as_json:
        pictures = per_picture(found, captions)
        print(json.dumps({"findings": [finding.fields() for finding in found], "pictures": pictures}, indent=1))
    else:
        print("\n".join(told(found, captions, made)))
    return FOUND if found else 0


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
