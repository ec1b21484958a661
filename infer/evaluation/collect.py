"""From prompts to evidence: generate what is missing, extract features, and sort their rows into the questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from data.duplicates import near_duplicates
from data.metrics.adherence import directional_similarity
from data.metrics.memorization import nearest_neighbours
from data.schema import Sample
from infer.comparison.grid import CellRequest
from infer.comparison.image_cache import CachedImage, ImageCache
from infer.evaluation import denoising_loss, probes, samples
from infer.evaluation.config import Counts
from infer.evaluation.features import Extractors
from infer.evaluation.prompts import EvalPrompt, EvalPrompts
from infer.evaluation.samples import Evidence, Features, Pairs, ProbeLabels, PromptedPairs
from infer.evaluation.target_run import TargetRun

BASE, TUNED = "base", "tuned"
Key = tuple[str, EvalPrompt]  # base or tuned, and the prompt


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
            losses=denoising_loss.measure_losses(self.target, self.cache, self.counts, self.seed),
        )

    def _prompted(self, prompts: Sequence[EvalPrompt], candidates: Sequence[str]) -> PromptedPairs:
        return PromptedPairs(self.pairs(prompts), np.array(candidates), self.extractors.text_features(candidates))

    def _near_duplicates(self) -> samples.NearDuplicates:
        """Of training images, among held-out images and those of the tuned model."""
        train, held_out = self.target.images.train, self.target.images.held_out
        prompts = (*self.prompts.captions, *self.prompts.plain)
        files = [self.generated[TUNED, each].path for each in prompts]
        names = [*(sample.annotation.file_name for sample in (*train, *held_out)), *(each.text for each in prompts)]
        found: list[list[tuple[str, str]]] = [[], []]
        for pair in near_duplicates([*train, *held_out, *files]):
            if pair.first < len(train) <= pair.second:
                found[pair.second >= len(train) + len(held_out)].append((names[pair.second], names[pair.first]))
        return samples.NearDuplicates(*found)

    def _type_grid(self) -> samples.TypeGrid | None:
        """None if no types are known."""
        prompts = self.prompts.grid
        types = [sample.annotation.type for sample in self.target.images.train]
        probe = probes.train_type_probe(self.train, types) if prompts else None
        if probe is None:
            return None
        asked_types, asked_objects = (np.array([each.labels[place] for each in prompts]) for place in (0, 1))
        names = list(dict.fromkeys([*asked_objects.tolist(), *self.prompts.objects]))
        texts = self.extractors.text_features(probes.object_texts(names))
        held_out_types = [sample.annotation.type for sample in self.target.images.held_out]
        accuracies = [probes.type_accuracy(probe, self.held_out, held_out_types)]
        accuracies += [probes.object_accuracy(texts, names)] if self.target.is_pocket else []
        base, tuned = (self._probe_labels(side, probe, texts, names) for side in (BASE, TUNED))
        return samples.TypeGrid(asked_types, asked_objects, base, tuned, tuple(filter(None, accuracies)))

    def _probe_labels(self, side: str, probe: probes.TypeProbe, texts: np.ndarray, names: Sequence[str]) -> ProbeLabels:
        prompts, anchors = self.prompts.grid, self.prompts.anchors
        after, before = self.features_of(side, prompts), self.features_of(side, anchors)
        sides = [self.extractors.text_features([each.text for each in some]) for some in (anchors, prompts)]
        direction = directional_similarity(before.joint, after.joint, *sides)
        return ProbeLabels(probe.predict(after), probes.predict_objects(after.joint, texts, names), direction)

    def _name_mixes(self) -> samples.NameMixes | None:
        """None if no names are known."""
        prompts = self.prompts.mixes
        if not prompts:
            return None
        owners = [sample.annotation.name for sample in self.target.images.train]
        base, tuned = (
            probes.name_similarity(self.features_of(side, prompts), self.train, owners) for side in (BASE, TUNED)
        )
        column = {name: place for place, name in enumerate(base[1])}
        pairs = np.array([[column[name] for name in each.labels] for each in prompts])
        return samples.NameMixes(np.array([each.text for each in prompts]), pairs, base[0], tuned[0])
