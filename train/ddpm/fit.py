"""Train a diffusion model from scratch; with no arguments on handwritten digits, in a minute or two on a CPU.

python train/ddpm/fit.py --config train/ddpm/configs/tutorial-digits.yaml
"""

from data.cli import parse
from data.errors import run_entry
from train import signals  # noqa: F401 (it remembers the parent process before torch is loaded)
from train.ddpm.runs.config import ALIASES, CONFIGS, FitConfig


def main() -> int:
    preset = CONFIGS / "digits.yaml"
    config = parse(FitConfig, prog="fit.py", description=__doc__ or "", preset=preset, aliases=ALIASES)
    from train.ddpm.runs import trainer  # loads torch, once the flags are valid

    return trainer.fit(config)[0]


if __name__ == "__main__":
    run_entry(main)
