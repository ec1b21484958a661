"""Fine-tune Stable Diffusion on a captioned folder.

accelerate launch --quiet --config_file accelerate_config.yaml train/finetune.py --data FOLDER
"""

import sys

from data.cli import parse
from data.errors import run_entry
from train import signals  # it remembers who started this process, before torch is loaded
from train.config import ALIASES, OTHER_TOOLS, Config, choose_preset, name_preset


def main() -> int:
    signals.check_launcher_flags(sys.argv[1:])
    own = {"prog": "finetune.py", "description": __doc__ or ""}
    config = parse(Config, **own, preset=choose_preset, aliases=ALIASES, hints=OTHER_TOOLS)
    config = name_preset(config)
    from train import sweep, trainer  # load torch, once the flags are valid

    if config.sweep:
        return sweep.run_sweep(config, sys.argv[1:])
    generate = None
    if config.previews.every != 0:
        from infer import previews  # an entry may: the trainer itself does not know how to generate images

        generate = previews.generate_previews
    return trainer.train(config, generate)[0]


if __name__ == "__main__":
    run_entry(main)
