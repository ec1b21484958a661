"""The screens joined by the picture's content: a row a picture, with caption, choices and where they came from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from annotation.corrections import Answer, Answers
from annotation.drafts.source import Picture
from annotation.interface import TRIAGE
from annotation.review.agreement import Wins, by_picture, ranked
from data.errors import choose
from data.schema import Annotation

SOURCE = "label-studio"
REASON = "skip_reason"  # a choice that keeps a picture out, so that no row has it
CHOICES = tuple(name for name, how in Annotation.asked().items() if how["ask"] == "choice" and name != REASON)
WRITTEN = tuple(name for name, how in Annotation.asked().items() if how["ask"] == "text")


@dataclass(frozen=True)
class Policy:
    """What goes into a release. See agreement.RULES for `wins`."""

    wins: Wins = "central"
    prefer: tuple[str, ...] = ()  # annotators whose answers are taken before all others'
    others: bool = False  # keep the captions that did not win as further captions
    poor: bool = False  # keep pictures that the triage calls poor
    names: bool = False  # write the annotators' addresses instead of numbers


@dataclass(frozen=True)
class Row:
    """One picture of a release."""

    picture: Picture
    annotation: Annotation


@dataclass(frozen=True)
class Joined:
    """The rows in the order of file names, and the pictures that were left out: reason -> file names.

    prefer: the policy's, as a release tells of them.
    """

    rows: list[Row]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    prefer: tuple[str, ...] = ()


def join(answers: Answers, pictures: Mapping[str, Picture], policy: Policy) -> Joined:
    """pictures: SHA-256 -> the picture as it lies in the folder now; captions of others are left out.

    Raises InputError for somebody in `policy.prefer` who wrote nothing.
    """
    policy = replace(policy, prefer=tuple(person(each, answers) for each in policy.prefer))
    rows: list[Row] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    groups = by_picture(answers.all)
    names = {} if policy.names else answers.pseudonyms
    for sha256, group in groups.items():
        found = row_of(group, pictures.get(sha256), policy, names)
        if isinstance(found, str):
            left_out[found].append(group[-1].record.file_name)
        else:
            rows.append(found)
    unseen = [picture.file_name for sha256, picture in pictures.items() if sha256 not in groups]
    left_out["not captioned"] += unseen
    sorted_out = {reason: sorted(names) for reason, names in sorted(left_out.items()) if names}
    prefer = tuple(names.get(each, each) for each in policy.prefer)
    return Joined(sorted(rows, key=lambda row: row.picture.file_name), sorted_out, prefer)


def person(name: str, answers: Answers) -> str:
    """The address of an annotator, who may be called by address or by number. Raises InputError."""
    known = {number: address for address, number in answers.pseudonyms.items()}
    choose(known.get(name, name), answers.pseudonyms, what="annotator", where="--prefer")
    return known.get(name, name)


def row_of(group: Sequence[Answer], picture: Picture | None, policy: Policy, names: Mapping[str, str]) -> Row | str:
    """The row of one picture, or why it is left out."""
    on_text = [answer for answer in group if answer.record.screen == "text"]
    written = [answer for answer in on_text if answer.record.status == "written" and answer.text.strip()]
    if reason := reason_to_skip(group):
        return reason
    if not written:
        return "blank" if on_text else "not captioned"
    if picture is None:
        return "picture gone or changed"
    best, *rest = ranked(written, policy.wins, policy.prefer)
    values = values_of(best, rest if policy.others else [], names) | elsewhere(group, policy)
    if values.get("quality") == "poor" and not policy.poor:
        return "poor"
    try:
        annotation = Annotation.model_validate({"file_name": picture.file_name} | values | {"sha256": picture.sha256})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        return f"{detail['loc'][0]} is {detail['input']!r}"
    return Row(picture, annotation)


def reason_to_skip(group: Sequence[Answer]) -> str:
    """Why people want a picture left out; empty if they do not.

    Of those who captioned it, one who could is enough to keep it. Of those who triaged it, half are enough to leave it
    out, by a reason or by skipping it; the reason is the commonest one, of equals the first.
    """
    on_text = [answer.record.status for answer in group if answer.record.screen == "text"]
    if "skipped" in on_text and "written" not in on_text:
        return "skipped"
    triage = [answer for answer in group if answer.record.screen == TRIAGE and answer.record.status != "blank"]
    reasons = [reason for answer in triage for reason in answer.values.get(REASON, [])[:1]]
    skipped = [each for each in triage if each.values.get(REASON) or each.record.status == "skipped"]
    if not skipped or 2 * len(skipped) < len(triage):
        return ""
    return f"skip_reason {Counter(reasons).most_common(1)[0][0]}" if reasons else "skipped in the triage"


def values_of(best: Answer, rest: Sequence[Answer], names: Mapping[str, str]) -> dict[str, Any]:
    """The caption that is taken, further ones, and where they came from."""
    record = best.record
    every = [*best.values["text"], *(text for answer in rest for text in answer.values["text"])]
    texts = list(dict.fromkeys(text.strip() for text in every if text.strip()))
    values: dict[str, Any] = {"text": texts[0]} | ({"texts": texts[1:]} if texts[1:] else {})
    values |= {"annotator": names.get(record.annotator, record.annotator), "source": SOURCE}
    values |= {"seconds": round(record.seconds, 3), "corrected": best.corrected}
    values |= {"origin": record.origin} if record.origin else {}
    return values | ({"draft_source": record.draft_by} if record.draft_by else {})


def elsewhere(group: Sequence[Answer], policy: Policy) -> dict[str, Any]:
    """What the other screens say: of choices the majority, of equals and of texts the answer that ranks first."""
    found: dict[str, Any] = {}
    others = [answer for answer in group if answer.record.screen != "text" and answer.record.status == "written"]
    for name in (*WRITTEN, *CHOICES):
        given = [answer for answer in others if any(value.strip() for value in answer.values.get(name, []))]
        if not given:
            continue
        by_rank = ranked(given, "first" if policy.wins == "first" else "newest", policy.prefer)
        said = [next(value for value in answer.values[name] if value.strip()) for answer in by_rank]
        votes = Counter(said if name in CHOICES and not trusted(by_rank[0], policy) else said[:1])
        found[name] = max(votes, key=lambda value: (votes[value], -said.index(value)))
    return found


def trusted(answer: Answer, policy: Policy) -> bool:
    return answer.record.annotator in policy.prefer
