"""Make draft captions, which people then correct instead of writing: from a model, files, neighbours or file names.

Sources are asked in turn, until one has a draft. Pictures that somebody has answered are never drafted again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from data.options import Options as Flags

if TYPE_CHECKING:
    from annotation.drafts.source import Draft, Picture, Source
    from annotation.place import Place


class Options(Flags):
    """What `annotate.py draft` can be told."""

    name: str | None = None
    """project, a folder in captions/; default: the picture folder's name, or the only project"""
    images: Path | None = None
    """picture folder; default: the project's"""
    source: tuple[str, ...] = ()
    """files, model, neighbours or names, asked in the order given; default: those that have what they need"""
    captions: Path | None = None
    """for files: captions written elsewhere, see import"""
    model: str | None = None
    """for model: local folder of an image-to-text model such as BLIP, or its id on the hub"""
    download: bool = False
    """fetch the model from the hub if it is not on this machine"""
    start: str = ""
    """words that the model's captions begin with"""
    threshold: float = Field(default=0.5, ge=-1, le=1)
    """likeness from which on a captioned picture is a neighbour"""
    extractor: str = "descriptors"
    """features that make pictures neighbours: descriptors or pixels"""
    prefix: str = ""
    """text that each draft begins with"""
    forbidden: tuple[str, ...] = ()
    """word or phrase that is taken out of drafts; may be repeated"""
    report: bool = False
    """leave forbidden words in, and only name the drafts that have them"""
    refresh: bool = False
    """draft again what nobody has answered yet; drafts that people wrote elsewhere stay"""


def run(options: Options) -> int:
    """Write captions/NAME/drafts.jsonl, which `push` takes to the server."""
    from annotation.drafts.chain import draft_all, worth_drafting
    from annotation.drafts.store import read_drafts
    from annotation.drafts.style import Style
    from annotation.pictures import pictures_in, sound
    from annotation.place import place
    from data.problems import Problem

    where = place(options.name, options.images, new=True)
    problems: list[Problem] = []
    usable = sound(pictures_in(where.picture_folder()).values(), problems)
    print("".join(f"{problem}\n" for problem in problems), end="")
    pictures = {picture.sha256: picture for picture in usable}
    answered = {record.sha256 for record in where.history() if record.screen == "text"}
    old = read_drafts(where.folder)
    again = options.refresh, options.captions is not None
    wanted = [
        picture for key, picture in pictures.items() if key not in answered and worth_drafting(old.get(key), *again)
    ]
    style = Style(options.prefix, tuple(options.forbidden), remove=not options.report)
    sources = sources_of(options, where, pictures)
    made, odd = draft_all(wanted, sources, style, where.folder)
    tell(where, options, made, odd, len(wanted), len(answered & set(pictures)))
    return 0


def sources_of(options: Options, where: Place, pictures: Mapping[str, Picture]) -> list[Source]:
    """The sources in the order in which they are asked. Raises InputError for one that lacks what it needs."""
    from data.errors import InputError, choose

    available = {"files": options.captions is not None, "model": options.model is not None}
    names = options.source or (*(name for name in available if available[name]), "neighbours", "names")
    for name in names:
        choose(name, ("files", "model", "neighbours", "names"), what="source", where="--source")
        if not available.get(name, True):
            flag = "--captions PATH" if name == "files" else "--model FOLDER"
            raise InputError(f"source {name!r} needs something to read", where="--source", fix=f"Give {flag}.")
    return [source_of(name, options, where, pictures) for name in names]


def source_of(name: str, options: Options, where: Place, pictures: Mapping[str, Picture]) -> Source:
    """One source, ready to be asked."""
    if name == "files":
        from annotation.drafts.existing import existing
        from data.problems import Problem

        problems: list[Problem] = []
        assert options.captions is not None, "checked by sources_of"
        found = existing(options.captions.expanduser(), problems)
        print("".join(f"{problem}\n" for problem in problems), end="")
        return found
    if name == "model":
        from annotation.drafts.model import load

        assert options.model is not None, "checked by sources_of"
        return load(options.model, download=options.download, start=options.start)
    if name == "neighbours":
        from annotation.drafts.neighbours import Neighbours, captioned
        from data.features import make

        texts = {answer.record.sha256: answer.text for answer in where.answers().captions()}
        return Neighbours(captioned(pictures, texts), make(options.extractor), options.threshold)
    from annotation.drafts.names import FileNames

    return FileNames()


def tell(
    where: Place, options: Options, made: Mapping[str, Draft], odd: Mapping[str, list[str]], wanted: int, answered: int
) -> None:
    """What came of it, and what to do next."""
    from statistics import median

    from annotation.drafts.store import DRAFTS

    counts = Counter(draft.source for draft in made.values())
    print(f"{len(made)} of {wanted} pictures drafted; {answered} answered already and left alone")
    for source, count in counts.most_common():
        score = median(draft.score for draft in made.values() if draft.source == source)
        print(f"  {source}: {count} (median score {score:.2f})")
    words = Counter(word for found in odd.values() for word in found)
    verb = "left in" if options.report else "taken out"
    for word, count in words.most_common():
        print(f"  forbidden {word!r} {verb} of {count} drafts")
    print(f"next: annotate.py push --name {where.name}    ({where.folder / DRAFTS})")
