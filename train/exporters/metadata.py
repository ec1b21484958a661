"""What a file's header tells of its run, in the keys that other tools know: kohya's ss_* and Stability's modelspec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from train.config import Config
from train.model import BaseModel, file_hash

SD_V1_LEVELS, SD_V1_WORDS = [320, 640, 1280, 1280], 768
PREDICTION = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}  # diffusers' words -> modelspec's


def export_metadata(config: Config, base: BaseModel, plan: Mapping[str, Any], name: str, steps: int) -> dict[str, str]:
    """plan: the run's plan.json. name: its folder's. steps: optimiser steps done when it was exported."""
    known = training_metadata(config, plan, name, steps) | base_metadata(base) | modelspec_metadata(config, base, name)
    return {key: str(value) for key, value in known.items()}


def training_metadata(config: Config, plan: Mapping[str, Any], name: str, steps: int) -> dict[str, Any]:
    """kohya's ss_* keys, as far as they mean something here. Its epochs are whole; ours are rounded."""
    optim, together = config.optim, plan.get("global_batch", config.batch_size)
    return {
        "ss_output_name": name,
        "ss_training_comment": f"Atelier, {config.adapter.label}",
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
        "ss_epoch": round(steps * together / max(1, plan.get("training", 0))),
        "ss_num_train_images": plan.get("training", 0),
        "ss_mixed_precision": str(plan.get("precision", "")).partition(" ")[0],
        "ss_caption_dropout_rate": config.pictures.caption_dropout,
        "ss_flip_aug": config.pictures.flip,
        "ss_enable_bucket": config.pictures.buckets,
        "ss_bucket_info": json.dumps({"buckets": kohya_buckets(plan.get("buckets", {}))}),
        "ss_cache_latents": True,
    }


def kohya_buckets(buckets: Mapping[str, Any]) -> dict[str, Any]:
    """{"512x768": {"pictures": 9}} -> {"0": {"resolution": [512, 768], "count": 9}}, as A1111's LoRA page reads it."""
    return {
        str(number): {"resolution": [int(side) for side in name.split("x")], "count": use["pictures"]}
        for number, (name, use) in enumerate(buckets.items())
    }


def base_metadata(base: BaseModel) -> dict[str, Any]:
    """The base model by name; by the hash that A1111 shows, if it is a single file."""
    path = Path(base.name)
    known: dict[str, Any] = {
        "ss_sd_model_name": path.name if path.exists() else base.name,
        "ss_base_model_version": "sd_v1" if is_sd_v1(base) else "small_sd_v1",
        "ss_v2": False,
        "ss_v_parameterization": base.prediction_type == "v_prediction",
    }
    return known | ({"ss_new_sd_model_hash": file_hash(base.weights)} if base.weights else {})


def modelspec_metadata(config: Config, base: BaseModel, name: str) -> dict[str, Any]:
    """Stability's model metadata, version 1.0.0."""
    size = config.pictures.size or base.sample_size
    architecture = "stable-diffusion-v1" if is_sd_v1(base) else "small-stable-diffusion-v1"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture + ("" if config.adapter.trains_base else "/lora"),
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.description": f"{config.adapter.label} on {base.name}, trained with Atelier",
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": PREDICTION[config.objective.predicts],
    }


def is_sd_v1(base: BaseModel) -> bool:
    """Whether the U-Net has the published sizes; the embedded base is of the same shape, but smaller."""
    config = base.config("unet")
    return (list(config["block_out_channels"]), config["cross_attention_dim"]) == (SD_V1_LEVELS, SD_V1_WORDS)
