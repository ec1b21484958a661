"""Draw the figures of docs/ddpm.md, which need no trained network, or keep those that a run left for docs/ddpm-runs.md.

python docs/scripts/ddpm_figures.py collapse
    one of them; without a name, all
python docs/scripts/ddpm_figures.py --of outputs/ddpm-compare compare
    ddpm-compare-*.png and the tables of docs/ddpm-runs.md, of a folder of any of the four commands
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # docs is not installed

from data.errors import check_choice, run_entry

NAMES = ("elbo", "collapse", "order", "schedules", "forward", "noise")
FOLDER = Path(__file__).parents[1] / "figures"


def main() -> int:
    """Names on the command line, pictures in --out."""
    parser = argparse.ArgumentParser(
        prog="figures.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="the folder to write ddpm-NAME.png to; default: docs/figures"
    )
    parser.add_argument("--of", type=Path, metavar="FOLDER", help="keep what lies there; NAME is then what to call it")
    chosen = parser.parse_args()
    if chosen.of is not None:
        keep(chosen.of, "-".join(chosen.names) or chosen.of.name, chosen.out)
        return 0
    names = [check_choice(name, NAMES, what="figure") for name in chosen.names] or list(NAMES)
    from docs.scripts import plots  # matplotlib and torch are loaded only once the names are known to be right

    for name in names:
        path = chosen.out / f"ddpm-{name}.png"
        plots.save(plots.FIGURES[name](), path)
        print(path)
    return 0


def keep(folder: Path, name: str, out: Path) -> None:
    """The figures of a folder into `out`, and its tables between the marks of docs/ddpm-runs.md, or of a copy there."""
    from docs.scripts import run_plots, run_tables

    kept = run_plots.keep(folder, name, out)
    page = out.parent / "ddpm-runs.md"
    if page.is_file() and run_tables.fill(page, name, folder, kept):
        kept.append(page)
    print("\n".join(map(str, kept)))


if __name__ == "__main__":
    run_entry(main)
