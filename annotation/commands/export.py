"""Make the captions into a data set that finetune.py trains on: pictures, metadata.jsonl, tables, lock and card."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from annotation.review.agreement import Wins
from data.options import Options as Flags

if TYPE_CHECKING:
    from annotation.place import Place
    from annotation.release.export import Release
    from annotation.release.join import Joined

MEANT = ("skip", "poor", "not captioned")  # beginnings of the reasons that --strict lets pass
LOG = "releases.txt"


class Options(Flags):
    """What `annotate.py export` can be told."""

    name: str | None = None
    """project, a folder in captions/; default: the only one"""
    images: Path | None = None
    """picture folder, if it is not where the project says"""
    into: Path | None = None
    """new folder; default: captions/NAME/releases/RELEASE"""
    release: str | None = None
    """name of the release; default: twelve digits of a hash of what is in it"""
    wins: Wins = "central"
    """whose caption is taken where there are several: central (shares most words with the others), newest, first"""
    prefer: tuple[str, ...] = ()
    """annotator whose answers are taken before all others'; may be repeated, the first comes first"""
    others: bool = False
    """keep the captions that did not win as further captions of the picture"""
    poor: bool = False
    """keep pictures that the triage calls poor"""
    names: bool = False
    """write the annotators' e-mail addresses into the data set, which otherwise says "annotator 1", always for the \
same person of this project"""
    sidecars: bool = True
    """write a .txt beside each picture"""
    csv: bool = True
    """write captions.csv"""
    parquet: bool = True
    """write captions.parquet"""
    since: Path | None = None
    """older release to tell the differences from; default: the one exported last"""
    strict: bool = False
    """an error if anything is left out that was neither skipped, nor poor, nor still open"""


def run(options: Options) -> int:
    """Write the release and print what is in it and what was left out."""
    from annotation.pictures import pictures_in
    from annotation.place import place
    from annotation.release.export import Forms, export, release_name
    from annotation.release.join import Policy, join
    from annotation.review.agreement import agreement
    from data.errors import show

    where = place(options.name, options.images)
    answers = where.answers()
    policy = Policy(options.wins, options.prefer, options.others, options.poor, options.names)
    joined = join(answers, pictures_in(where.picture_folder()), policy)
    if options.strict:
        refuse_losses(joined)
    name = options.release or release_name(joined.rows)
    written = export(
        joined,
        options.into or where.folder / "releases" / checked(name),
        name=name,
        policy=policy,
        forms=Forms(options.sidecars, options.csv, options.parquet),
        agreement=agreement(answers.captions()),
        settings_hash=labelling_hash(where),
    )
    for reason, names in joined.left_out.items():
        shown = ", ".join(map(show, names[:3])) + (", ..." if len(names) > 3 else "")
        print(f"  left out, {show(reason)}: {len(names)} ({shown})")
    if answers.late:
        print(f"  {len(answers.late)} corrections came too late: people's newer text is exported")
    tell(where, written, options.since)
    return 0


def checked(name: str) -> str:
    """A release's name is one folder's name."""
    from data.errors import InputError

    if not name.strip() or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
        raise InputError(f"{name!r} is no name for a release", where="--release", allowed="the name of a folder")
    return name


def refuse_losses(joined: Joined) -> None:
    """With --strict, what is lost without anybody having meant it is an error."""
    from data.errors import InputError, raise_all

    lost = {reason: names for reason, names in joined.left_out.items() if not reason.startswith(MEANT)}
    raise_all([InputError(f"{reason}: {len(names)} pictures", where=names[0]) for reason, names in lost.items()])


def labelling_hash(where: Place) -> str:
    """A hash of the screens that people answered on; "" if project.json does not tell of any."""
    from annotation.place import PROJECT, read_project
    from annotation.release.export import hashed

    configurations = read_project(where.folder / PROJECT).get("configurations")
    return hashed(configurations) if configurations else ""


def tell(where: Place, written: Release, since: Path | None) -> None:
    """What was written, how it differs from the release before, and what to do next."""
    from annotation.release.changes import in_words, read_release
    from data.files import write_atomic

    counts = written.lock["counts"]
    what = "written" if written.new else "was there already, nothing changed"
    print(f"release {written.name}: {counts['pictures']} pictures, {counts['captions']} captions; {what}")
    log = where.folder / LOG
    past = [Path(line) for line in log.read_text(encoding="utf-8").split("\n") if line] if log.exists() else []
    earlier = [path for path in past if path != written.folder.resolve() and path.is_dir()]
    before = since or (earlier[-1] if earlier else None)
    old = read_release(before) if before is not None else None
    if old is not None and old.name != written.name:
        print("\n".join(in_words(old, read_release(written.folder))))
    if written.folder.resolve() not in past:
        write_atomic(log, "".join(f"{path}\n" for path in (*past, written.folder.resolve())))
    folder = shlex.quote(str(written.folder))
    print(f"\nnext: python data/prepare.py {folder}\n      python train/finetune.py --data {folder}")
