"""Which learning rate, which rank? Candidates are compared on the same held-out pictures with the same noise.

Every candidate is a normal run folder under runs/sweep-NAME/, and each round continues it exactly, so a sweep that was
killed goes on where it was. The learning rate is constant while it lasts: then a round is the beginning of the next
one, bit for bit, and no candidate is judged at the foot of a decay that another length would not have had.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from data.errors import InputError
from train import job, outcome, trials
from train.config import Config
from train.exports.loras import NOTHING_LEARNT
from train.report import read_metrics
from train.run_folder import Run
from train.trials import Spec
from train.validation import Losses
from train.window import Diverged

SIDE = "held-out"


@dataclass
class Candidate:
    """One value, with the losses that its run showed after each round."""

    value: str
    config: Config
    looks: dict[int, Losses] = field(default_factory=dict)  # by step; 0 is the base model
    run: Run | None = None
    failed: str = ""

    def loss(self, step: int) -> float:
        return self.looks[step].mean if step in self.looks else math.inf


def run(config: Config, argv: Sequence[str]) -> int:
    """Run or continue a sweep; returns the exit code. argv: as typed, for the command that it ends with."""
    assert config.sweep is not None
    spec = trials.read_spec(config.sweep, config.sweep_candidates)
    if config.pictures.held_out == 0:
        raise InputError("a sweep compares held-out pictures", where="--pictures.held-out", allowed="more than 0")
    if config.new:
        raise InputError("a sweep goes on where it was", where="--new", fix="Give another --runs to start one over.")
    counts = trials.rounds(len(spec.values))
    first = config.sweep_steps or trials.first_round(counts, config.max_steps)
    folder = config.runs / spec.name
    candidates = [Candidate(value, candidate_config(config, spec, value, folder, first)) for value in spec.values]
    say(plan_lines(config, spec, counts, first))
    if config.dry_run:
        say(["memory, time and money of all candidates together, as if they were one run:"])
        whole = {"max_steps": trials.total_steps(counts, first), "dry_run": True, "probe": config.probe}
        return job.run(candidates[0].config.model_copy(update=whole))
    for index, count in enumerate(counts):
        steps = first * 2**index
        going = trials.better_half({c.value: c.loss(steps // 2) if index else 0.0 for c in candidates}, count)
        here = [candidate for value in going for candidate in candidates if candidate.value == value]
        say([f"round {index + 1} of {len(counts)}: {len(here)} candidates to step {steps}"])
        drop_weights([candidate for candidate in candidates if candidate.value not in going])
        for candidate in here:
            code = advance(candidate, steps, folder)
            if code != 0:
                say(["stopped; the same command continues the sweep"])
                return code
    return tell(spec, candidates, folder, argv)


def candidate_config(config: Config, spec: Spec, value: str, folder: Path, first: int) -> Config:
    """A normal run with this value: constant learning rate, a look at the end of each round."""
    changed = trials.with_value(config, spec.field, value)
    optim = changed.optim.model_copy(
        update={"schedule": "constant", "warmup": min(changed.optim.warmup, max(1, first // 4))}
    )
    update = {
        **{"optim": optim, "sweep": None, "new": False, "probe": False, "runs": folder},
        "run_name": f"{spec.flag.removeprefix('--').replace('.', '-')}-{value}",
        "validation": config.validation.model_copy(update={"every": first, "patience": 0}),
        "checkpoints": config.checkpoints.model_copy(update={"keep": 1, "export": "last"}),
        "max_steps": first,
    }
    return changed.model_copy(update=update)


def plan_lines(config: Config, spec: Spec, counts: Sequence[int], first: int) -> list[str]:
    total = trials.total_steps(counts, first)
    halving = ", ".join(f"{count} to step {first * 2**index}" for index, count in enumerate(counts))
    return [
        f"sweep      {spec.field.replace('_', '-')}: {', '.join(spec.values)}",
        f"rounds     {halving}",
        f"length     {total} steps in all, as many as {total / config.max_steps:.2g} runs of {config.max_steps}",
    ]


def say(lines: Sequence[str]) -> None:
    """By the first process only; accelerate's own state is made by the first run, as that run needs it."""
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(lines), flush=True)


def advance(candidate: Candidate, steps: int, folder: Path) -> int:
    """Train one candidate to `steps` and read what it shows; a loss that bursts only puts it out."""
    config = candidate.config.model_copy(update={"max_steps": steps})
    code = 0
    try:
        with quietly(folder / "log.txt"):
            code, candidate.run = job.follow(config)
    except Diverged as error:
        candidate.failed = error.what
    except InputError as error:
        if error.what != NOTHING_LEARNT:
            raise
        candidate.failed = error.what
    free_memory()
    if code != 0:
        return code
    if not candidate.failed and candidate.run is not None:
        candidate.looks = looks_of(candidate.run, steps)
    base = candidate.loss(0)
    say([f"  {candidate.value:>10}  " + (candidate.failed or f"{candidate.loss(steps):.4f} (base {base:.4f})")])
    return 0


@contextmanager
def quietly(log: Path) -> Iterator[None]:
    """Each run's own words go to a file; progress bars stay."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file):
        yield


def free_memory() -> None:
    """The next candidate needs the room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def drop_weights(out: Sequence[Candidate]) -> None:
    """Those that went out keep their numbers and reports; eight whole models would fill a disk."""
    for candidate in out:
        if candidate.run is not None:
            shutil.rmtree(candidate.run.checkpoints, ignore_errors=True)
            shutil.rmtree(candidate.run.export, ignore_errors=True)


def looks_of(run: Run, steps: int) -> dict[int, Losses]:
    """Step -> held-out losses of each picture, as far as this round went: a sweep that is repeated decides the same."""
    lines = [line for line in read_metrics(run.metrics) if "per_picture" in line and line["step"] <= steps]
    return {line["step"]: Losses(np.array(line["per_picture"][SIDE])[:, None]) for line in lines}


def tell(spec: Spec, candidates: Sequence[Candidate], folder: Path, argv: Sequence[str]) -> int:
    """Table, plot, conclusions, and what to type next."""
    rows = outcome.order([outcome.Row(c.value, c.looks, c.failed) for c in candidates])
    following = outcome.command(spec, rows[0].value, argv)
    page = outcome.write_page(spec, rows, folder, following)
    say(["", *outcome.text_table(spec, rows), "", *outcome.conclusions(spec, rows)])
    say([f"report:   {page}", f"next:     {following}"])
    return 0
