"""ENTRY: python infer/evaluate.py RUN reports what fine-tuning did: style, prompts, diversity, copies."""

from data.cli import parse
from data.errors import run_entry
from infer.evaluation.config import ALIASES, DESCRIPTION, EvaluateOptions


def main() -> int:
    options = parse(EvaluateOptions, prog="evaluate.py", description=DESCRIPTION, aliases=ALIASES)
    from infer.evaluation import command  # torch is imported once the options are valid

    return command.run(options)


if __name__ == "__main__":
    run_entry(main)
