"""ENTRY: train the embedded base model in the background, for as long as it may run; the same command goes on.

python tools/pocket/base.py                      train to 2.5 million samples, or go on
python tools/pocket/base.py --samples 4000000    another total: from then on the learning rate follows it
python tools/pocket/base.py --composition        judge the last export: colours, elements and pairs, with ceilings
python tools/pocket/base.py --publish            put the last export in the place of data/pocket/base
python tools/pocket/base.py --score              measure data/pocket/base and write its card's table
python tools/pocket/base.py --score-tuned RUN    measure what a fine-tune did to style and nouns

State: ~/.cache/atelier/pocket-base. kill -9 costs at most the minutes since the last save. See README.md beside this.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tools is not installed

from data.errors import run_entry

# glibc gives large blocks back to the system after every layer and faults them in again: 3 instead of 20 pictures
# a second in the autoencoder (2-core CPU, 2026-11-21). It reads these only when a process starts.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the core from whom they wait for
    "OMP_NUM_THREADS": "1",
}


def read_options() -> argparse.Namespace:
    """The flags; --help must not load torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2_500_000, help="samples in all (default 2500000)")
    parser.add_argument("--processes", type=int, help="processes of one thread each (default: one for each core)")
    parser.add_argument("--autoencoder", action="store_true", help="train the autoencoder further, before the U-Net")
    parser.add_argument("--scorer", action="store_true", help="train data/pocket/scorer anew")
    parser.add_argument("--composition", action="store_true", help="judge how the last export composes")
    parser.add_argument("--publish", action="store_true", help="write the last export to data/pocket/base")
    parser.add_argument("--score", action="store_true", help="measure data/pocket/base and print the card's table")
    parser.add_argument("--score-tuned", type=Path, metavar="RUN", help="measure a fine-tune (run or LoRA file)")
    parser.add_argument("--score-seeds", type=int, default=4, help="pictures of each name (default 4)")
    parser.add_argument("--score-steps", type=int, default=50, help="sampling steps of each picture (default 50)")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    from tools.pocket import autoencoder, base_training, composition, export, score, scorer, tuned

    if options.autoencoder:
        autoencoder.train_autoencoder()
    elif options.scorer:
        scorer.train_scorer()
    elif options.composition:
        composition.report(export.state_folder() / "export")
    elif options.publish:
        export.publish()
    elif options.score_tuned:
        score.print_table(tuned.score_tuned(options.score_tuned))
    elif options.score:
        table = score.score(options.score_seeds, options.score_steps)
        score.print_table(table)
        score.write_cards(table, options.score_seeds, options.score_steps)
    else:
        base_training.train(options.samples, options.processes)


if __name__ == "__main__":
    run_entry(main)
