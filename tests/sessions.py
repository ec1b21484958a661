"""Sessions of finetune.py one after the other, each by the flags it would be typed with: libraries load once.

torchrun --nproc-per-node 2 -m tests.sessions '[["--max-steps", "2"], ["--max-steps", "4"]]'
"""

import json
import sys

from data.cli import parse
from train import trainer
from train.config import ALIASES, CONFIGS, Config
from train.samples import GeneratePreviews


def run(config: Config, generate: GeneratePreviews | None = None) -> int:
    """The exit code of a session."""
    return trainer.train(config, generate)[0]


def main() -> None:
    for flags in json.loads(sys.argv[1]):
        config = parse(Config, flags, prog="finetune.py", preset=CONFIGS / "pocket.yaml", aliases=ALIASES)
        assert run(config) == 0, flags


if __name__ == "__main__":
    main()
