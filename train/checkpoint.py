"""Checkpoints: whole or not at all, safetensors and JSON only.

A checkpoint is a folder `STEP/` with weights.safetensors (float32), optimizer.safetensors and state.json, which names
the run's identity and the hash of each file. A torn or foreign one is named and skipped, never loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import InputError
from data.files import replaced_folder, sha256

FILES = ("weights.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: randomness comes from positions, so there is no generator state."""

    step: int  # optimiser steps done
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]  # a torch optimiser's state_dict
    extra: Mapping[str, Any]  # JSON: the gradient scaler, counters


def save(folder: Path, checkpoint: Checkpoint, identity: str) -> Path:
    """Write `folder/STEP`; it appears in one rename."""
    tensors, plain = flatten(checkpoint.optimizer)
    target = folder / f"{checkpoint.step:06d}"
    with replaced_folder(target) as beside:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}, beside / FILES[0])
        save_file(tensors, beside / FILES[1])
        state = {
            "step": checkpoint.step,
            "identity": identity,
            "optimizer": plain,
            "extra": dict(checkpoint.extra),
            "sha256": {name: sha256(beside / name) for name in FILES},
        }
        (beside / "state.json").write_text(json.dumps(state, indent=1))
    return target


def load(folder: Path, identity: str) -> Checkpoint:
    """Read one checkpoint. Raises InputError if it is torn, damaged or of another run."""
    try:
        state = json.loads((folder / "state.json").read_text())
        damaged = [name for name in FILES if sha256(folder / name) != state["sha256"][name]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"torn checkpoint ({error})", where=folder) from None
    if damaged:
        raise InputError(f"damaged checkpoint ({', '.join(damaged)} changed since it was written)", where=folder)
    if state["identity"] != identity:
        raise InputError("checkpoint of another run (its settings differ)", where=folder)
    optimizer = unflatten(load_file(folder / FILES[1]), state["optimizer"])
    return Checkpoint(state["step"], load_file(folder / FILES[0]), optimizer, state["extra"])


def newest(folder: Path, identity: str) -> tuple[Checkpoint | None, list[InputError]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones."""
    skipped: list[InputError] = []
    for path in reversed(steps(folder)):
        try:
            return load(path, identity), skipped
        except InputError as error:
            skipped.append(error)
    return None, skipped


def steps(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first (names of unfinished ones begin with a dot)."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []


def prune(folder: Path, keep: int) -> None:
    """Remove the oldest ones; called only after a new one is whole."""
    for path in steps(folder)[:-keep]:
        shutil.rmtree(path)


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state_dict as named tensors and JSON: `state.3.exp_avg` and the rest."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    for index, name, value in entries(state["state"]):
        if isinstance(value, Tensor):
            tensors[f"state.{index}.{name}"] = value.detach().cpu().contiguous().clone()
        else:
            plain["state"].setdefault(str(index), {})[name] = value
    return tensors, plain


def entries(state: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, str, Any]]:
    for index, slots in state.items():
        for name, value in slots.items():
            yield index, name, value


def unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of flatten, up to tuples that JSON turned into lists."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        _, index, name = key.split(".", 2)
        state.setdefault(int(index), {})[name] = tensor
    for index, slots in plain["state"].items():
        state.setdefault(int(index), {}).update(slots)
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in plain["param_groups"]]
    return {"state": state, "param_groups": groups}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put an optimiser's state back."""
    optimizer.load_state_dict(dict(state))
