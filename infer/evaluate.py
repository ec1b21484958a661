"""ENTRY: python infer/evaluate.py RUN says on one page what fine-tuning did: style, prompts, copies, with intervals."""

from data.errors import run_entry
from infer.evaluation import config


def main() -> int:
    """Read the options, then draw and measure; torch is imported only once they are known to be good."""
    asked = config.read()
    from infer.evaluation import command

    return command.run(asked)


if __name__ == "__main__":
    run_entry(main)
