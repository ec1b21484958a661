"""Generate with a trained network: a grid, the trajectory from noise as strips, GIF and MP4; interpolation, inpainting.

python train/ddpm/sample.py --run runs/0001-ddpm-digits-convnext --only 3 --guidance 2 --interpolate --inpaint left
"""

import sys

from data.cli import parse
from data.errors import run_entry
from train.ddpm.runs.config import SampleOptions


def main() -> int:
    description = __doc__ or ""
    if {"-h", "--help"} & set(sys.argv):
        from train.ddpm.samplers import SAMPLERS

        description += f"\nsamplers: {', '.join(SAMPLERS)}"
    options = parse(SampleOptions, prog="sample.py", description=description, aliases={"-n": "--count"})
    from train.ddpm.runs import sampling  # loads torch, once the flags are valid

    return sampling.sample(options)


if __name__ == "__main__":
    run_entry(main)
