"""InputError for user mistakes (what, where, allowed, how to fix it); `assert` is for internal invariants."""

from __future__ import annotations

import difflib
import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

EXIT_USAGE = 2  # exit code of a command that was refused, as argparse has it
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class InputError(Exception):
    """A user's mistake, printed as one line: what is wrong, where (file:line, path, flag), allowed values, fix."""

    def __init__(self, what: str, *, where: object = None, allowed: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.allowed, self.fix = what, where, allowed, fix
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{printable(self.where)}: " if self.where is not None else ""
        allowed = f"; allowed: {self.allowed}" if self.allowed is not None else ""
        line = f"{place}{self.what}{allowed}"
        stop = " " if line.endswith("?") else ". "
        return f"{line}{stop}{self.fix}" if self.fix else line


class InputErrors(InputError):
    """Several mistakes at once, so that they can be fixed in one go."""

    def __init__(self, errors: Sequence[InputError]) -> None:
        assert errors, "an error that names nothing helps nobody"
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} problems")

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def raise_all(errors: Sequence[InputError]) -> None:
    """Raise nothing, the one error, or all of them together."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputErrors(errors)


def check_choice(value: str, allowed: Iterable[str], *, what: str, where: object = None) -> str:
    """Return `value` if it is allowed; else raise InputError with the nearest allowed word as a suggestion."""
    words = list(allowed)
    if value in words:
        return value
    raise InputError(f"unknown {what} {value!r}{suggest(value, words)}", where=where, allowed=", ".join(words))


def suggest(value: str, words: Iterable[str]) -> str:
    """`, did you mean 'x'?` if a word is similar, else the empty string."""
    near = difflib.get_close_matches(value, list(words), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def printable(name: object) -> str:
    """A file name on one line: control characters and undecodable bytes as escapes, so that no name forges a line."""
    text = str(name)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def run_entry(main: Callable[[], int | None]) -> NoReturn:
    """Run a command: an InputError becomes a line on stderr and exit code 2, Ctrl-C exit code 130."""
    gc.set_threshold(50_000, 20, 100)  # imports of large libraries take a sixth less time with fewer collections
    try:
        sys.exit(main() or 0)
    except InputError as error:
        lines = str(error).splitlines()
        print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `command | head`: the reader is gone, which is fine
        sys.stderr.close()
        sys.exit(0)


MAX_QUOTE = 120  # characters of a user's text that a message repeats


def quoted(text: str) -> str:
    """A text in quotes on one line, shortened if it is long."""
    return repr(text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]}...")


@dataclass(frozen=True)
class Problem:
    """Where (file or file:line), what is wrong, how to fix it. refused: the row or image is left out."""

    where: str
    what: str
    fix: str = ""
    refused: bool = True

    @classmethod
    def of(cls, error: InputError, where: str | None = None) -> Problem:
        """An InputError about one image or row, to be listed with the others."""
        allowed = f"; allowed: {error.allowed}" if error.allowed is not None else ""
        return cls(where or str(error.where), f"{error.what}{allowed}", error.fix or "")

    def __str__(self) -> str:
        kind = "error" if self.refused else "warning"
        fix = f". {self.fix}" if self.fix else ""
        return printable(f"{self.where}: {kind}: {self.what}{fix}")

    def fields(self) -> dict[str, Any]:
        """For JSON: where, what, fix, refused. Bytes of a name that are not UTF-8 are escaped."""
        return {key: printable(value) if isinstance(value, str) else value for key, value in asdict(self).items()}
