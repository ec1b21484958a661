"""ENTRY: can generated pictures train a classifier? Every arm of the source thesis and its missing controls, repeated.

python train/study/run.py                                       creatures, real against drawn by the newest run
python train/study/run.py --real animals10 --artificial sd21 --artificial openjourney --net resnet34 --size 256
"""

from pathlib import Path

from data import sample_set
from data.cli import parse
from data.errors import InputError, run_entry
from infer.config import SynthesizeOptions
from train import run_folder
from train.study.config import StudyOptions


def main() -> int:
    options = parse(StudyOptions, prog="run.py", description=__doc__ or "")
    from train.study import commands

    return commands.run_study(options, drawn_by_newest_run)


def drawn_by_newest_run(asked: StudyOptions) -> Path:
    """Creatures drawn by the newest run, so many a type. Drawing is infer's: train does not know it, an entry may."""
    from infer import synthesis

    if run_folder.newest_finished(Path("runs")) is None:
        raise InputError("there is no finished run in runs/ to draw creatures with",
                         fix="Train one first: python train/finetune.py, or give --artificial.")  # fmt: skip
    count = asked.drawn_per_class * len(sample_set.TYPES)
    options = SynthesizeOptions(theme="creatures", count=count, seed=asked.seed, steps=asked.drawn_steps)
    return synthesis.synthesize_one(options)


if __name__ == "__main__":
    run_entry(main)
