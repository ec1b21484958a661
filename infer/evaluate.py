"""ENTRY: what fine-tuning did: style, prompts, diversity, copies, on one page with intervals, floors and ceilings.

Base and tuned generate from the same seeds; images are cached, so a killed command resumes.

python infer/evaluate.py runs/0001-lora-r16
"""

from data.cli import parse
from data.errors import run_entry
from infer.config import ALIASES, EvaluateOptions


def main() -> int:
    options = parse(EvaluateOptions, prog="evaluate.py", description=__doc__ or "", aliases=ALIASES)
    from infer.evaluation import command  # torch is imported once the options are valid

    return command.run(options)


if __name__ == "__main__":
    run_entry(main)
