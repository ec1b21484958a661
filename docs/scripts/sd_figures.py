"""ENTRY: make the figures and the table of docs/stable-diffusion.md, with the embedded base and nothing else.

python docs/scripts/sd_figures.py vae guidance        some of them; without a name, all
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # docs is not installed

from data.errors import check_choice, run_entry

NAMES = ("shapes", "parts", "vae", "text", "scheduler", "guidance")
DOCS = Path(__file__).parents[1]


def main() -> int:
    """Names on the command line; pictures in --out/figures, the table in --out/stable-diffusion.md."""
    parser = argparse.ArgumentParser(
        prog="figures.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--out", type=Path, default=DOCS, help="the folder of the docs; default: docs")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of drawn pictures; default: 50")
    asked = parser.parse_args()
    names = [check_choice(name, NAMES, what="figure") for name in asked.names] or list(NAMES)
    from docs.scripts import sd_plots

    for name in names:
        print(sd_plots.make(name, asked.out, asked.steps))
    return 0


if __name__ == "__main__":
    run_entry(main)
