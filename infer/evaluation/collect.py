"""From prompts to evidence: generate what is missing, extract features, and sort their rows into the questions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoTokenizer

from data.duplicates import near_duplicates
from data.errors import InputError
from data.features import Clip, Dinov2, Extractor, ImageSource, StyleDescriptors, extract_features
from data.metrics.adherence import directional_similarity
from data.metrics.memorization import nearest_neighbours
from data.schema import Sample
from infer.comparison.grid import CellRequest
from infer.comparison.image_cache import CachedImage, ImageCache
from infer.config import POCKET_SCORER, EvaluateOptions
from infer.evaluation import composition, memorization
from infer.evaluation.evidence import (
    Evidence,
    Features,
    NameMixes,
    NearDuplicates,
    Pairs,
    ProbeLabels,
    PromptedPairs,
    TypeGrid,
)
from infer.evaluation.prompts import Counts, EvalPrompt, EvalPrompts
from infer.evaluation.target_run import TargetRun

TEXT_BATCH = 64
BASE, TUNED = "base", "tuned"
Key = tuple[str, EvalPrompt]  # base or tuned, and the prompt


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


def build_requests(
    target: TargetRun, prompts: EvalPrompts, counts: Counts, guidance_scale: float
) -> dict[Key, CellRequest]:
    """Every image, once."""
    both = (*prompts.paired, *(each for each, _ in prompts.figures))
    keys = [(BASE, each) for each in both]
    keys += [(TUNED, each) for each in (*both, *prompts.without, *prompts.trigger)]
    weights = {BASE: target.base, TUNED: target.tuned}
    return {
        (side, each): CellRequest(
            weights[side], each.prompt, each.seed, counts.steps, guidance_scale, width=target.size, height=target.size
        )
        for side, each in dict.fromkeys(keys)
    }


@dataclass(frozen=True)
class Collection:
    """All images with their features, and the evidence they make. generated: by model and prompt."""

    target: TargetRun
    prompts: EvalPrompts
    generated: Mapping[Key, CachedImage]
    extractors: Extractors
    counts: Counts
    cache: ImageCache
    seed: int

    @cached_property
    def references(self) -> list[Image.Image]:
        """The training images as they were trained on."""
        return [self.target.image(sample) for sample in self.target.images.train]

    @cached_property
    def train(self) -> Features:
        return self.extractors.features(self.references)

    @cached_property
    def held_out(self) -> Features:
        return self.extractors.features([self.target.image(sample) for sample in self.target.images.held_out])

    @cached_property
    def features(self) -> Features:
        """Of all generated images, in their order."""
        return self.extractors.features([cached.path for cached in self.generated.values()])

    @cached_property
    def rows(self) -> dict[Key, int]:
        return {key: row for row, key in enumerate(self.generated)}

    def features_of(self, side: str, prompts: Sequence[EvalPrompt]) -> Features:
        return self.features.take([self.rows[side, each] for each in prompts])

    def pairs(self, prompts: Sequence[EvalPrompt]) -> Pairs:
        texts = np.array([each.text for each in prompts])
        return Pairs(texts, self.features_of(BASE, prompts), self.features_of(TUNED, prompts))

    @cached_property
    def nearest(self) -> dict[Key, tuple[int, float]]:
        """The index of the training image that each generated one is most similar to, and the cosine."""
        cosines, places = nearest_neighbours(self.features.content, self.train.content)
        return {key: (int(places[row]), float(cosines[row])) for key, row in self.rows.items()}

    def nearest_sample(self, key: Key) -> Sample:
        return self.target.images.train[self.nearest[key][0]]

    @cached_property
    def evidence(self) -> Evidence:
        prompts = self.prompts
        without = np.array([each.text for each in prompts.without])
        trigger = Pairs(without, self.features_of(TUNED, prompts.without), self.features_of(TUNED, prompts.trigger))
        return Evidence(
            train=self.train,
            held_out=self.held_out,
            captions=self._prompted(prompts.captions, prompts.all_captions),
            plain=self._prompted(prompts.plain, prompts.all_plain),
            variety=self.pairs(prompts.variety),
            copies=self._near_duplicates(),
            trigger=trigger,
            grid=self._type_grid(),
            mixes=self._name_mixes(),
            losses=memorization.measure_losses(self.target, self.cache, self.counts, self.seed),
        )

    def _prompted(self, prompts: Sequence[EvalPrompt], candidates: Sequence[str]) -> PromptedPairs:
        return PromptedPairs(self.pairs(prompts), np.array(candidates), self.extractors.text_features(candidates))

    def _near_duplicates(self) -> NearDuplicates:
        """Of training images, among held-out images and those of the tuned model."""
        train, held_out = self.target.images.train, self.target.images.held_out
        prompts = (*self.prompts.captions, *self.prompts.plain)
        files = [self.generated[TUNED, each].path for each in prompts]
        names = [*(sample.annotation.file_name for sample in (*train, *held_out)), *(each.text for each in prompts)]
        found: list[list[tuple[str, str]]] = [[], []]
        for pair in near_duplicates([*train, *held_out, *files]):
            if pair.first < len(train) <= pair.second:
                found[pair.second >= len(train) + len(held_out)].append((names[pair.second], names[pair.first]))
        return NearDuplicates(*found)

    def _type_grid(self) -> TypeGrid | None:
        """None if no types are known."""
        prompts = self.prompts.grid
        types = [sample.annotation.type for sample in self.target.images.train]
        probe = composition.train_type_probe(self.train, types) if prompts else None
        if probe is None:
            return None
        asked_types, asked_objects = (np.array([each.labels[place] for each in prompts]) for place in (0, 1))
        names = list(dict.fromkeys([*asked_objects.tolist(), *self.prompts.objects]))
        texts = self.extractors.text_features(composition.object_texts(names))
        held_out_types = [sample.annotation.type for sample in self.target.images.held_out]
        accuracies = [composition.type_accuracy(probe, self.held_out, held_out_types)]
        accuracies += [composition.object_accuracy(texts, names)] if self.target.is_pocket else []
        base, tuned = (self._probe_labels(side, probe, texts, names) for side in (BASE, TUNED))
        return TypeGrid(asked_types, asked_objects, base, tuned, tuple(filter(None, accuracies)))

    def _probe_labels(
        self, side: str, probe: composition.TypeProbe, texts: np.ndarray, names: Sequence[str]
    ) -> ProbeLabels:
        prompts, anchors = self.prompts.grid, self.prompts.anchors
        after, before = self.features_of(side, prompts), self.features_of(side, anchors)
        sides = [self.extractors.text_features([each.text for each in some]) for some in (anchors, prompts)]
        direction = directional_similarity(before.joint, after.joint, *sides)
        return ProbeLabels(probe.predict(after), composition.predict_objects(after.joint, texts, names), direction)

    def _name_mixes(self) -> NameMixes | None:
        """None if no names are known."""
        prompts = self.prompts.mixes
        if not prompts:
            return None
        owners = [sample.annotation.name for sample in self.target.images.train]
        base, tuned = (
            composition.name_similarity(self.features_of(side, prompts), self.train, owners) for side in (BASE, TUNED)
        )
        column = {name: place for place, name in enumerate(base[1])}
        pairs = np.array([[column[name] for name in each.labels] for each in prompts])
        return NameMixes(np.array([each.text for each in prompts]), pairs, base[0], tuned[0])
