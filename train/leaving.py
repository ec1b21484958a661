"""What a finished run leaves: exports of its best weights, report and card; and when there is nothing left to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.errors import InputError
from train import checkpoint, machine
from train.config import SCHEDULES_WITHOUT_END, Config
from train.exports import record
from train.exports.facts import facts_of
from train.exports.models import SINGLE_FILE
from train.exports.options import Export
from train.exports.request import Request
from train.plan import Plan
from train.run_folder import Run
from train.saving import restore
from train.state import State, evaluated
from train.stopping import explain_stop
from train.summary import Outcome, write_summary
from train.validation import HELD_OUT

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.job import Job


def leave(job: Job, state: State, found: Run, plan: Plan) -> None:
    """Export, report, and mark the run as finished, last."""
    config, steps, progress = job.config, state.step, state.progress
    stopped = steps < config.max_steps
    why = explain_stop(progress, config.validation.patience, steps) if stopped else ""
    choose_weights(job, state, found)
    facts = facts_of(config, job.model, plan.facts(), found.path.name, state.step)
    request = Request(config.export, facts)
    with evaluated(state):
        files = config.adapter.export(state.unwrapped_unet(), job.model, found.export, request)
    record.write(found.export, state.step, request.options, files)
    outcome = Outcome(next_command(found), steps, state.step, progress, config.checkpoints.export, why)
    write_summary(found, plan, outcome)
    found.write_json("done", {"steps": steps} | ({"patience": config.validation.patience} if stopped else {}))
    if why:
        print(why)
    print(f"finished: {', '.join(map(str, files))}, the weights of step {state.step}")
    if plan.sampling:
        print(f"beware:   {plan.sampling}")
    print(f"report:   {found.path / 'report.html'}")
    print(f"next:     {outcome.command}")


def choose_weights(job: Job, state: State, found: Run) -> None:
    """Put the best step's weights in place of the last ones, which stay among the checkpoints."""
    best = state.progress.chosen
    if job.config.checkpoints.export == "last" or best is None or best.judged_by != HELD_OUT or best.step == state.step:
        return
    try:
        kept = checkpoint.load(found.checkpoints / f"{best.step:06d}", job.identity)
    except InputError as error:
        print(f"the best step's weights are gone, so the last ones are exported: {error}")
        return
    restore(state, kept, found.checkpoints)


def next_command(found: Run) -> str:
    """Draw with what was learnt."""
    return f'python infer/generate.py --model {found.path} --prompt "a water type fridge" --compare-base'


def nothing_left(found: Run, config: Config) -> bool:
    """Whether a run has done all that these settings ask for: its steps or its patience, and the export."""
    if found.done is None:
        return False
    out_of_patience = 0 < config.validation.patience <= found.facts("done").get("patience", 0)
    best = found.facts("best.json")
    as_asked = best.get("export", config.checkpoints.export) == config.checkpoints.export
    return as_asked and exported(found, config.export) and (found.done >= config.max_steps or out_of_patience)


def exported(found: Run, wanted: Export) -> bool:
    """Whether the files that are asked for are there, in that precision; or cannot be made, for no weights are kept."""
    made = record.read(found.export)
    files: list[str] = made.get("files", [])
    there = bool(files) and all((found.export / name).exists() for name in files)
    merged = "model" in files or not wanted.merge
    single = SINGLE_FILE in files or not wanted.single_file
    as_wanted = there and merged and single and made["precision"] == wanted.precision
    return as_wanted or not checkpoint.steps(found.checkpoints)


def already_done(found: Run, config: Config, accelerator: Accelerator) -> str:
    # with a decaying learning rate every step depends on the length: a longer run is another one, see config.identity
    extends = config.optim.schedule in SCHEDULES_WITHOUT_END
    longer = "extends it" if extends else f"is another run ({config.optim.schedule} follows the length)"
    patience = found.facts("done").get("patience")
    why = " (out of patience)" if patience else ""
    more = f"--validation.patience {patience + 1} goes on" if patience else f"A larger --max-steps {longer}"
    lines = [f"{found.path} has these settings and finished after {found.done} steps{why}; nothing to do."]
    before = found.facts("plan.json")
    if machine.other_ways(before, accelerator):
        was, would = (machine.in_words(each) for each in (before, machine.ways(accelerator)))
        lines += [f"beware: it was trained by {was}; this would be {would}, which --new does in another run."]
    return "\n".join([*lines, f"{more}, --new starts over.", f"next: {next_command(found)}"])
