"""Problem: one thing that is wrong with a captioned folder, as a line for a person and as fields for a program."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from data.errors import InputError, show

LONGEST_QUOTE = 120  # characters of somebody's text that a message repeats


def quoted(text: str) -> str:
    """A text in quotes on one line, shortened if it is long."""
    return repr(text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}...")


@dataclass(frozen=True)
class Problem:
    """Where (file or file:line), what is wrong, what to do. refused: the row or picture is left out; else a warning."""

    where: str
    what: str
    fix: str = ""
    refused: bool = True

    @classmethod
    def of(cls, error: InputError, where: str | None = None) -> Problem:
        """An InputError about one picture or row, to be listed with the others."""
        allowed = f"; allowed: {error.allowed}" if error.allowed is not None else ""
        return cls(where or str(error.where), f"{error.what}{allowed}", error.fix or "")

    def __str__(self) -> str:
        kind = "refused" if self.refused else "warning"
        fix = f". {self.fix}" if self.fix else ""
        return show(f"{self.where}: {kind}: {self.what}{fix}")

    def fields(self) -> dict[str, Any]:
        """For JSON: where, what, fix, refused. Bytes of a name that are not UTF-8 are escaped."""
        return {key: show(value) if isinstance(value, str) else value for key, value in asdict(self).items()}
