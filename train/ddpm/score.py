"""Evaluate a trained network: bits per dimension, Frechet and kernel distance, precision, recall, use to a classifier.

python train/ddpm/score.py --run runs/0001-ddpm-digits-convnext --count 1000 --bits 64
"""

from data.cli import parse
from data.errors import run_entry
from train.ddpm.runs.config import ScoreOptions


def main() -> int:
    options = parse(ScoreOptions, prog="score.py", description=__doc__ or "", aliases={"-n": "--count"})
    from train.ddpm.runs import scoring  # loads torch, once the flags are valid

    return scoring.score(options)


if __name__ == "__main__":
    run_entry(main)
