"""Pictures as features: weight-free descriptors, content, and one space with texts; all kept by content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data import features
from data.errors import InputError
from data.features import Clip, Dinov2, Extractor, ImageSource, StyleDescriptors
from infer.comparison.measures import POCKET_SCORER
from infer.evaluation.config import EvaluateOptions
from infer.evaluation.samples import Seen
from infer.evaluation.target_run import Subject

TEXTS = 64  # encoded at a time


@dataclass(frozen=True)
class Eyes:
    """The extractors of a report. content is joint where no other encoder was named."""

    style: Extractor
    content: Extractor
    joint: Clip

    @property
    def extractors(self) -> dict[str, Extractor]:
        return {"style": self.style, "content": self.content, "joint": self.joint}

    @property
    def facts(self) -> dict[str, str]:
        """Names and versions: features of two versions never meet."""
        return {side: f"{each.name} {each.version}" for side, each in self.extractors.items()}

    def seen(self, pictures: Sequence[ImageSource]) -> Seen:
        """Of files or pictures, row for row."""
        style, joint = features.extract_features(self.style, pictures), features.extract_features(self.joint, pictures)
        content = joint if self.content is self.joint else features.extract_features(self.content, pictures)
        return Seen(*(side.reshape(len(pictures), -1) for side in (style, content, joint)))

    def texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(k, e), in the space of `joint`."""
        parts = [self.joint.encode_text(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        return np.concatenate(parts).astype(np.float64)

    def cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the scorer reads: what they end with is not judged."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.joint.folder, local_files_only=True)
        return sum(len(ids) > tokenizer.model_max_length for ids in tokenizer(list(texts), verbose=False).input_ids)


def eyes(asked: EvaluateOptions, subject: Subject) -> Eyes:
    """The extractors that the options mean. Raises InputError for a world that the embedded scorer does not know."""
    if asked.scorer is None and not subject.is_pocket:
        raise InputError(
            f"the embedded scorer has never seen what {subject.base.model} draws", where="--scorer",
            allowed="the folder of a CLIP model, such as openai/clip-vit-base-patch32's",
        )  # fmt: skip
    joint = Clip(asked.scorer or POCKET_SCORER)
    content = Dinov2(asked.encoder) if asked.encoder else joint
    for extractor in (joint, content):
        _ = extractor.version  # says what is wrong with the folder before anything is drawn
    return Eyes(StyleDescriptors(), content, joint)


def conditions_sd(folder: Path) -> bool:
    """Whether a scorer is CLIP L/14, by which SD v1 is conditioned: it would judge its own work."""
    try:
        seen = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vision_config", {})
    except (OSError, ValueError):
        return False
    return (seen.get("hidden_size"), seen.get("patch_size")) == (1024, 14)
