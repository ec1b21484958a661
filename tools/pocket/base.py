"""ENTRY: train the embedded base model in the background, for as long as it may run; the same command goes on.

python tools/pocket/base.py                      train to 2.5 million samples, or go on
python tools/pocket/base.py --samples 4000000    another total: from then on the learning rate follows it
python tools/pocket/base.py --sheet OUT.png      only draw the sheet of the last export

State: ~/.cache/atelier/pocket-base. kill -9 costs at most the minutes since the last save. See README.md beside this.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tools is not installed

from data.errors import run_entry
from tools.pocket.build import KEEP_MEMORY


def read_options() -> argparse.Namespace:
    """The flags; --help must not load torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2_500_000, help="samples in all (default 2500000)")
    parser.add_argument("--processes", type=int, help="processes of one thread each (default: one for each core)")
    parser.add_argument("--sheet", type=Path, metavar="OUT", help="draw the fixed prompts with the last export")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": "1"})
    from tools.pocket import base_training

    if options.sheet:
        base_training.draw_sheet(options.sheet)
    else:
        base_training.train(options.samples, options.processes)


if __name__ == "__main__":
    run_entry(main)
