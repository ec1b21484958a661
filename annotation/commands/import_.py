"""Bring in captions that were written elsewhere, as drafts: people accept each with two keys, or mend it.

They come in as drafts and not as answers, so that nothing counts as looked at that nobody looked at.
"""

from __future__ import annotations

from pathlib import Path

from data.options import Options as Flags
from data.options import positional


class Options(Flags):
    """What `annotate.py import` can be told."""

    source: Path = positional()
    """captioned folder (taggui, kohya, OneTrainer, imagefolder), folder of caption files, kohya's JSON, a release's \
captions.csv or .parquet, a Hugging Face dataset, a Label Studio export"""
    name: str | None = None
    """project, a folder in captions/; default: the picture folder's name, or the only project"""
    images: Path | None = None
    """picture folder; default: the project's"""
    prefix: str = ""
    """text that each draft begins with"""


def run(options: Options) -> int:
    """Write the drafts and print what was found. Drafts of pictures that somebody has answered are left alone."""
    from annotation.commands.draft import Options as Draft
    from annotation.commands.draft import run as draft

    return draft(
        Draft(
            name=options.name,
            images=options.images,
            captions=options.source,
            source=("files",),
            prefix=options.prefix,
            refresh=True,
        )
    )
