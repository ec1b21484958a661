"""The exports of a run, at its end or again by train/export.py: the trained weights in the formats of other tools, with
what their headers tell of the run in kohya's ss_* keys and Stability's modelspec.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data.errors import InputError
from train import adapters, checkpoint, model, report
from train.checkpoint import Checkpoint
from train.config import AdapterOptions, Config, ExportOptions, ReexportOptions
from train.exporters import full_model, lora_files, verify
from train.exporters.verify import ExportRequest
from train.model import BaseModel, file_hash
from train.run_folder import Run

SD_V1_LEVELS, SD_V1_WORDS = [320, 640, 1280, 1280], 768
PREDICTION = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}  # diffusers' words -> modelspec's


def export(
    unet: Any, base: BaseModel, folder: Path, options: AdapterOptions, request: ExportRequest | None = None
) -> list[Path]:
    """Write the trained weights in the formats that other tools load; load them back and compare. Raises InputError.

    request: which formats, and the metadata for their headers; None: the default formats without metadata of a run.
    """
    return EXPORT[options.kind](unet, base, folder, request or ExportRequest())


def export_full(unet: Any, base: BaseModel, folder: Path, request: ExportRequest) -> list[Path]:
    """`model/`: a diffusers folder with the trained U-Net; frozen parts are the base's own."""
    return full_model.export_model(unet, base, folder, request, folder_too=True)


def export_lora(unet: Any, base: BaseModel, folder: Path, request: ExportRequest) -> list[Path]:
    """`lora.safetensors` (diffusers) and `lora-kohya.safetensors`; merged models if requested."""
    files = lora_files.export_lora(unet, base, folder, request)
    if request.options.merge or request.options.single_file:
        files += full_model.export_model(unet, base, folder, request, folder_too=request.options.merge)
    return files


EXPORT: dict[str, Callable[[Any, BaseModel, Path, ExportRequest], list[Path]]] = {
    "lora": export_lora,
    "full": export_full,
}


# ---- headers


def export_metadata(config: Config, base: BaseModel, plan: Mapping[str, Any], name: str, steps: int) -> dict[str, str]:
    """plan: the run's plan.json. name: its folder's. steps: optimiser steps done when it was exported.

    kohya's epochs are whole; ours are rounded. modelspec is Stability's model metadata, version 1.0.0.
    """
    optim, label, images = config.optim, config.adapter.label, plan.get("training", 0)
    together = plan.get("global_batch", config.batch_size)
    # kohya's list of buckets, as A1111's LoRA page reads it
    buckets = {
        str(number): {"resolution": [int(side) for side in size.split("x")], "count": use["pictures"]}
        for number, (size, use) in enumerate(plan.get("buckets", {}).items())
    }
    unet, path, size = base.config("unet"), Path(base.name), config.pictures.size or base.sample_size
    # the embedded base has the same shape as Stable Diffusion v1, and smaller sizes
    second = base.family == "sd2"
    published = list(unet["block_out_channels"]) == SD_V1_LEVELS and (
        second or unet["cross_attention_dim"] == SD_V1_WORDS
    )
    small = "" if published else "small-"
    version = "v1" if not second else "v2-768-v" if base.prediction_type == "v_prediction" else "v2-512"
    known: dict[str, Any] = {
        "ss_output_name": name,
        "ss_training_comment": f"Atelier, {label}",
        "ss_training_finished_at": datetime.now(UTC).timestamp(),
        "ss_steps": steps,
        "ss_max_train_steps": config.max_steps,
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_lr_scheduler": optim.schedule,
        "ss_lr_warmup_steps": optim.warmup,
        "ss_optimizer": optim.kind,
        "ss_max_grad_norm": optim.clip_norm,
        "ss_seed": config.seed,
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": together,
        "ss_gradient_accumulation_steps": config.accumulate,
        "ss_epoch": round(steps * together / max(1, images)),
        "ss_num_train_images": images,
        "ss_mixed_precision": str(plan.get("precision", "")).partition(" ")[0],
        "ss_caption_dropout_rate": config.pictures.caption_dropout,
        "ss_flip_aug": config.pictures.flip,
        "ss_enable_bucket": config.pictures.buckets,
        "ss_bucket_info": json.dumps({"buckets": buckets}),
        "ss_cache_latents": True,
        "ss_sd_model_name": path.name if path.exists() else base.name,
        "ss_base_model_version": f"{small.replace('-', '_')}sd_{'v2' if second else 'v1'}",
        "ss_v2": second,
        "ss_v_parameterization": base.prediction_type == "v_prediction",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{small}stable-diffusion-{version}{'' if config.adapter.trains_base else '/lora'}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.description": f"{label} on {base.name}, trained with Atelier",
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": PREDICTION[config.objective.predicts],
    }
    if base.weights:
        known["ss_new_sd_model_hash"] = file_hash(base.weights)  # the hash that A1111 shows
    return {key: str(value) for key, value in known.items()}


