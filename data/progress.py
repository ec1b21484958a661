"""Progress of long work: tqdm's bar in a terminal; elsewhere, as in a log file, one line every ten seconds."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

INTERVAL = 10.0  # seconds from one line to the next without a terminal


class ProgressBar(tqdm):
    """`for path in ProgressBar(paths, "reading images", unit="image")`, with tqdm's arguments; cleared at the end."""

    def __init__(
        self, iterable: Iterable[Any] | None = None, desc: str = "", total: float | None = None, **options: Any
    ) -> None:
        options = {"file": sys.stderr, "leave": False} | options | {"disable": bool(options.get("disable"))}
        self.in_terminal = bool(options["file"].isatty())
        if not self.in_terminal:
            options |= {"delay": INTERVAL, "mininterval": INTERVAL, "maxinterval": INTERVAL}
            options["bar_format"] = "{desc}: {n_fmt} of {total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        super().__init__(iterable, desc, total, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if self.in_terminal:
            return super().display(msg, pos)
        self.fp.write(f"{self if msg is None else msg}\n")
        return True

    def close(self) -> None:
        self.disable = self.disable or not self.in_terminal  # without the carriage return that clears a bar
        super().close()
