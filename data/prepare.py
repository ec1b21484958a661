"""Check a captioned folder: list every problem at once, and show what training would make of it. FOLDER is only read.

python data/prepare.py FOLDER

Exit code 0: no problems. 1: errors or warnings. 2: a wrong path or flag.
"""

from data.cli import parse
from data.errors import run_entry
from data.validate import ALIASES, PrepareOptions, validate_folder


def main() -> int:
    return validate_folder(parse(PrepareOptions, prog="prepare.py", description=__doc__ or "", aliases=ALIASES))


if __name__ == "__main__":
    run_entry(main)
