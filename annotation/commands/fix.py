"""Correct many captions at once: a preview first, then --apply; --undo takes the last correction back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from annotation.commands.push import FOLDER
from data.options import Options as Flags

if TYPE_CHECKING:
    from annotation.corrections import Answers, Correction
    from annotation.place import Place
    from annotation.review.edits import Edit
    from annotation.review.fix import Deliver


class Options(Flags):
    """What `annotate.py fix` can be told."""

    name: str | None = None
    """project, a folder in captions/; default: the only one"""
    find: str | None = None
    """text to look for, as it is written"""
    replace: str | None = None
    """what takes its place; may be empty"""
    regex: bool = False
    """--find is a regular expression, --replace may name its groups (\\1)"""
    prefix: str = ""
    """text that every caption is to begin with"""
    suffix: str = ""
    """text that every caption is to end with"""
    rename: str | None = None
    """term to give another name: whole words, singular and plural, with their case and article"""
    to: str | None = None
    """its new name"""
    having: str = ""
    """only captions with this word or phrase"""
    without: str = ""
    """only captions without this word or phrase"""
    file: str = "*"
    """only pictures whose file name fits this pattern"""
    annotator: str = ""
    """only captions by this person"""
    show: int = 20
    """how many of the corrections are shown"""
    apply: bool = False
    """make the corrections; without it they are only shown"""
    undo: bool = False
    """take back the last correction that was made, wherever nobody has changed the caption since"""
    token_file: Path | None = None
    """file with the access token, if the project is on somebody's server; default: LABEL_STUDIO_API_KEY"""
    server: Path = FOLDER
    """folder of the server that `start` started"""


def run(options: Options) -> int:
    """Show or make corrections. Raises InputError for a setting that makes no sense."""
    from annotation.deliver import Way
    from annotation.place import place

    edits = edits_of(options)
    where = place(options.name)
    return work(options, edits, where, deliver=Way(where.name, options.server, options.token_file).take)


def work(options: Options, edits: list[Edit], where: Place, *, deliver: Deliver) -> int:
    """`deliver` takes corrections to the server, if it can be asked."""
    from annotation.corrections import read_corrections
    from annotation.review.fix import Choice, corrections_by, next_batch, undo

    answers, past = where.answers(), read_corrections(where.folder)
    warn_of_late(answers)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if options.undo:
        back = undo(answers, past, made=now)
        print(f"taking back batch {back.batch}: {len(back.back)} captions, {len(back.late)} changed by somebody since")
        return done(where, back.back, options, deliver)
    from annotation.review.edits import in_turn

    choice = Choice(options.having, options.without, options.file, options.annotator)
    why = "; ".join(map(str, edits))
    made = list(corrections_by(in_turn(edits), answers, batch=next_batch(past), choice=choice, why=why, made=now))
    return done(where, made, options, deliver)


def edits_of(options: Options) -> list[Edit]:
    """The edits that were asked for. Raises InputError if there are none, or half of one."""
    from annotation.review.edits import Around, Rename, replacing
    from data.errors import InputError

    for flag, other, given in (
        ("--find", "--replace", (options.find, options.replace)),
        ("--rename", "--to", (options.rename, options.to)),
    ):
        if (given[0] is None) != (given[1] is None):
            missing = other if given[1] is None else flag
            raise InputError(f"{flag} and {other} belong together", where=missing, fix=f"Give {missing} too.")
    edits: list[Edit] = []
    if options.find is not None and options.replace is not None:
        edits.append(replacing(options.find, options.replace, regex=options.regex))
    if options.rename is not None and options.to is not None:
        if not options.rename.strip() or not options.to.strip():
            raise InputError("is empty", where="--rename, --to", fix="Give both terms.")
        edits.append(Rename(options.rename.strip(), options.to.strip()))
    if options.prefix or options.suffix:
        edits.append(Around(options.prefix, options.suffix))
    if not edits and not options.undo:
        raise InputError("nothing to do", allowed="--find, --rename, --prefix, --suffix, --undo", fix="See --help.")
    if edits and options.undo:
        raise InputError("--undo goes alone", where="--undo", fix="Take back first, then correct.")
    return edits


def warn_of_late(answers: Answers) -> None:
    """Earlier corrections that no longer hold, because somebody changed the caption."""
    from data.errors import show

    if answers.late:
        names = ", ".join(show(each.file_name) for each in answers.late[:3])
        more = ", ..." if len(answers.late) > 3 else ""
        print(f"{len(answers.late)} earlier corrections came too late, people's newer text stands ({names}{more})")


def done(where: Place, made: Sequence[Correction], options: Options, deliver: Deliver) -> int:
    """Show the corrections and, if asked to, store and deliver them."""
    from annotation.corrections import add_corrections
    from annotation.review.fix import preview

    print("\n".join(preview(made[: options.show])) or "no caption would change")
    if len(made) > options.show:
        print(f"... and {len(made) - options.show} more (--show {len(made)})")
    if not made:
        return 0
    if not (options.apply or options.undo):
        print(f"{len(made)} captions would change. Nothing is changed yet: add --apply")
        return 0
    add_corrections(where.folder, made)
    print(f"{len(made)} captions changed. Take it back: annotate.py fix --undo")
    left = deliver(made)
    if left is None:
        print("on the server: not yet, as it does not run; the next fix --apply or push takes them there")
    else:
        print(f"on the server: {len(made) - len(left)} changed, {len(left)} left as people have them now")
    return 0
