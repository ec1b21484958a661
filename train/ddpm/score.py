"""Measure a trained network: bits per dimension, Frechet and kernel distance, precision, recall, use to a classifier.

python train/ddpm/score.py --run runs/0001-ddpm-digits-convnext --count 1000 --bits 64
"""

import sys

from data.errors import run_entry
from data.options import parse
from train.ddpm.running.score_options import ScoreOptions


def main() -> int:
    description = __doc__ or ""
    if {"-h", "--help"} & set(sys.argv):
        from train.ddpm.samplers import NAMED

        description += f"\nsamplers: {', '.join(NAMED)}"
    options = parse(ScoreOptions, prog="score.py", description=description, aliases={"-n": "--count"})
    from train.ddpm.running import scoring  # torch is loaded only once the flags are known to be right

    return scoring.run(options)


if __name__ == "__main__":
    run_entry(main)
