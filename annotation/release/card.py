"""The card of a release: what a person who comes upon the folder needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from annotation.release.join import Row
from annotation.review.agreement import Agreement
from annotation.review.likeness import words

MANY = 8  # names of pictures that were left out; the lock has all of them


def card(rows: Sequence[Row], lock: dict[str, Any], agreement: Agreement) -> str:
    """Markdown; nothing in it depends on time or place."""
    counts = lock["counts"]
    lengths = [len(words(caption)) for row in rows for caption in row.annotation.captions]
    seconds = [dict(row.annotation).get("seconds") or 0.0 for row in rows]
    parts = [
        f"# Captioned pictures, release {lock['release']}",
        f"{counts['pictures']} pictures, {counts['captions']} captions of {min(lengths)} to {max(lengths)} words "
        f"(median {median(lengths):g}), written in {sum(seconds) / 3600:.1f} hours of active work.",
        "Read it with `datasets.load_dataset(\"imagefolder\", data_dir=...)`, or train: "
        "`python train/finetune.py --data FOLDER`.",
        "## How it was made",
        f"- Which caption wins where several people captioned a picture: {lock['rule']}.",
        *preferred(lock),
        f"- Other people's captions of the picture are {'kept in `texts`' if policy(lock)['others'] else 'left out'}.",
        "- Of choices (type, quality) the majority wins, of equals the newest.",
        f"- {agreement_line(agreement)}",
        "## What is in it",
        *table("type", counts["types"]),
        *table("quality", counts["qualities"]),
        *table("annotator", counts["annotators"]),
        *([] if policy(lock)["names"] else ["Annotators have numbers, the same in every release of this project."]),
        "## What was left out",
        *([left_out_line(reason, names) for reason, names in lock["left_out"].items()] or ["Nothing."]),
        "## Columns",
        "`text` the caption, `texts` further ones, `type`, `name`, `quality`; where it came from: `annotator`, "
        "`seconds` of active work, `origin` (`prediction`: the draft as it was, `prediction-changed`: edited), "
        "`draft_source`, `corrected` (by a bulk fix afterwards), `sha256` of the picture, `release`.",
    ]  # fmt: skip
    return "\n\n".join(joined(parts)) + "\n"


def joined(parts: Sequence[str]) -> list[str]:
    """The lines of a list stand together, all else apart."""
    blocks: list[str] = []
    for part in parts:
        if part.startswith("- ") and blocks and blocks[-1].startswith("- "):
            blocks[-1] += f"\n{part}"
        else:
            blocks.append(part)
    return blocks


def policy(lock: dict[str, Any]) -> dict[str, Any]:
    return lock["settings"]["policy"]


def preferred(lock: dict[str, Any]) -> list[str]:
    people = policy(lock)["prefer"]
    return [f"- Before that, the captions of {', '.join(map(plain, people))} are taken."] if people else []


def agreement_line(agreement: Agreement) -> str:
    if not agreement.pairs:
        return "No picture was captioned by more than one person, so nothing is known about how far people agree."
    measured = f"token F1 {agreement.token_f1:.2f}, ROUGE-L {agreement.rouge_l:.2f}"
    return f"{agreement.pictures} pictures were captioned by several people; they agree with {measured} on average."


def table(head: str, counts: dict[str, int]) -> list[str]:
    """A count for each value; nothing if no row has one."""
    if set(counts) <= {""}:
        return []
    lines = [f"| {plain(value) or 'not given'} | {count} |" for value, count in counts.items()]
    return ["\n".join([f"| {head} | pictures |", "|---|---|", *lines])]


def left_out_line(reason: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"`{plain(name)}`" for name in names[:MANY])
    return f"- {plain(reason)}: {len(names)} ({shown}{', ...' if len(names) > MANY else ''})"


def plain(text: str) -> str:
    """A value that cannot break out of its line or its cell."""
    from data.errors import show

    return show(text).replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")")
