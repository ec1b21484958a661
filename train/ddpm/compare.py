"""The course's study: UNet2DModel, BasicUNet and BasicUNet without skips, trained and compared on a common scale.

python train/ddpm/compare.py --seeds 5
"""

from data.cli import parse
from data.errors import run_entry
from train.ddpm.runs.config import CompareOptions


def main() -> int:
    options = parse(CompareOptions, prog="compare.py", description=__doc__ or "")
    from train.ddpm.runs import comparison  # loads torch, once the flags are valid

    return comparison.compare(options)


if __name__ == "__main__":
    run_entry(main)
