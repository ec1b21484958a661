"""Image features: weight-free descriptors, content, and one space with texts; all cached by content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from data.errors import InputError
from data.features import Clip, Dinov2, Extractor, ImageSource, StyleDescriptors, extract_features
from infer.comparison.measures import POCKET_SCORER
from infer.evaluation.config import EvaluateOptions
from infer.evaluation.samples import Features
from infer.evaluation.target_run import TargetRun

TEXT_BATCH = 64


@dataclass(frozen=True)
class Extractors:
    """content is the same as joint unless another encoder was named."""

    style: Extractor
    content: Extractor
    joint: Clip

    @property
    def versions(self) -> dict[str, str]:
        """Features of two versions are never mixed."""
        return {side: f"{each.name} {each.version}" for side, each in vars(self).items()}

    def features(self, images: Sequence[ImageSource]) -> Features:
        """Of files or images, row for row."""
        found = {each.name: extract_features(each, images) for each in (self.style, self.content, self.joint)}
        rows = [found[each.name].reshape(len(images), -1) for each in (self.style, self.content, self.joint)]
        return Features(*rows)

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(k, e), in the space of `joint`."""
        starts = range(0, len(texts), TEXT_BATCH)
        parts = [self.joint.encode_text(texts[start : start + TEXT_BATCH]) for start in starts]
        return np.concatenate(parts).astype(np.float64)

    def truncated(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the scorer reads."""
        tokenizer = AutoTokenizer.from_pretrained(self.joint.folder, local_files_only=True)
        return sum(len(ids) > tokenizer.model_max_length for ids in tokenizer(list(texts), verbose=False).input_ids)

    @property
    def conditions_sd(self) -> bool:
        """Whether the scorer is CLIP L/14, which conditions SD v1: it would judge its own work."""
        try:
            text = (self.joint.folder / "config.json").read_text(encoding="utf-8")
            config = json.loads(text).get("vision_config", {})
        except (OSError, ValueError):
            return False
        return (config.get("hidden_size"), config.get("patch_size")) == (1024, 14)


def load_extractors(options: EvaluateOptions, target: TargetRun) -> Extractors:
    """Raises InputError for a base model that the embedded scorer does not know."""
    if options.scorer is None and not target.is_pocket:
        raise InputError(
            f"the embedded scorer does not know what {target.base.model} generates", where="--scorer",
            allowed="the folder of a CLIP model, such as openai/clip-vit-base-patch32's",
        )  # fmt: skip
    joint = Clip(options.scorer or POCKET_SCORER)
    content = Dinov2(options.encoder) if options.encoder else joint
    for extractor in (joint, content):
        _ = extractor.version  # reports problems of the folder before anything is generated
    return Extractors(StyleDescriptors(), content, joint)
