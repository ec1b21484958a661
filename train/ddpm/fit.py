"""Train a diffusion model from scratch; with no arguments on handwritten digits, in a minute or two on a CPU.

python train/ddpm/fit.py --config train/ddpm/configs/tutorial-digits.yaml
"""

from data.errors import run_entry
from data.options import parse
from train import launched  # noqa: F401 (it remembers who started this process, before torch is loaded)
from train.ddpm.running.config import ALIASES, CONFIGS, FitConfig


def main() -> int:
    preset = CONFIGS / "digits.yaml"
    config = parse(FitConfig, prog="fit.py", description=__doc__ or "", preset=preset, aliases=ALIASES)
    from train.ddpm.running import job  # torch is loaded only once the flags are known to be right

    return job.run(config)


if __name__ == "__main__":
    run_entry(main)
