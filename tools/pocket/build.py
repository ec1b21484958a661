"""ENTRY: build the embedded base model from scratch, or measure it again.

python tools/pocket/build.py            every stage in turn; each goes on where its state stands
python tools/pocket/build.py --score    measure the shipped model and print the card's table again
python tools/pocket/build.py --score-tuned RUN    measure what a fine-tune did to style and nouns
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tools is not installed

from data.errors import run_entry

NAMES = ("vae", "text", "unet", "export", "scorer")
# glibc gives large blocks back to the system after every layer and faults them in again: 3 instead of 20 pictures
# a second in the autoencoder (2-core CPU, 2026-11-21). It reads these only when a process starts.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the core from whom they wait for
}


def read_options() -> argparse.Namespace:
    """The flags; --help must not load torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=NAMES, nargs="+", default=NAMES, help="only these stages")
    parser.add_argument("--steps", type=int, help="the stage's last step, instead of the recipe's own")
    parser.add_argument("--adopt", action="store_true", help="no states here: take up the shipped model's weights")
    parser.add_argument("--score", action="store_true", help="measure data/pocket/base and print the card's table")
    parser.add_argument("--score-tuned", type=Path, metavar="RUN", help="measure a fine-tune (run or LoRA file)")
    parser.add_argument("--score-seeds", type=int, default=4, help="pictures of each name (default 4)")
    parser.add_argument("--score-steps", type=int, default=50, help="sampling steps of each picture (default 50)")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    from tools.pocket.stages import run_score, run_score_tuned, run_stages

    if options.score_tuned:
        run_score_tuned(options.score_tuned)
    elif options.score:
        run_score(options.score_seeds, options.score_steps)
    elif options.adopt:
        from tools.pocket.adopt import adopt

        adopt()
    else:
        run_stages(options.stage, options.steps)


if __name__ == "__main__":
    run_entry(main)
