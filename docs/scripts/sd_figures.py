"""ENTRY: make the figures and the table of docs/stable-diffusion.md from the embedded base model.

python docs/scripts/sd_figures.py vae guidance        these figures; default: all
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # docs is not installed

from data.errors import check_choice, run_entry

NAMES = ("shapes", "parts", "vae", "text", "scheduler", "guidance")
DOCS = Path(__file__).parents[1]


def main() -> int:
    """Write the named figures to --out/figures and the table to --out/stable-diffusion.md."""
    parser = argparse.ArgumentParser(
        prog="figures.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--out", type=Path, default=DOCS, help="documentation folder; default: docs")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of generated images; default: 50")
    args = parser.parse_args()
    names = [check_choice(name, NAMES, what="figure") for name in args.names] or list(NAMES)
    from docs.scripts import sd_plots

    for name in names:
        print(sd_plots.make(name, args.out, args.steps))
    return 0


if __name__ == "__main__":
    run_entry(main)
