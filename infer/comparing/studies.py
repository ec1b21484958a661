"""--study steps, guidance, trigger: the pictures of a sweep, what is measured on them, a verdict in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from data.chart import Series
from data.errors import InputError, show
from data.page import Page
from infer.comparing import axes, measures, result, sweeps, triggers, wishes
from infer.comparing.cells import Cell, Store
from infer.comparing.measures import Interval, Scorer
from infer.comparing.options import CompareOptions
from infer.comparing.result import Report
from infer.comparing.sweeps import Scores, Sweep
from infer.comparing.weights import Finder
from infer.comparing.wishes import Table

SIMPLE = ("a guitar", "a red apple", "a fish")
COMPLEX = (
    "a cat and a guitar",
    "a small red car on the left at night",
    "a line drawing of a dog on a yellow background",
)
PLAIN = ("a calculator", "a guitar", "a car")  # of the trigger's study, as the thesis' figure 3.3
SIMPLE_WORDS = 4  # a prompt of more words is complex
SHARES = (0.06, 0.1, 0.2, 0.4, 0.6, 1.0)  # of --steps: 3, 5, 10, 20, 30, 50
GUIDANCE = "1,2,4,7.5,12,20"
SEEDS, TRIGGER_SEEDS = 4, 8  # eight seeds allow a p of 0.008, four none below 0.125
At = tuple[int, ...]


def run(options: CompareOptions, finder: Finder, store: Store) -> int:
    """Draw, measure, write, and say the verdict; returns the exit code. Raises InputError."""
    assert options.study
    asked = STUDIES[options.study](options)
    table = wishes.table(asked, finder)
    all_wishes = list(table.wishes.values())
    scorer = Scorer(options.scorer or measures.POCKET_SCORER)
    store.check(all_wishes)
    folder = result.folder_for(options.outdir)
    cells = store.fetch(all_wishes)
    drawn = {at: cells[wish] for at, wish in table.wishes.items()}
    report = REPORTS[options.study](asked, table, drawn, scorer)
    result.write(folder, options, table, drawn, report)
    print(report.numbers["verdict"])
    print(f"curves and {len(drawn)} pictures: {show(folder / result.PAGE)}")
    return result.broken(folder, [cell.recipe.verdict for cell in drawn.values()])


# ---- what is drawn


def of_steps(options: CompareOptions) -> CompareOptions:
    values = sorted({max(1, round(share * options.steps)) for share in SHARES})
    return swept(options, f"steps={','.join(map(str, values))}", (*SIMPLE, *COMPLEX), SEEDS)


def of_guidance(options: CompareOptions) -> CompareOptions:
    return swept(options, f"guidance-scale={GUIDANCE}", (*SIMPLE[:2], *COMPLEX[:2]), SEEDS)


def of_trigger(options: CompareOptions) -> CompareOptions:
    return swept(options, "trigger=off,on", PLAIN, TRIGGER_SEEDS)


def swept(options: CompareOptions, x: str, prompts: Sequence[str], seeds: int) -> CompareOptions:
    """The same options with the study's axes; prompts and the swept values may be the person's own."""
    if options.y_axis or options.z_axis:
        fix = "Prompts are given with --prompt, seeds with --seed and --seeds."
        raise InputError("a study has its own rows and sheets", where="--y, --z", fix=fix)
    expected = x.partition("=")[0]
    given = axes.read(options.x_axis, "--x", options.prompt)
    if given and given.name != expected:
        fix = f'Its values may be chosen: --x "{x}".'
        raise InputError(f"--study {options.study} sweeps {expected}, not {given.name}", where="--x", fix=fix)
    count = options.seeds or seeds
    own = options.prompt if "prompt" in options.model_fields_set else tuple(prompts)
    changed = {
        "x_axis": options.x_axis or x,
        "z_axis": f"seed={options.seed}..{options.seed + count - 1}",
        "prompt": own,
    }
    # typed prompts go to the free axis by themselves
    return options.model_copy(update=changed)


STUDIES = {"steps": of_steps, "guidance": of_guidance, "trigger": of_trigger}


# ---- what is said of it


def swept_pictures(table: Table, cells: Mapping[At, Cell]) -> dict[tuple[str, int, Any], Any]:
    """Every picture by prompt, seed and value."""
    x, y, z = table.axes
    return {(y.values[at[1]], z.values[at[2]], x.values[at[0]]): cell.picture for at, cell in cells.items()}


def sweep_of(table: Table, cells: Mapping[At, Cell]) -> Sweep:
    x, y, z = table.axes
    if len(x) < 2 or list(x.values) != sorted(x.values):
        raise InputError(f"the values of {x.name} do not rise", where=x.flag, fix="Name two or more, lowest first.")
    groups = {
        "simple": [prompt for prompt in y.values if len(prompt.split()) <= SIMPLE_WORDS],
        "complex": [prompt for prompt in y.values if len(prompt.split()) > SIMPLE_WORDS],
    }
    kept = {name: prompts for name, prompts in groups.items() if prompts}
    return Sweep(kept, z.values, x.values, swept_pictures(table, cells))


def report_of_sweep(options: CompareOptions, table: Table, cells: Mapping[At, Cell], scorer: Scorer) -> Report:
    sweep = sweep_of(table, cells)
    scores = sweeps.scored(sweep, scorer)
    word = "steps" if options.study == "steps" else "guidance"
    verdict = (sweeps.steps_verdict if word == "steps" else sweeps.guidance_verdict)(sweep, scores)
    numbers = {"verdict": verdict, "curves": curves_json(sweep, scores), "scorer": scores.scorer}
    told = lambda page: tell_sweep(page, word, verdict, sweep, scores)  # noqa: E731
    return Report(f"Study: {word}", told, notes_of(table, sweep, scores), numbers)


def notes_of(table: Table, sweep: Sweep, scores: Scores) -> dict[At, str]:
    x, y, z = table.axes
    found = {}
    for at in table.wishes:
        prompt, seed, value = y.values[at[1]], z.values[at[2]], x.values[at[0]]
        gap = sweeps.distance(sweep, prompt, seed, value, sweep.last)
        found[at] = f"fits {scores.of[prompt, seed, value]:.3f}, {gap:.3f} from the last"
    return found


def curves_json(sweep: Sweep, scores: Scores) -> dict[str, Any]:
    """Every curve's points, for programs."""
    found: dict[str, Any] = {"values": list(sweep.values), "seeds": list(sweep.seeds)}
    for name, prompts in sweep.groups.items():
        found[name] = {
            "prompts": list(prompts),
            "to the last": [asdict(point) for point in sweeps.to_the_last(sweep, prompts)],
            "change per unit": [asdict(point) for point in sweeps.per_step(sweep, prompts)],
            "similarity": [asdict(point) for point in sweeps.similarity(sweep, scores, prompts)],
            "between seeds": sweeps.between_seeds(sweep, prompts),
        }
    return found


