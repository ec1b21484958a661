"""ENTRY: train one classifier on a folder of class folders and test it: accuracy, recalls, calibration.

python train/study/classify.py --train artificial/animals --test animals10 --net resnet34 --size 256
"""

from data.cli import parse
from data.errors import run_entry
from train.study.config import ClassifyOptions


def main() -> int:
    options = parse(ClassifyOptions, prog="classify.py", description=__doc__ or "")
    from train.study import commands

    return commands.classify(options)


if __name__ == "__main__":
    run_entry(main)
