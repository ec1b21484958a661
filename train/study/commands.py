"""What run.py does: gather the sets, train what is missing, write the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data.atomic_io import atomic_file, write_atomic
from data.errors import InputError
from data.sample_set import sample_folder
from train.study import class_folders, experiment, report
from train.study.arms import ARMS
from train.study.class_folders import LabelledImages
from train.study.config import ClassifyOptions, StudyOptions
from train.study.measures import Measures, measure
from train.study.training import LabelledPixels, predict_logits, train_classifier, training_steps

Draw = Callable[[StudyOptions], Path]  # draws so many pictures a class -> a folder with a folder a class
OUTDIR = Path("outputs") / "study"


def run_study(options: StudyOptions, draw: Draw) -> int:
    """The whole study; returns the exit code. `draw` makes the artificial set where none is given."""
    if options.real is not None and not options.artificial:
        fix = "Make some: python infer/synthesize.py --classes ... Only the sample creatures can be drawn by default."
        raise InputError("no artificial pictures for these real ones", where="--artificial", fix=fix)
    artificial = options.artificial or (draw(options),)
    if not options.artificial:  # N real and N artificial pictures, or "artificial" would be "fewer" as well
        options = options.model_copy(update={"per_class": min(options.per_class, options.drawn_per_class)})
    real = options.real or sample_folder(size=64)
    outdir = options.outdir or OUTDIR
    material = experiment.load_material(options, artificial, real)
    print(describe_plan(options, material))
    answers = experiment.train_all(options, material, outdir)
    page = report.write_report(options, material, answers, outdir)
    for each in report.differences(answers, test_share=options.test_share, margin=options.margin):
        print(f"{each.arm} - {each.other} ({each.generator}): {report.sentence(each, options)}")
    print(f"report: {page}")
    return 0


def describe_plan(options: StudyOptions, material: experiment.Material) -> str:
    """What will be trained, in a few lines."""
    count = len(experiment.list_tasks(options, material))
    lines = [f"{each.name}: {len(each)} pictures, " + ", ".join(f"{name} {n}" for name, n in each.counts.items())
             for each in (material.real, *material.artificial)]  # fmt: skip
    return "\n".join([*lines, f"{count} classifiers: {options.net} at {options.size} pixels, recipe {options.recipe}"])


SHARE = 0.2  # of --train that is tested on where no --test is given


def classify(options: ClassifyOptions) -> int:
    """Train, test, write; returns the exit code."""
    learnt = class_folders.read_class_folders(
        options.train or sample_folder(size=64), per_class=options.per_class, seed=options.seed
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.test is None:
        cut = class_folders.split(learnt, SHARE, 0, options.seed)
        pixels = class_folders.load_pixels(learnt.files, options.size)
        sides = [
            (pixels[rows], learnt.labels[rows], [learnt.files[row] for row in rows]) for rows in (cut.train, cut.test)
        ]
    else:
        other = class_folders.match_classes(
            learnt, class_folders.read_class_folders(options.test, per_class=10**9, seed=options.seed, duplicates=False)
        )
        check_overlap(learnt, other)
        sides = [
            (class_folders.load_pixels(each.files, options.size), each.labels, list(each.files))
            for each in (learnt, other)
        ]
    (shown, labels, _), (tested, truth, files) = sides
    print(f"{len(labels)} pictures to learn from, {len(truth)} to test on, {len(learnt.names)} classes; "
          f"{training_steps(options, ARMS['real'], len(labels))} steps of {options.batch_size}")  # fmt: skip
    net = train_classifier(LabelledPixels(shown, labels), len(learnt.names), ARMS["real"], options, options.seed)
    logits = predict_logits(net, tested)
    found = measure(logits, truth)
    outdir = options.outdir or next_free_folder(Path("outputs"))
    write_classifier(outdir, net, logits, truth, files, learnt)
    print(format_measures(found, learnt.names))
    print(f"weights and answers: {outdir}")
    return 0


def check_overlap(learnt: LabelledImages, tested: LabelledImages) -> None:
    """Raise InputError for a test set that was learnt."""
    from data.atomic_io import file_sha256

    known = {file_sha256(file) for file in learnt.files}
    shared = [file for file in tested.files if file_sha256(file) in known]
    if shared:
        raise InputError(
            f"{len(shared)} of {len(tested)} test pictures are in --train as well, the first is {shared[0].name}",
            where="--test", fix="Test on pictures that were not learnt.",
        )  # fmt: skip


def format_measures(found: Measures, names: tuple[str, ...]) -> str:
    """The numbers as lines."""
    recalls = "\n".join(f"  {name:20s} {100 * value:5.1f} %" for name, value in zip(names, found.recalls, strict=True))
    return (
        f"accuracy {100 * found.accuracy:.2f} % (always the commonest class: {100 * found.majority:.2f} %), balanced "
        f"{100 * found.balanced:.2f} %, macro F1 {found.macro_f1:.4f}, calibration error {found.calibration:.4f}\n"
        f"found of each class:\n{recalls}"
    )


def write_classifier(
    outdir: Path,
    net: torch.nn.Module,
    logits: np.ndarray,
    truth: np.ndarray,
    files: list[Path],
    learnt: LabelledImages,
) -> None:
    """model.safetensors, classes.txt and predictions.csv."""
    from safetensors.torch import save_file

    outdir.mkdir(parents=True, exist_ok=True)
    with atomic_file(outdir / "model.safetensors") as beside:
        save_file({name: value.contiguous() for name, value in net.state_dict().items()}, beside)
    write_atomic(outdir / "classes.txt", "\n".join(learnt.names) + "\n")
    said = logits.argmax(axis=1)
    lines = ["file,class,said", *(f"{file},{learnt.names[a]},{learnt.names[b]}" for file, a, b in
                                  zip(files, truth, said, strict=True))]  # fmt: skip
    write_atomic(outdir / "predictions.csv", "\n".join(lines) + "\n")


def next_free_folder(parent: Path) -> Path:
    """outputs/classifier-0001 or the number after the highest there."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(each.name.removeprefix("classifier-")) for each in parent.glob("classifier-*")
             if each.name.removeprefix("classifier-").isdecimal()]  # fmt: skip
    return parent / f"classifier-{max(taken, default=0) + 1:04d}"
