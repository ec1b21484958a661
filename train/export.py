"""Export a run again: other files, another precision, or the weights of an earlier checkpoint.

python train/export.py RUN [--checkpoint STEP|best] [--merge] [--single-file] [--precision fp16] [--output FOLDER]
"""

from data.cli import parse
from data.errors import run_entry
from train.config import ReexportOptions


def main() -> int:
    asked = parse(ReexportOptions, prog="export.py", description=__doc__ or "")
    from train.exporters import run_export

    return run_export.run_reexport(asked)


if __name__ == "__main__":
    run_entry(main)
