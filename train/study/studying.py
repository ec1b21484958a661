"""What run.py does: gather the sets, train what is missing, write the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data.errors import InputError
from data.sample_set import sample_folder
from train.study import report, running
from train.study.options import StudyOptions

Draw = Callable[[StudyOptions], Path]  # draws so many pictures a class -> a folder with a folder a class
OUTDIR = Path("outputs") / "study"


def run(options: StudyOptions, draw: Draw) -> int:
    """The whole study; returns the exit code. `draw` makes the artificial set where none is given."""
    if options.real is not None and not options.artificial:
        fix = "Make some: python infer/synthesize.py --classes ... Only the sample creatures can be drawn by default."
        raise InputError("no artificial pictures for these real ones", where="--artificial", fix=fix)
    artificial = options.artificial or (draw(options),)
    if not options.artificial:  # N real and N artificial pictures, or "artificial" would be "fewer" as well
        options = options.model_copy(update={"per_class": min(options.per_class, options.drawn_per_class)})
    real = options.real or sample_folder(size=64)
    outdir = options.outdir or OUTDIR
    material = running.gather(options, artificial, real)
    print(plan(options, material))
    answers = running.run_all(options, material, outdir)
    page = report.write(options, material, answers, outdir)
    for each in report.differences(answers, test_share=options.test_share, margin=options.margin):
        print(f"{each.arm} - {each.other} ({each.generator}): {report.sentence(each, options)}")
    print(f"report: {page}")
    return 0


def plan(options: StudyOptions, material: running.Material) -> str:
    """What will be trained, in a few lines."""
    count = len(running.tasks(options, material))
    lines = [f"{each.name}: {len(each)} pictures, " + ", ".join(f"{name} {n}" for name, n in each.counts.items())
             for each in (material.real, *material.artificial)]  # fmt: skip
    return "\n".join([*lines, f"{count} classifiers: {options.net} at {options.size} pixels, recipe {options.recipe}"])