# ---- train/export.py


def run_reexport(request: ReexportOptions) -> int:
    """Write the files and name them. Raises InputError."""
    step, written = reexport(request)
    print(f"the weights of step {step}, each file loaded back and compared:")
    print("\n".join(map(str, written)))
    return 0


def reexport(request: ReexportOptions) -> tuple[int, list[Path]]:
    """Write the files; the step whose weights they are, and where they lie. Raises InputError."""
    run = Run(request.run)
    config = load_run_config(run)
    if config.optim.kind == "schedule-free":  # checkpoints hold the point where gradients are taken, not the average
        fix = "Give the command that made the run once more with --export.* and --max-steps one larger."
        raise InputError("runs with schedule-free cannot be exported from a checkpoint", where="RUN", fix=fix)
    saved = choose_checkpoint(run, request.checkpoint)
    base = load_base(run, config, request.model)
    adapters.inject(base.unet, config.adapter, config.seed)
    # the moving average of the weights where there is one: what the run itself would have exported
    weights = dict(saved.weights) | {name: v for name, v in (saved.average or {}).items() if name in saved.weights}
    adapters.load_trainable_state(base.unet, weights, run.checkpoints / f"{saved.step:06d}")
    options = ExportOptions.model_validate(request.model_dump(include=set(ExportOptions.model_fields)))
    facts = export_metadata(config, base, run.facts("plan.json"), run.path.name, saved.step)
    # by default a folder in the run's export: what the run left is not replaced by other weights or rounded ones
    step = [f"step-{request.checkpoint}"] if request.checkpoint else []
    precision = [request.precision] if request.precision != "fp32" else []
    target = request.output or run.export.joinpath(*step, *precision)
    written = export(base.unet, base, target, config.adapter, ExportRequest(options, facts))
    verify.write_record(target, saved.step, options, written)
    if target == run.export:
        report.update_card_files(run)
    return saved.step, written


def load_run_config(run: Run) -> Config:
    """The run's resolved settings. Raises InputError if the folder is no run, or one of another version."""
    file = run.path / "config.yaml"
    try:
        return Config.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        fix = "Name a folder that train/finetune.py made, such as runs/0001-lora-r16."
        raise InputError(f"not a run's folder ({error.strerror})", where=file, fix=fix) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"not the settings of a run of this version ({reason})", where=file) from None


def choose_checkpoint(run: Run, wanted: str | None) -> Checkpoint:
    """The checkpoint of a step, of the `best` step, or by default of the step that was exported (of an unfinished run
    the newest). Raises InputError naming those that exist.
    """
    steps = [int(path.name) for path in checkpoint.list_checkpoints(run.checkpoints)]
    if not steps:
        raise InputError("holds no checkpoint", where=run.checkpoints)
    if wanted is None:
        step = verify.read_record(run.export).get("step") or steps[-1]
    elif wanted == "best":
        step = run.facts("best.json").get("step")
        if step is None:
            raise InputError("the run has no best step yet", where="--checkpoint best", fix="Name a step.")
    elif wanted.isdecimal():
        step = int(wanted)
    else:
        raise InputError(f"{wanted!r} is no step", where="--checkpoint", allowed="a number of optimiser steps, or best")
    if step not in steps:
        allowed = ", ".join(map(str, steps))
        raise InputError(f"the weights of step {step} are not kept", where="--checkpoint", allowed=allowed)
    return checkpoint.load_checkpoint(run.checkpoints / f"{step:06d}", run.identity or "")


def load_base(run: Run, config: Config, elsewhere: str | None) -> BaseModel:
    """The base model that the run was trained on, by its content. Raises InputError if it is another one."""
    base = model.load_model(elsewhere or config.model, tokenizer=config.tokenizer)
    trained_on = run.facts("data.json").get("model", {})
    other = [part for part, mark in base.fingerprints.items() if trained_on.get(part, mark) != mark]
    if other:
        what = f"not the base model that the run was trained on: its {', '.join(other)} is another"
        raise InputError(what, where=f"--model {base.name}")
    return base
