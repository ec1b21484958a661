"""The model cards of data/pocket/base and data/pocket/scorer: what they are, how good, and where they fail."""

from __future__ import annotations

from data.atomic_io import write_atomic
from tools.pocket.export import BASE
from tools.pocket.scorer import SCORER

Table = dict[str, float]


def rows(table: Table) -> str:
    """The measured numbers as a Markdown table."""
    lines = [f"| {name} | {value:.2f} |" for name, value in table.items()]
    return "\n".join(["| measure | value |", "| --- | --- |", *lines])


def write_cards(table: Table, seeds: int, steps: int) -> None:
    """Put the measured table between the marks of both cards; the words around it are written by hand."""
    note = f"{seeds} seed(s) of each name, {steps} sampling steps, guidance 4."
    for folder in (BASE, SCORER):
        path = folder / "README.md"
        write_atomic(path, with_table(path.read_text(encoding="utf-8"), f"{rows(table)}\n\n{note}"))


def with_table(card: str, table: str) -> str:
    """The card with the text between its two marks replaced."""
    start, end = "<!-- measured -->", "<!-- /measured -->"
    before, rest = card.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n{table}\n{end}{after}"


def print_table(table: Table) -> None:
    for row, value in table.items():
        print(f"{row:40s} {value:8.2f}")
