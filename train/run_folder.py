"""Run folders: runs/0007-lora-r16/ holds all that a run is. The same settings find the same folder again."""

import fcntl
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from data.atomic_io import atomic_folder, write_atomic
from data.errors import InputError
from train.config import ENDLESS_SCHEDULES, Config

FINETUNE = "finetune"  # the kind of a run that does not say what it is
NUMBERED = re.compile(r"(\d{4,})-(.+)")
LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "numpy",
    "Pillow",
    "bitsandbytes",
)


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def identity(self) -> str | None:
        """Written when the folder was made; None for a folder that is no run."""
        return self.facts("data.json").get("identity")

    @property
    def identities(self) -> set[str]:
        """Of the commands that this run belongs to: the first, and those that resumed it with changes."""
        return {self.identity, *self.facts("data.json").get("identities", [])} - {None}

    @property
    def kind(self) -> str:
        """Which command it is of: FINETUNE, or another word in data.json."""
        return self.facts("data.json").get("kind", FINETUNE)

    @property
    def done(self) -> int | None:
        """The number of steps after which it finished, or None."""
        return self.facts("done").get("steps")

    def facts(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write_json(self, name: str, facts: Mapping[str, Any]) -> None:
        write_atomic(self.path / name, to_json(facts))

    def finish(self, steps: int) -> None:
        """The last file to be written."""
        self.write_json("done", {"steps": steps})

    def reopen(self) -> None:
        """An extended run is unfinished again."""
        (self.path / "done").unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Two trainers in one folder would spoil each other. Raises InputError if another process has it."""
        with lock_file(self.path / ".lock", wait=False) as held:
            if not held:
                raise InputError("another process is training this run", where=self.path, fix="Wait, or --new.")
            yield


@contextmanager
def lock_file(path: Path, *, wait: bool) -> Iterator[bool]:
    """Yields whether the lock is ours; `wait`: until it is. The system lets go of it if we are killed."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    held = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(handle)


def all_runs(runs: Path) -> list[Run]:
    """Every run folder, oldest first."""
    found = [path for path in runs.glob("*-*") if NUMBERED.fullmatch(path.name)] if runs.is_dir() else []
    return [Run(path) for path in sorted(found, key=lambda path: (int(path.name.partition("-")[0]), path.name))]


def find_run(runs: Path, *identities: str | None) -> Run | None:
    """The newest run with one of these identities."""
    known = set(identities) - {None}
    return next((run for run in reversed(all_runs(runs)) if run.identities & known), None)


def newest_finished(runs: Path) -> Path | None:
    """The folder of the newest fine-tuning run that finished, or None."""
    finished = (run for run in reversed(all_runs(runs)) if run.done is not None and run.kind == FINETUNE)
    return next((run.path for run in finished), None)


def create_run(runs: Path, name: str, files: Mapping[str, str]) -> Run:
    """A new numbered folder that appears with its first files in it; no two runs get one number."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with (
            lock_file(runs / ".lock", wait=True),
            atomic_folder(target := runs / f"{next_number(runs):04d}-{name}") as beside,
        ):
            for file, content in files.items():
                (beside / file).write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=f"--runs {runs}") from None
    return Run(target)


def next_number(runs: Path) -> int:
    """One more than the largest: a number whose run was removed in between is not given away again."""
    return max((int(run.path.name.partition("-")[0]) for run in all_runs(runs)), default=0) + 1


def to_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def library_versions() -> dict[str, Any]:
    """What the results may depend on beside the settings."""
    return {
        "atelier": metadata.version("atelier"),
        "python": platform.python_version(),
        **{library: metadata.version(library) for library in LIBRARIES},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU threads",
    }


# ---- identity: a hash over the settings that change the weights, the dataset and the base model. Settings equal to
# their default do not count, so a new option does not orphan the runs made before it.

IDENTITY_VERSION = 2  # to be raised where a default changes its meaning
# What may change when a run is resumed: where things are, how long it trains, what is logged and exported.
IGNORED = {
    *("config", "max_steps", "threads", "runs", "run_name", "new", "resume", "dry_run", "data", "export", "logging"),
    *("checkpoints", "price_per_hour", "probe", "strict", "sweep", "sweep_candidates", "sweep_steps"),
    *("model", "tokenizer", "validation", "previews"),  # model and data count by their content
}
# What gives the same bits: gradient checkpointing repeats the same operations, an EMA on the CPU rounds alike. Not
# compile, attention or tf32: they change rounding, and a resumed run promises the bits of an uninterrupted one.
# Preserved prompts count by their text.
BIT_EXACT = {"pictures": {"keep"}, "preserve": {"prompts"}, "memory": {"gradient_checkpointing"}, "ema": {"device"}}


def not_counted() -> Any:
    """pydantic's `exclude` for the settings that do not count."""
    return dict.fromkeys(IGNORED, True) | BIT_EXACT


def run_identity(config: Config, data_fingerprint: str, model_fingerprint: str) -> str:
    """The identity of a run. The number of steps counts only where the learning rate depends on it."""
    settings = {name: value for name, value in changed_settings(config).items() if value != {}}
    for name in ("adapter", "objective"):  # a kind is its own default, and would be left out
        settings[name] = settings.get(name, {}) | {"kind": getattr(config, name).kind}
    return digest([IDENTITY_VERSION, settings | run_length(config), data_fingerprint, model_fingerprint])


def changed_settings(config: Config) -> dict[str, Any]:
    """The settings that change the weights, and are not the default."""
    return config.model_dump(mode="json", exclude=not_counted(), exclude_defaults=True)


def run_length(config: Config) -> dict[str, int]:
    return {} if config.optim.schedule in ENDLESS_SCHEDULES else {"max_steps": config.max_steps}


def digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# ---- frozen: the identity of runs made before version 2, which counted every setting

OBJECTIVE_V1 = (
    *("kind", "loss", "huber_c", "huber_schedule", "weighting", "gamma"),
    *("noise_offset", "input_perturbation", "zero_terminal_snr"),
)
V1_FIELDS: dict[str, Any] = {
    "adapter": {
        "full": ("kind", "blocks"),
        "lora": ("kind", "rank", "alpha", "ranks", "targets", "dropout", "use_dora", "use_rslora"),
    },
    "objective": dict.fromkeys(("epsilon", "velocity", "sample"), OBJECTIVE_V1),
    "optim": ("kind", "beta1", "beta2", "epsilon", "weight_decay", "clip_norm", "schedule", "warmup"),
    "ema": ("decay", "warmup"),
    "memory": ("attention", "tf32"),
    "pictures": ("size", "buckets", "flip", "caption", "caption_dropout", "held_out"),
    "preserve": ("share", "strength"),
    **dict.fromkeys(("compile", "learning_rate", "batch_size", "accumulate", "seed"), ()),
}


def identity_v1(config: Config, data_fingerprint: str, model_fingerprint: str) -> str | None:
    """The identity that this run would have had in version 1; None if it uses an option or kind that came later."""
    settings: dict[str, Any] = {}
    for name, fields in V1_FIELDS.items():
        value = getattr(config, name)
        if isinstance(fields, dict):
            if value.kind not in fields:
                return None
            fields = fields[value.kind]
        settings[name] = value.model_dump(mode="json", include=set(fields)) if fields else value
    for name, value in changed_settings(config).items():
        known = settings.get(name)
        if known is None or (isinstance(value, dict) and value.keys() - known.keys()):
            return None
    return digest([settings | run_length(config), data_fingerprint, model_fingerprint])
