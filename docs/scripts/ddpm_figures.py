"""Make the figures of docs/ddpm.md, which need no trained network, or copy a run's figures to docs/ddpm-runs.md.

python docs/scripts/ddpm_figures.py collapse
    one figure; default: all
python docs/scripts/ddpm_figures.py --of outputs/ddpm-compare compare
    ddpm-compare-*.png and the tables of docs/ddpm-runs.md, from the output folder of fit, sample, compare or score
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # docs is not installed

from data.errors import check_choice, run_entry

NAMES = ("elbo", "collapse", "order", "schedules", "forward", "noise")
FOLDER = Path(__file__).parents[1] / "figures"


def main() -> int:
    """Write the named figures to --out."""
    parser = argparse.ArgumentParser(
        prog="figures.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="output folder for ddpm-NAME.png; default: docs/figures"
    )
    parser.add_argument(
        "--of", type=Path, metavar="FOLDER", help="output folder of a command to copy from, under the name NAME"
    )
    args = parser.parse_args()
    if args.of is not None:
        keep(args.of, "-".join(args.names) or args.of.name, args.out)
        return 0
    names = [check_choice(name, NAMES, what="figure") for name in args.names] or list(NAMES)
    from docs.scripts import plots  # matplotlib and torch are imported only after the names are checked

    for name in names:
        path = args.out / f"ddpm-{name}.png"
        plots.save(plots.FIGURES[name](), path)
        print(path)
    return 0


def keep(folder: Path, name: str, out: Path) -> None:
    """Copy a folder's figures to `out` and write its tables between the markers of ddpm-runs.md beside `out`."""
    from docs.scripts import run_plots, run_tables

    kept = run_plots.keep(folder, name, out)
    page = out.parent / "ddpm-runs.md"
    if page.is_file() and run_tables.fill(page, name, folder, kept):
        kept.append(page)
    print("\n".join(map(str, kept)))


if __name__ == "__main__":
    run_entry(main)
