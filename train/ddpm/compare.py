"""The course's study: UNet2DModel, BasicUNet and BasicUNet without skips, trained and compared on a common scale.

python train/ddpm/compare.py --seeds 5
"""

from data.errors import run_entry
from data.options import parse
from train.ddpm.running.compare_options import CompareOptions


def main() -> int:
    options = parse(CompareOptions, prog="compare.py", description=__doc__ or "")
    from train.ddpm.running import comparing  # torch is loaded only once the flags are known to be right

    return comparing.run(options)


if __name__ == "__main__":
    run_entry(main)
