"""Why a command starts another run than an unfinished one, and --resume, which resumes that run with the changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from data.errors import InputError
from train import checkpoint, run_folder
from train.config import Config
from train.run_folder import FINETUNE, Run

FIXED = ("adapter.", "optim.kind", "objective.kind")  # a checkpoint fits these alone
FREE = ("adapter.dropout", "adapter.sample_dropout")


@dataclass(frozen=True)
class Change:
    """fits: whether the run's checkpoint can be trained on with it."""

    what: str
    fits: bool = True


def changes_since(run: Run, config: Config, facts: Mapping[str, Any]) -> list[Change]:
    """What differs from a run's settings, images and base model. facts: of now, as in the run's data.json."""
    before = run.facts("data.json")
    found = [*changed_settings(read_settings(run), config), *changed_data(before, facts)]
    parts = [part for part, value in before.get("model", {}).items() if facts["model"].get(part, value) != value]
    found += [Change(f"model ({', '.join(parts)})", "unet" not in parts)] if parts else []
    return found or [Change("the base model's noise schedule", fits=False)]


def read_settings(run: Run) -> dict[str, Any]:
    """Raises InputError if the run's config.yaml cannot be read."""
    file = run.path / "config.yaml"
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        return dict(settings)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read ({error})", where=file) from error


def changed_settings(before: Mapping[str, Any], config: Config) -> Iterator[Change]:
    """Of the settings that count for the identity of a run, in the order of --help."""
    counted = config.model_dump(mode="json", exclude=run_folder.not_counted())
    defaults = dict(flatten(type(config)().model_dump(mode="json")))
    earlier, now = dict(flatten(before)), dict(flatten(counted))
    if config.optim.schedule not in run_folder.ENDLESS_SCHEDULES:
        now["max_steps"] = config.max_steps
    for name, value in now.items():
        old = earlier.get(name, defaults.get(name, value))
        if old == value:
            continue
        ema = name == "ema.decay" and not (old and value)
        fits = not ema and (name in FREE or not name.startswith(FIXED))
        yield Change(f"--{name.replace('_', '-')} ({show(old)} -> {show(value)})", fits)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def changed_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    """Images that came and went, by their content; captions, if nothing else explains another fingerprint."""
    if before.get("fingerprint") == now["fingerprint"]:
        return
    old, new = ({*facts.get("train", {}).values(), *facts.get("held_out", {}).values()} for facts in (before, now))
    added, removed = len(new - old), len(old - new)
    counts = [f"{sign}{count} image{'s' * (count > 1)}" for sign, count in (("+", added), ("-", removed)) if count]
    if not counts and set(before.get("held_out", {}).values()) != set(now["held_out"].values()):
        counts = ["other held-out images"]
    yield Change(f"data ({', '.join(counts) or 'captions'})")


@dataclass(frozen=True)
class FoundRun:
    """The run that a command resumes, or none; facts: of the command's images and base model, as in data.json."""

    run: Run | None
    identity: str  # of the run
    facts: Mapping[str, Any]
    message: str | None = None
    changes: Sequence[str] = ()  # with which --resume resumes it
    command: str = ""  # the identity of the command


def find_run(config: Config, facts: Mapping[str, Any], *identities: str | None) -> FoundRun:
    """The run of --resume, else the newest with one of these identities, of which the first is the command's.

    Raises InputError if the run's checkpoint does not fit the command.
    """
    command = str(identities[0])
    if config.resume is not None:
        run = Run(config.resume)
        changes = check_changes(run, config, facts, command)
        message = f"{run.path} is resumed with changes: {', '.join(changes)}" if changes else None
        return FoundRun(run, str(run.identity), facts, message, changes, command)
    run = None if config.new else run_folder.find_run(config.runs, *identities)
    if run is not None:
        return FoundRun(run, run.identity or command, facts)
    return FoundRun(None, command, facts, None if config.new else describe_unfinished(config, facts))


def describe_unfinished(config: Config, facts: Mapping[str, Any]) -> str | None:
    """One line about the newest unfinished run, which this command does not resume, and why it does not."""
    unfinished = (
        run for run in reversed(run_folder.all_runs(config.runs)) if run.kind == FINETUNE and run.done is None
    )
    run = next((run for run in unfinished if checkpoint.list_checkpoints(run.checkpoints)), None)
    if run is None:
        return None
    try:
        changes, steps = changes_since(run, config, facts), read_settings(run).get("max_steps")
    except InputError:
        return None
    step = int(checkpoint.list_checkpoints(run.checkpoints)[-1].name)
    message = f"{run.path} stopped at step {step} of {steps}; this is another run because of: "
    message += ", ".join(change.what for change in changes)
    return message + (f". --resume {run.path} resumes it anyway" if all(change.fits for change in changes) else "")


def check_changes(run: Run, config: Config, facts: Mapping[str, Any], command: str) -> list[str]:
    """What changed since a run began. Raises InputError if its checkpoint does not fit, or it is no run."""
    where = f"--resume {run.path}"
    if run.identity is None or run.kind != FINETUNE:
        known = [str(each.path) for each in run_folder.all_runs(config.runs) if each.kind == FINETUNE]
        allowed = ", ".join(known) or f"a folder in {config.runs}/"
        raise InputError("not a run of train/finetune.py", where=where, allowed=allowed)
    if command in run.identities:
        return []
    changes = changes_since(run, config, facts)
    unfit = [change.what for change in changes if not change.fits]
    if unfit:
        fix = "Leave these as they were, or start another run without --resume."
        raise InputError(f"its checkpoint does not fit: {', '.join(unfit)}", where=where, fix=fix)
    return [change.what for change in changes]


def note_changes(found: FoundRun, step: int) -> None:
    """In data.json: from which step on what was different, and the identity by which the same command finds the run."""
    if found.run is None or not found.changes:
        return
    before = found.run.facts("data.json")
    history = [*before.get("resumed", []), {"step": step, "changes": list(found.changes)}]
    identities = [*before.get("identities", []), found.command]
    found.run.write_json("data.json", before | dict(found.facts) | {"resumed": history, "identities": identities})
