"""compare.py from options to files: find the weights, draw what is missing, lay out sheets and the page."""

from __future__ import annotations

import sys
from pathlib import Path

from data.errors import INTERRUPTED, show
from infer import pipeline
from infer.comparing import result, strips, studies, thesis, wishes
from infer.comparing.cells import Machine, Store
from infer.comparing.options import CompareOptions
from infer.comparing.weights import Finder
from infer.comparing.wishes import Table


def run(options: CompareOptions) -> int:
    """Do what the options ask for; returns the exit code. Raises InputError."""
    finder = Finder(options)
    print(finder.chosen.said)
    store = Store(machine_of(options), options.cells)
    try:
        return JOBS[kind_of(options)](options, finder, store)
    except KeyboardInterrupt:
        print("\nstopped: every finished cell is kept, and the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def kind_of(options: CompareOptions) -> str:
    if options.figures:
        return "figures"
    if options.study:
        return "study"
    return "strip" if options.strip or options.gif else "table"


def machine_of(options: CompareOptions) -> Machine:
    device = pipeline.choose_device(options.device)
    return Machine(device, pipeline.choose_dtype(options.dtype, device), options.strict)


def compare(options: CompareOptions, finder: Finder, store: Store) -> int:
    """The axes as sheets and a page."""
    found = wishes.table(options, finder)
    asked = list(found.wishes.values())
    store.check(asked)
    folder = result.folder_for(options.outdir)
    cells = store.fetch(asked)
    drawn = {at: cells[wish] for at, wish in found.wishes.items()}
    result.write(folder, options, found, drawn)
    new = len({cell.path for cell in cells.values() if cell.fresh})
    print(f"{len(drawn)} cells, {new} of them newly drawn: {show(folder / result.PAGE)} and {sheets(folder, found)}")
    return result.broken(folder, [cell.recipe.verdict for cell in drawn.values()])


def sheets(folder: Path, found: Table) -> str:
    count = len(found.axes[2])
    return show(folder / result.sheet_name(0, count)) + (f" ... {count} sheets" if count > 1 else "")


JOBS = {"table": compare, "study": studies.run, "strip": strips.run, "figures": thesis.run}
