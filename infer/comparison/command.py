"""compare.py from options to files: find the weights, generate what is missing, write sheets and page."""

import sys

from data.errors import EXIT_INTERRUPTED, printable
from infer.comparison import figures, results, studies
from infer.comparison.grid import build_grid
from infer.comparison.image_cache import ImageCache, Machine
from infer.comparison.results import Report
from infer.comparison.studies import Scorer
from infer.comparison.trajectory import strip_requests, write_strips
from infer.comparison.weights import WeightsFinder
from infer.config import POCKET_SCORER, CompareOptions


def run(options: CompareOptions) -> int:
    """Returns the exit code. Raises InputError."""
    finder = WeightsFinder(options)
    print(finder.chosen.description)
    cache = ImageCache(Machine.choose(options.device, options.dtype, options.strict), options.cells)
    own = cache.recommended(finder.of_model(""))
    guidance = own.guidance_scale if options.guidance_scale is None else options.guidance_scale
    chosen = " (the model's)" if None in (options.steps, options.guidance_scale) else ""
    print(f"settings: {options.steps or own.steps} steps, guidance {guidance:g}{chosen}")
    command = figures.run if options.figures else strips if options.strip or options.gif else compare
    try:
        return command(options, finder, cache)
    except KeyboardInterrupt:
        print("\nstopped: finished images are kept, and the same command continues from there", file=sys.stderr)
        return EXIT_INTERRUPTED


def compare(options: CompareOptions, finder: WeightsFinder, cache: ImageCache) -> int:
    """The axes, or those of a study, as sheets and a page."""
    if options.study:
        options = studies.study_options(options, cache.recommended(finder.of_model("")).steps)
    grid = build_grid(options, finder)
    scorer = Scorer(options.scorer or POCKET_SCORER)
    requests = list(grid.requests.values())
    cache.check(requests)
    folder = results.output_folder(options.outdir)
    images = cache.get(requests)
    placed = {at: images[request] for at, request in grid.requests.items()}
    make_report = studies.trigger_report if options.study == "trigger" else studies.sweep_report
    report = make_report(options, grid, placed, scorer) if options.study else Report()
    results.write_comparison(folder, options, grid, placed, report)
    if options.study:
        print(report.verdict)
    new = len({cached.path for cached in images.values() if cached.is_new})
    count = len(grid.axes[2])
    sheets = printable(folder / results.sheet_name(0, count)) + (f" ... {count} sheets" if count > 1 else "")
    print(f"{len(placed)} images, {new} newly generated: {printable(folder / results.PAGE)} and {sheets}")
    return results.exit_code(folder, list(placed.values()))


def strips(options: CompareOptions, finder: WeightsFinder, cache: ImageCache) -> int:
    rows = strip_requests(options, finder)
    cache.check([request for _, request in rows])
    folder = results.output_folder(options.outdir)
    for path in write_strips(folder, options, rows, cache):
        print(printable(path))
    results.write_mark(folder, options)
    return 0
