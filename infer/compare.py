"""ENTRY: images side by side: base and tuned, checkpoints, LoRA weights, seeds, steps and whatever else an axis names,
on labelled sheets and one page. An image is generated only once.

python infer/compare.py --x "model=base,tuned" --y "seed=1..3"
"""

from data.cli import parse
from data.errors import run_entry
from infer.config import COMPARE_ALIASES, CompareOptions


def main() -> int:
    options = parse(CompareOptions, prog="compare.py", description=__doc__ or "", aliases=COMPARE_ALIASES)
    from infer.comparison import command  # torch is imported once the options are valid

    return command.run(options)


if __name__ == "__main__":
    run_entry(main)
