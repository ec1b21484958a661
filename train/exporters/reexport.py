"""What train/export.py does: base and adapter out of a run's folder, then the same exports as at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data.errors import InputError
from train import adapters, checkpoint, model, report
from train.checkpoint import Checkpoint
from train.config import Config, ExportOptions, ReexportOptions
from train.exporters import verify
from train.exporters.metadata import export_metadata
from train.exporters.verify import ExportRequest
from train.model import BaseModel
from train.run_folder import Run


def run_reexport(asked: ReexportOptions) -> int:
    """Write the files and name them. Raises InputError."""
    step, written = reexport(asked)
    print(f"the weights of step {step}, each file loaded back and compared:")
    print("\n".join(map(str, written)))
    return 0


def reexport(asked: ReexportOptions) -> tuple[int, list[Path]]:
    """Write the files; the step whose weights they are, and where they lie. Raises InputError."""
    found = Run(asked.run)
    config = load_run_config(found)
    check_exportable(config)
    kept = choose_checkpoint(found, asked.checkpoint)
    base = load_base(found, config, asked.model)
    adapters.inject(base.unet, config.adapter, config.seed)
    adapters.load_trainable_state(base.unet, averaged_state(kept), found.checkpoints / f"{kept.step:06d}")
    options = ExportOptions.model_validate(asked.model_dump(include=set(ExportOptions.model_fields)))
    facts = export_metadata(config, base, found.facts("plan.json"), found.path.name, kept.step)
    target = asked.output or output_folder(found, asked)
    written = adapters.export(base.unet, base, target, config.adapter, ExportRequest(options, facts))
    verify.write_record(target, kept.step, options, written)
    if target == found.export:
        report.update_card_files(found)
    return kept.step, written


def load_run_config(found: Run) -> Config:
    """The run's resolved settings. Raises InputError if the folder is no run, or one of another version."""
    file = found.path / "config.yaml"
    try:
        return Config.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        fix = "Name a folder that train/finetune.py made, such as runs/0001-lora-r16."
        raise InputError(f"not a run's folder ({error.strerror})", where=file, fix=fix) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"not the settings of a run of this version ({reason})", where=file) from None


def check_exportable(config: Config) -> None:
    """Schedule-free's checkpoints hold the point where gradients are taken; its average is made with its optimiser."""
    if str(config.optim.kind) == "schedule-free":
        fix = "Give the command that made the run once more with --export.* and --max-steps one larger."
        raise InputError("runs with schedule-free cannot be exported from a checkpoint", where="RUN", fix=fix)


def choose_checkpoint(found: Run, asked: str | None) -> Checkpoint:
    """The checkpoint that is meant. Raises InputError naming those that are there."""
    identity = found.identity or ""
    there = [int(path.name) for path in checkpoint.list_checkpoints(found.checkpoints)]
    if not there:
        raise InputError("holds no checkpoint", where=found.checkpoints)
    step = choose_step(found, asked, newest=there[-1])
    if step not in there:
        allowed = ", ".join(map(str, there))
        raise InputError(f"the weights of step {step} are not kept", where="--checkpoint", allowed=allowed)
    return checkpoint.load_checkpoint(found.checkpoints / f"{step:06d}", identity)


def choose_step(found: Run, asked: str | None, newest: int) -> int:
    """A number, `best`, or by default the step that was exported, of an unfinished run the newest."""
    if asked is None:
        return verify.exported_step(found.export) or newest
    if asked == "best":
        best = found.facts("best.json").get("step")
        if best is None:
            raise InputError("the run has no best step yet", where="--checkpoint best", fix="Name a step.")
        return int(best)
    if not asked.isdecimal():
        raise InputError(f"{asked!r} is no step", where="--checkpoint", allowed="a number of optimiser steps, or best")
    return int(asked)


def averaged_state(kept: Checkpoint) -> dict[str, Any]:
    """A checkpoint's moving average of the weights where it has one: what the run itself would have exported."""
    average = getattr(kept, "average", None) or {}
    return {name: average.get(name, weight) for name, weight in kept.weights.items()}


def load_base(found: Run, config: Config, elsewhere: str | None) -> BaseModel:
    """The base model that the run was trained on, by its content. Raises InputError if it is another one."""
    base = model.load_model(elsewhere or config.model, tokenizer=config.tokenizer)
    trained_on = found.facts("data.json").get("model", {})
    other = [part for part, mark in base.fingerprints.items() if trained_on.get(part, mark) != mark]
    if other:
        what = f"not the base model that the run was trained on: its {', '.join(other)} is another"
        raise InputError(what, where=f"--model {base.name}")
    return base


def output_folder(found: Run, asked: ReexportOptions) -> Path:
    """The run's export, or a folder in it: what the run left is not replaced by other weights or rounded ones."""
    step = [f"step-{asked.checkpoint}"] if asked.checkpoint else []
    precision = [asked.precision] if asked.precision != "fp32" else []
    return found.export.joinpath(*step, *precision)
