"""ENTRY: python infer/compare.py --x "model=base,tuned" --y "seed=1..3" generates a grid of images side by side."""

from data.cli import parse
from data.errors import run_entry
from infer.comparison.config import ALIASES, DESCRIPTION, CompareOptions


def main() -> int:
    options = parse(CompareOptions, prog="compare.py", description=DESCRIPTION, aliases=ALIASES)
    from infer.comparison import command  # torch is imported once the options are valid

    return command.run(options)


if __name__ == "__main__":
    run_entry(main)
