"""Checkpoints: whole or not at all, safetensors and JSON only.

A checkpoint is a folder `STEP/` with weights.safetensors (float32), optimizer.safetensors, ema.safetensors if weights
are averaged, and state.json, which names the run's identity and the hash of each file, itself included. A torn or
foreign one is named and skipped, never loaded.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.atomic_io import atomic_folder, file_sha256
from data.errors import InputError
from train import device
from train.config import ENDLESS_SCHEDULES, Config
from train.exporters.verify import SINGLE_FILE, read_record
from train.run_folder import Run

CHECKPOINT_FILES = ("weights.safetensors", "optimizer.safetensors")
EMA_FILE = "ema.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: randomness comes from positions, so there is no generator state."""

    step: int  # optimiser steps done
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]  # a torch optimiser's state_dict
    extra: Mapping[str, Any]  # JSON: the gradient scaler, counters
    average: Mapping[str, Tensor] | None = None  # the state of an Ema, if weights are averaged


def save_checkpoint(folder: Path, checkpoint: Checkpoint, identity: str) -> Path:
    """Write `folder/STEP`; it appears in one rename. Raises InputError if it cannot be written, e.g. on a full disk.

    Then any later step is removed: the run would have gone on from it, had it been whole.
    """
    target = folder / f"{checkpoint.step:06d}"
    tensors, plain = flatten(checkpoint.optimizer)
    files = {CHECKPOINT_FILES[0]: checkpoint.weights, CHECKPOINT_FILES[1]: tensors}
    if checkpoint.average is not None:
        files[EMA_FILE] = checkpoint.average
    state = {"step": checkpoint.step, "identity": identity, "optimizer": plain, "extra": dict(checkpoint.extra)}
    try:
        with atomic_folder(target) as beside:
            for name, content in files.items():
                save_file({key: tensor.contiguous() for key, tensor in content.items()}, beside / name)
            state["sha256"] = {name: file_sha256(beside / name) for name in files}
            text = json.dumps(state | {"seal": state_hash(state)}, indent=1, allow_nan=False)
            (beside / "state.json").write_text(text)
    except SafetensorError as error:  # what the library makes of a full disk
        fix = "The old ones were left as they were."
        raise InputError(f"cannot be written ({error})", where=target, fix=fix) from None
    for path in list_checkpoints(folder):
        if int(path.name) > checkpoint.step:
            shutil.rmtree(path)
    return target


def state_hash(state: Mapping[str, Any]) -> str:
    """A hash of what state.json says, so that a changed digit of it is noticed too."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def load_checkpoint(folder: Path, identity: str) -> Checkpoint:
    """Read one checkpoint. Raises InputError if it is torn, damaged or of another run."""
    try:
        state = json.loads((folder / "state.json").read_text())
        hashes = {name: state["sha256"][name] for name in (*CHECKPOINT_FILES, *({EMA_FILE} & state["sha256"].keys()))}
        damaged = [name for name, expected in hashes.items() if file_sha256(folder / name) != expected]
        damaged += ["state.json"] if state.pop("seal") != state_hash(state) else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "state.json cannot be read"
        raise InputError(f"torn checkpoint ({reason})", where=folder) from None
    if damaged:
        raise InputError(f"damaged checkpoint ({', '.join(damaged)} changed since it was written)", where=folder)
    if state["identity"] != identity:
        raise InputError("checkpoint of another run (its settings differ)", where=folder)
    optimizer = unflatten(load_file(folder / CHECKPOINT_FILES[1]), state["optimizer"])
    average = load_file(folder / EMA_FILE) if EMA_FILE in hashes else None
    return Checkpoint(state["step"], load_file(folder / CHECKPOINT_FILES[0]), optimizer, state["extra"], average)


def newest_checkpoint(folder: Path, identity: str) -> tuple[Checkpoint | None, list[InputError]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones."""
    skipped: list[InputError] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path, identity), skipped
        except InputError as error:
            skipped.append(error)
    return None, skipped


