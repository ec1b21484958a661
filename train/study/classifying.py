"""What classify.py does: one classifier, its answers on a test set, and a line for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.errors import InputError
from data.files import replaced_file, write_atomic
from data.sample_set import sample_folder
from train.study import folders, splits
from train.study.arms import ARMS
from train.study.folders import Labelled
from train.study.measures import Measures, measure
from train.study.options import ClassifyOptions
from train.study.training import Pictures, predict, steps_of, train

SHARE = 0.2  # of --train that is tested on where no --test is given


def run(options: ClassifyOptions) -> int:
    """Train, test, write; returns the exit code."""
    learnt = folders.read(options.train or sample_folder(size=64), per_class=options.per_class, seed=options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.test is None:
        cut = splits.cut(learnt, SHARE, 0, options.seed)
        pixels = folders.pixels(learnt.files, options.size)
        sides = [
            (pixels[rows], learnt.labels[rows], [learnt.files[row] for row in rows]) for rows in (cut.train, cut.test)
        ]
    else:
        other = folders.agree(learnt, folders.read(options.test, per_class=10**9, seed=options.seed, duplicates=False))
        refuse_shared(learnt, other)
        sides = [(folders.pixels(each.files, options.size), each.labels, list(each.files)) for each in (learnt, other)]
    (shown, labels, _), (tested, truth, files) = sides
    print(f"{len(labels)} pictures to learn from, {len(truth)} to test on, {len(learnt.names)} classes; "
          f"{steps_of(options, ARMS['real'], len(labels))} steps of {options.batch_size}")  # fmt: skip
    net = train(Pictures(shown, labels), len(learnt.names), ARMS["real"], options, options.seed)
    logits = predict(net, tested)
    found = measure(logits, truth)
    outdir = options.outdir or next_free(Path("outputs"))
    write(outdir, net, logits, truth, files, learnt)
    print(told(found, learnt.names))
    print(f"weights and answers: {outdir}")
    return 0


def refuse_shared(learnt: Labelled, tested: Labelled) -> None:
    """Raise InputError for a test set that was learnt."""
    from data.files import sha256

    known = {sha256(file) for file in learnt.files}
    shared = [file for file in tested.files if sha256(file) in known]
    if shared:
        raise InputError(
            f"{len(shared)} of {len(tested)} test pictures are in --train as well, the first is {shared[0].name}",
            where="--test", fix="Test on pictures that were not learnt.",
        )  # fmt: skip


def told(found: Measures, names: tuple[str, ...]) -> str:
    """The numbers as lines."""
    recalls = "\n".join(f"  {name:20s} {100 * value:5.1f} %" for name, value in zip(names, found.recalls, strict=True))
    return (
        f"accuracy {100 * found.accuracy:.2f} % (always the commonest class: {100 * found.majority:.2f} %), balanced "
        f"{100 * found.balanced:.2f} %, macro F1 {found.macro_f1:.4f}, calibration error {found.calibration:.4f}\n"
        f"found of each class:\n{recalls}"
    )


def write(
    outdir: Path,
    net: torch.nn.Module,
    logits: np.ndarray,
    truth: np.ndarray,
    files: list[Path],
    learnt: Labelled,
) -> None:
    """model.safetensors, classes.txt and predictions.csv."""
    from safetensors.torch import save_file

    outdir.mkdir(parents=True, exist_ok=True)
    with replaced_file(outdir / "model.safetensors") as beside:
        save_file({name: value.contiguous() for name, value in net.state_dict().items()}, beside)
    write_atomic(outdir / "classes.txt", "\n".join(learnt.names) + "\n")
    said = logits.argmax(axis=1)
    lines = ["file,class,said", *(f"{file},{learnt.names[a]},{learnt.names[b]}" for file, a, b in
                                  zip(files, truth, said, strict=True))]  # fmt: skip
    write_atomic(outdir / "predictions.csv", "\n".join(lines) + "\n")


def next_free(parent: Path) -> Path:
    """outputs/classifier-0001 or the number after the highest there."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(each.name.removeprefix("classifier-")) for each in parent.glob("classifier-*")
             if each.name.removeprefix("classifier-").isdecimal()]  # fmt: skip
    return parent / f"classifier-{max(taken, default=0) + 1:04d}"
