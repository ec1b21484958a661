"""Which files a run leaves. No part of a run's identity: the same run may be exported again, train/export.py."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data.options import Options, positional


class Export(Options):
    """What a finished run leaves beside its default files (LoRA: two LoRA files; full: a diffusers folder)."""

    merge: bool = False
    """LoRA: also leave a whole model in diffusers layout, export/model, with the LoRA merged into its weights"""
    single_file: bool = False
    """also leave the whole (for a LoRA: the merged) model as one file, export/model.safetensors, as A1111 reads it"""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """of the exported weights; fp32 leaves frozen parts as they are in the base's files, whatever their precision"""


class Again(Export):
    """What train/export.py is told."""

    run: Path = positional()
    """the run's folder, e.g. runs/0001-lora-r16"""
    checkpoint: str | None = None
    """the weights of this optimiser step, or of the best one (best); default: those that the run exported"""
    output: Path | None = None
    """folder for the files; default: the run's export, in a folder of their own if step or precision are others"""
    model: str | None = None
    """where the base model lies now, if not where the run's config.yaml says"""