def resume_checkpoint(accelerator: Accelerator, folder: Path, identity: str) -> Checkpoint | None:
    """The newest checkpoint that is whole, for a run that goes on. What was not whole is named. What is of another run,
    put there by somebody, is moved to `folder/of-another-run`.
    """
    saved, skipped = newest_checkpoint(folder, identity)
    accelerator.wait_for_everyone()  # all have read
    for error in skipped:
        accelerator.print(f"skipped: {error}")
    for path in list_checkpoints(folder) if accelerator.is_main_process else []:
        try:
            other = str(json.loads((path / "state.json").read_text())["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        aside = folder / "of-another-run" / f"{path.name}-{other[:8]}"
        if other != identity and not aside.exists():
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
            accelerator.print(f"moved to {aside}: what is saved next would replace it")
    return saved


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first (names of unfinished ones begin with a dot)."""
    found = [path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def prune_checkpoints(folder: Path, keep: int, spare: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` and those of the steps in `spare`, and what a killed process left half-written;
    called only after a new one is whole.
    """
    assert keep > 0
    half_written = [path for pattern in (".*.part", ".*.old") for path in folder.glob(pattern)]
    old = [path for path in list_checkpoints(folder)[:-keep] if int(path.name) not in spare]
    for path in (*half_written, *old):
        shutil.rmtree(path)


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state_dict as named tensors and JSON: `state.3.exp_avg` and the rest."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for path, value in leaves(state["state"], "state"):
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
        else:
            plain[path] = value
    return tensors, {"param_groups": state["param_groups"], "state": plain}


def leaves(branch: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Values with dotted names; bitsandbytes keeps its quantised state one level further down than torch."""
    for name, value in branch.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of flatten. JSON turns tuples into lists: of a group's settings only `params` was a list."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in (*tensors.items(), *plain["state"].items()):
        _, index, *inner, name = path.split(".")
        slots = state.setdefault(int(index), {})
        for part in inner:
            slots = slots.setdefault(part, {})
        slots[name] = value
    groups = [
        {name: tuple(value) if isinstance(value, list) and name != "params" else value for name, value in group.items()}
        for group in plain["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


# ---- finished runs


def is_finished(run: Run, config: Config) -> bool:
    """Whether a run has completed its steps or run out of patience, and exported what is requested in that precision;
    or cannot export it, as no checkpoint is left.
    """
    if run.done is None:
        return False
    out_of_patience = 0 < config.validation.patience <= run.facts("done").get("patience", 0)
    choice = run.facts("best.json").get("export", config.checkpoints.export)
    if (run.done < config.max_steps and not out_of_patience) or choice != config.checkpoints.export:
        return False
    record, options = read_record(run.export), config.export
    files: list[str] = record.get("files", [])
    exist = bool(files) and all((run.export / name).exists() for name in files)
    wanted = {"model"} if options.merge else set()
    wanted |= {SINGLE_FILE} if options.single_file else set()
    exported = exist and wanted <= set(files) and record["precision"] == options.precision
    return exported or not list_checkpoints(run.checkpoints)


def describe_finished(run: Run, config: Config, accelerator: Accelerator) -> str:
    """What to say when there is nothing to do."""
    # with a decaying learning rate every step depends on the length, so a longer run is another one
    extends = config.optim.schedule in ENDLESS_SCHEDULES
    longer = "extends it" if extends else f"is another run ({config.optim.schedule} follows the length)"
    patience = run.facts("done").get("patience")
    why = " (out of patience)" if patience else ""
    more = f"--validation.patience {patience + 1} continues it" if patience else f"A larger --max-steps {longer}"
    lines = [f"{run.path} has these settings and finished after {run.done} steps{why}; nothing to do."]
    if change := device.changed_conditions(run.facts("plan.json"), accelerator):
        lines += [
            f"warning: it was trained by {change[0]}; this would be {change[1]}, which --new does in another run."
        ]
    return "\n".join([*lines, f"{more}, --new starts over.", f"next: {next_command(run)}"])


def next_command(run: Run) -> str:
    """Generate images with the result."""
    return f'python infer/generate.py --model {run.path} --prompt "a water type fridge" --compare-base'
