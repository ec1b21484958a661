"""When two runs are the same: a hash over the settings that change the weights, the dataset and the base model.

Settings equal to their default do not count, so a new option does not orphan the runs made before it. Where a default
changes its meaning, VERSION is raised.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from train.config import ENDLESS_SCHEDULES, Config

VERSION = 2
# What may change when a run is resumed: where things are, how long it trains, what is logged and exported.
IGNORED = {
    *("config", "max_steps", "threads", "runs", "run_name", "new", "dry_run", "logging", "checkpoints", "data"),
    *("export", "price_per_hour", "probe", "strict", "sweep", "sweep_candidates", "sweep_steps"),
    *("model", "tokenizer", "validation", "previews"),  # model and data count by their content
}
# What gives the same bits: gradient checkpointing repeats the same operations, an EMA on the CPU rounds alike. Not
# compile, attention or tf32: they change rounding, and a resumed run promises the bits of an uninterrupted one.
# Preserved prompts count by their text.
BIT_EXACT = {"pictures": {"keep"}, "preserve": {"prompts"}, "memory": {"gradient_checkpointing"}, "ema": {"device"}}


def run_identity(config: Config, data_fingerprint: str, model_fingerprint: str) -> str:
    """The identity of a run. The number of steps counts only where the learning rate depends on it."""
    excluded: Any = dict.fromkeys(IGNORED, True) | BIT_EXACT
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=excluded, exclude_defaults=True)
    settings = {name: value for name, value in settings.items() if value != {}}
    for name in ("adapter", "objective"):  # a kind is its own default, and would be left out
        settings[name] = settings.get(name, {}) | {"kind": getattr(config, name).kind}
    if config.optim.schedule not in ENDLESS_SCHEDULES:
        settings["max_steps"] = config.max_steps
    return digest([VERSION, settings, data_fingerprint, model_fingerprint])


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
    "compile": (),
    "learning_rate": (),
    "batch_size": (),
    "accumulate": (),
    "seed": (),
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
    excluded: Any = dict.fromkeys(IGNORED, True) | BIT_EXACT
    changed = config.model_dump(mode="json", exclude=excluded, exclude_defaults=True)
    for name, value in changed.items():
        known = settings.get(name)
        if known is None or (isinstance(value, dict) and value.keys() - known.keys()):
            return None
    if config.optim.schedule not in ENDLESS_SCHEDULES:
        settings["max_steps"] = config.max_steps
    return digest([settings, data_fingerprint, model_fingerprint])
