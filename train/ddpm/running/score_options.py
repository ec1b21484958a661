"""What score.py can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from train.ddpm.running.run_options import RunOptions


class ScoreOptions(RunOptions):
    """Measure a trained network."""

    count: int = Field(default=400, gt=1)
    """pictures drawn for the distances and the classifier; the same number of real ones is compared with them"""
    features: Literal["auto", "classifier", "pixels", "descriptors", "clip", "dinov2"] = "auto"
    """what distances are measured in; auto: a classifier of the set's own classes, descriptors where it has none"""
    features_folder: Path | None = None
    """folder of the model behind clip or dinov2"""
    bits: int = Field(default=16, ge=0)
    """held-out pictures whose bits per dimension are measured, with every timestep; 0: none"""
    variance: str | None = None
    """variance of the reverse steps in the bound; default: the one trained with"""
    k: int = Field(default=3, gt=0)
    """nearest neighbours of precision and recall"""
    batch_size: int = Field(default=128, gt=0)
    """pictures drawn at once"""
    out: Path | None = None
    """folder of score.html and score.json; default: RUN/score"""