def tell_sweep(page: Page, word: str, verdict: str, sweep: Sweep, scores: Scores) -> None:
    unit = "step" if word == "steps" else "unit of guidance"
    values = list(sweep.values)
    middles = [(low + high) / 2 for low, high in pairwise(values)]
    page.section("Verdict").note(verdict)
    page.section("Change")
    far = [line(name, values, sweeps.to_the_last(sweep, prompts)) for name, prompts in sweep.groups.items()]
    apart = [
        Series(f"two seeds, {name}", values, sweeps.between_seeds(sweep, prompts), faint=True)
        for name, prompts in sweep.groups.items()
    ]
    page.curve(*far, *apart, x=word, y="RMS difference", title=f"Distance to the picture at {sweep.last:g}")
    each = [line(name, middles, sweeps.per_step(sweep, prompts)) for name, prompts in sweep.groups.items()]
    page.curve(*each, x=word, y=f"change a {unit}", title=f"Change with each further {unit}", log_y=True)
    fit = [line(name, values, sweeps.similarity(sweep, scores, prompts)) for name, prompts in sweep.groups.items()]
    page.curve(*fit, x=word, y="cosine", title=f"Similarity to the prompt, by {scores.scorer}")
    page.text(
        f"Bands: 95 % t-intervals over {len(sweep.seeds)} seeds of the mean over a group's prompts. Distances: root "
        f"mean square of colours at {measures.SIDE} x {measures.SIDE}, 0 to 1. A prompt of more than {SIMPLE_WORDS} "
        "words is complex. The scorer's cosines are not calibrated: differences count, not levels."
    )
    page.section("Pictures")


def line(name: str, x: Sequence[float], points: Sequence[Interval]) -> Series:
    means = [point.mean for point in points]
    lows = [max(point.low, 0.0) if point.mean >= 0 else point.low for point in points]  # none is below 0 by nature
    return Series(name, x, means, lows, [point.high for point in points])


def report_of_trigger(options: CompareOptions, table: Table, cells: Mapping[At, Cell], scorer: Scorer) -> Report:
    _, y, z = table.axes
    pictures = swept_pictures(table, cells)
    found = triggers.effects(y.values, z.values, pictures, scorer)
    word = wishes.trigger_of(options, table.wishes[0, 0, 0].weights)
    verdict = triggers.verdict(word, found, len(z))
    rows = [
        (e.name, e.pair.mean, e.seeds, e.ratio.mean, f"{e.ratio.low:.2f} to {e.ratio.high:.2f}", e.shift) for e in found
    ]
    head = ("prompt", "word moves it by", "another seed by", "ratio", "95 %", "p of no shift")

    def told(page: Page) -> None:
        page.section("Verdict").note(verdict).table(head, rows)
        page.text(
            f"Distances: root mean square of colours, 0 to 1. Ratio: the word's distance at a seed by that seed's mean "
            f"distance to the others, with the 95 % t-interval over {len(z)} seeds. p: flips of the signs of the "
            f"differences of {scorer.name}'s features, with minus without."
        ).section("Pictures")

    gaps = {
        at: f"moved by {measures.distance(cell.picture, cells[0, *at[1:]].picture):.3f}"
        for at, cell in cells.items()
        if at[0] == 1
    }
    numbers = {"verdict": verdict, "effects": [asdict(each) for each in found], "scorer": scorer.name, "word": word}
    return Report(f"Study: the trigger {word!r}", told, gaps, numbers)


REPORTS = {"steps": report_of_sweep, "guidance": report_of_sweep, "trigger": report_of_trigger}
