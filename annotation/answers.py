"""What the server says of a task -> records of answers. The server validates nothing, so everything is checked here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from annotation import interface
from annotation.offers import META
from annotation.records import Record, Status
from data.errors import InputError
from data.problems import quoted
from data.store import check_file_name

SHA256 = re.compile(r"[0-9a-f]{64}")
Values = dict[str, list[str]]


@dataclass
class Reader:
    """Reads the answers of one screen.

    fields: field -> the choices that its answer may be, None for a text. users: id -> e-mail address.
    odd: what was left out, in words -> how often.
    """

    screen: str
    fields: Mapping[str, frozenset[str] | None]
    users: Mapping[int, str] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)

    def records(self, task: Mapping[str, Any]) -> list[Record]:
        """The answers to one task, in the order in which they were made; none for a task that push did not make."""
        answers = [each for each in task.get("annotations") or [] if isinstance(each, Mapping)]
        data = task.get("data")
        key = self.key(data if isinstance(data, Mapping) else {})
        if key is None:
            self.odd["answer to a task that push did not make"] += len(answers)
            return []
        drafts = list(drafts_of(task))
        return [self.record(key, answer, drafts) for answer in sorted(answers, key=lambda answer: answer["id"])]

    def key(self, data: Mapping[str, Any]) -> tuple[str, str] | None:
        """The SHA-256 and the file name of a task's picture; None if they are not what push writes."""
        sha256, name = data.get("sha256"), data.get("file_name")
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256) or not isinstance(name, str):
            return None
        try:
            check_file_name(name)
        except InputError as error:
            self.odd[error.what] += 1
            return None
        return sha256, name

    def record(self, key: tuple[str, str], answer: Mapping[str, Any], drafts: list[Offer]) -> Record:
        """One answer."""
        values = self.values(answer.get("result"))
        offer = offered(answer, drafts)
        return Record(
            sha256=key[0],
            file_name=key[1],
            screen=self.screen,
            annotation=int(answer["id"]),
            annotator=self.user(answer.get("completed_by")),
            status=status(answer, values),
            values=values,
            seconds=float(answer.get("lead_time") or 0.0),
            created=str(answer["created_at"]),
            updated=str(answer["updated_at"]),
            draft=offer.text if offer else None,
            draft_by=offer.source if offer else None,
            origin=origin(answer.get("result")),
        )

    def user(self, who: Any) -> str:
        """The address of a user, who comes as a number or as an object."""
        number = who.get("id") if isinstance(who, Mapping) else who
        return self.users.get(number) or f"user {number}" if number is not None else "unknown"

    def values(self, result: Any) -> Values:
        """Field -> texts or choices, in order, blank ones left out. What is none of ours is counted in `odd`."""
        values: Values = {}
        for item in result if isinstance(result, list) else []:
            name, given = read_item(item)
            if name not in self.fields:
                self.odd[f"unknown control {quoted(str(name))}"] += 1
                continue
            if given is None:
                self.odd[f"unreadable value of {name!r}"] += 1
                continue
            sound = [text for text in given if text.strip() and self.allowed(name, text)]
            if sound:
                values.setdefault(name, []).extend(sound)
        return values

    def allowed(self, name: str, text: str) -> bool:
        """Whether a choice is one of the screen's; texts are free."""
        choices = self.fields[name]
        if choices is None or text in choices:
            return True
        self.odd[f"unknown choice {quoted(text)} of {name!r}"] += 1
        return False


def fields_of(screen: str, types: tuple[str, ...]) -> dict[str, frozenset[str] | None]:
    """What a screen asks for, as interface.py makes it."""
    from data.schema import Annotation

    if screen != interface.TRIAGE:
        return {screen: None}
    return {name: frozenset(choices) for name, choices in interface.offered(types, Annotation).items()}


def read_item(item: Any) -> tuple[Any, list[str] | None]:
    """(control, its texts or choices) of one item of a result; None if there is nothing to read in it."""
    if not isinstance(item, Mapping):
        return None, None
    value = item.get("value")
    given = value.get("text", value.get("choices")) if isinstance(value, Mapping) else None
    if isinstance(given, str):
        given = [given]
    sound = isinstance(given, list) and all(isinstance(text, str) for text in given)
    return item.get("from_name"), given if sound else None


def status(answer: Mapping[str, Any], values: Values) -> Status:
    """Label Studio keeps what was written when a task is skipped, and takes a blank text for an answer."""
    if answer.get("was_cancelled"):
        return "skipped"
    return "written" if values else "blank"


def origin(result: Any) -> str | None:
    """What the page noted about the draft: "prediction" taken as it was, "prediction-changed" edited."""
    for item in result if isinstance(result, list) else []:
        if isinstance(item, Mapping) and str(item.get("origin", "")).startswith("prediction"):
            return str(item["origin"])
    return None


# ---- drafts


@dataclass(frozen=True)
class Offer:
    """A draft that a task has."""

    id: int
    text: str
    source: str
    created: str


def drafts_of(task: Mapping[str, Any]) -> Iterator[Offer]:
    """The drafts of a task that say something."""
    for each in task.get("predictions") or []:
        result = each.get("result") if isinstance(each, Mapping) else None
        first = result[0] if isinstance(result, list) and result and isinstance(result[0], Mapping) else {}
        text = "\n".join(read_item(first)[1] or [])
        if text.strip():
            meta = first.get("meta")
            source = meta.get(META) if isinstance(meta, Mapping) else None
            yield Offer(
                each["id"], text, str(source or each.get("model_version") or "unknown"), str(each["created_at"])
            )


def offered(answer: Mapping[str, Any], drafts: list[Offer]) -> Offer | None:
    """The draft from which an answer was made; if the page did not note it, the newest that was there before it."""
    parent = answer.get("parent_prediction")
    if parent is not None:
        return next((draft for draft in drafts if draft.id == parent), None)
    earlier = [draft for draft in drafts if draft.created <= str(answer["created_at"])]
    return max(earlier, key=lambda draft: (draft.created, draft.id), default=None)
