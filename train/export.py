"""Export a run again: other files, another precision, or the weights of an earlier checkpoint.

python train/export.py RUN [--checkpoint STEP|best] [--merge] [--single-file] [--precision fp16] [--output FOLDER]
"""

from data.errors import run_entry
from data.options import parse
from train.exports.options import Again


def main() -> int:
    asked = parse(Again, prog="export.py", description=__doc__ or "")
    from train.exports import again

    return again.run(asked)


if __name__ == "__main__":
    run_entry(main)
