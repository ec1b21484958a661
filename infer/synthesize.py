"""ENTRY: generate a labelled set for training classifiers: a folder a class, balanced, every prompt and seed recorded.

python infer/synthesize.py --theme animals --model sd21 --model openjourney-v4 --count 5000
torchrun --nproc-per-node 2 infer/synthesize.py --count 400        shared by two processes; the same command resumes
"""

from data.cli import parse
from data.errors import run_entry
from infer.config import SynthesizeOptions


def main() -> int:
    options = parse(SynthesizeOptions, prog="synthesize.py", description=__doc__ or "")
    from infer import synthesis

    return synthesis.run_synthesis(options)


if __name__ == "__main__":
    run_entry(main)
