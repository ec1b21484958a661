"""Check a captioned folder: list every problem at once, and show what training would make of it. FOLDER is only read.

python data/prepare.py FOLDER

Exit code 0: nothing is wrong. 1: something is to be mended, or to be known. 2: a wrong path or flag.
"""

from data.cli import parse
from data.errors import run_entry
from data.validate import ALIASES, PrepareOptions, validate_folder


def main() -> int:
    checkup = parse(PrepareOptions, prog="prepare.py", description=__doc__ or "", aliases=ALIASES)
    return validate_folder(checkup)


if __name__ == "__main__":
    run_entry(main)
