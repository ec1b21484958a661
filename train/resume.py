"""Whether a run has done all that the same command asks for again, and what to say then."""

from __future__ import annotations

from accelerate import Accelerator

from train import checkpoint, device
from train.config import ENDLESS_SCHEDULES, Config, ExportOptions
from train.exporters.full_model import SINGLE_FILE
from train.exporters.verify import read_record
from train.run_folder import Run


def is_finished(run: Run, config: Config) -> bool:
    """Whether a run has completed its steps or run out of patience, and exported what is requested."""
    if run.done is None:
        return False
    out_of_patience = 0 < config.validation.patience <= run.facts("done").get("patience", 0)
    choice = run.facts("best.json").get("export", config.checkpoints.export)
    complete = run.done >= config.max_steps or out_of_patience
    return complete and choice == config.checkpoints.export and is_exported(run, config.export)


def is_exported(run: Run, options: ExportOptions) -> bool:
    """Whether the requested files exist, in that precision; or cannot be written, as no checkpoint is left."""
    record = read_record(run.export)
    files: list[str] = record.get("files", [])
    exist = bool(files) and all((run.export / name).exists() for name in files)
    merged = "model" in files or not options.merge
    single = SINGLE_FILE in files or not options.single_file
    complete = exist and merged and single and record["precision"] == options.precision
    return complete or not checkpoint.list_checkpoints(run.checkpoints)


def describe_finished(run: Run, config: Config, accelerator: Accelerator) -> str:
    """What to say when there is nothing to do."""
    # with a decaying learning rate every step depends on the length: a longer run is another one, see train/identity.py
    extends = config.optim.schedule in ENDLESS_SCHEDULES
    longer = "extends it" if extends else f"is another run ({config.optim.schedule} follows the length)"
    patience = run.facts("done").get("patience")
    why = " (out of patience)" if patience else ""
    more = f"--validation.patience {patience + 1} continues it" if patience else f"A larger --max-steps {longer}"
    lines = [f"{run.path} has these settings and finished after {run.done} steps{why}; nothing to do."]
    before = run.facts("plan.json")
    if device.conditions_differ(before, accelerator):
        was, would = (device.describe_conditions(each) for each in (before, device.run_conditions(accelerator)))
        lines += [f"warning: it was trained by {was}; this would be {would}, which --new does in another run."]
    return "\n".join([*lines, f"{more}, --new starts over.", f"next: {next_command(run)}"])


def next_command(run: Run) -> str:
    """Generate images with the result."""
    return f'python infer/generate.py --model {run.path} --prompt "a water type fridge" --compare-base'
