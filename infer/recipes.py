"""The recipe of each picture: what the whole job shares, collected once, and what is the picture's own."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from infer import canvas, loras, schedulers, source
from infer.canvas import Canvas
from infer.encoder import Tokens
from infer.loras import Proof
from infer.metadata import LoraUsed, ModelUsed, Recipe, TokensUsed
from infer.pipeline import DTYPES, Drawn
from train.base_model import BaseModel

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PACKAGES = ("atelier", "torch", "diffusers", "transformers", "peft")


def shared(
    pipe: StableDiffusionPipeline,
    model: BaseModel,
    proofs: Sequence[Proof],
    scheduler: str | None,
    given: Canvas = canvas.BLANK,
) -> dict[str, Any]:
    """The fields of a Recipe that all pictures of a pass have in common."""
    return {
        "scheduler": type(pipe.scheduler).__name__,
        "sampler": schedulers.shown(pipe.scheduler, scheduler),
        "scheduler_config": json.loads(pipe.scheduler.to_json_string()),
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == model.dtype),
        "device": device_name(pipe.device),
        "model": model_used(model),
        "loras": tuple(lora_used(proof) for proof in proofs),
        "threads": torch.get_num_threads(),
        "inputs": given.used,
        "polarity": given.polarity,
        "controlnet": given.control_hash,
        "control_scale": given.control_scale,
        "versions": versions(),
    }


def of(shared: Mapping[str, Any], drawn: Drawn, tokens: Mapping[str, Tokens]) -> Recipe:
    """The recipe of one picture."""
    own, negative = tokens[drawn.picture.prompt], tokens[drawn.settings.negative_prompt]
    return Recipe(
        prompt=drawn.picture.prompt,
        seed=drawn.picture.seed,
        template=drawn.picture.template,
        unstyled=drawn.picture.unstyled,
        verdict=drawn.verdict,
        decoded_again=drawn.decoded_again,
        concepts=drawn.concepts,
        tokens=TokensUsed(**asdict(own)),
        negative_tokens=TokensUsed(**asdict(negative)),
        **asdict(drawn.settings),
        **shared,
    )


def model_used(model: BaseModel) -> ModelUsed:
    file_hash = model.fingerprints["unet"] if model.weights else ""
    return ModelUsed(name=shared_name(model.name), fingerprint=model.fingerprint, file_hash=file_hash)


def shared_name(name: str) -> str:
    """What a model is called in a file that people pass on: a local one by its last name, without the way to it."""
    path = Path(name).expanduser()
    if name == source.POCKET or not path.exists():
        return name
    return loras.run_name(path) or path.resolve().name


def lora_used(proof: Proof) -> LoraUsed:
    return LoraUsed(
        name=loras.shown_name(proof.file.path),
        sha256=proof.sha256,
        weight=proof.file.weight,
        matched=proof.matched,
        unused=proof.unused,
        change=proof.change,
        share=proof.share,
        prediction=proof.prediction,
    )


def device_name(device: torch.device) -> str:
    """The kind of machine that pictures are bit-equal on: the GPU's name, or the CPU's vector instructions."""
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
