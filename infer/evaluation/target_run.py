"""What is evaluated: a finished run, what it was tuned from, and the pictures that it was and was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.errors import InputError
from data.images import open_image, resize_and_crop
from data.schema import Sample
from infer import resolve_model
from infer.comparison.config import CompareOptions
from infer.comparison.weights import TUNED, Weights, WeightsFinder, full_run_name
from infer.evaluation.config import EvaluateOptions
from train import run_folder, training_set
from train.config import Config
from train.exporters.reexport import load_run_config
from train.model import BaseModel, load_model
from train.run_folder import Run
from train.training_set import TrainingSet

LEAST_HELD_OUT = 5


@dataclass(frozen=True)
class Subject:
    """A run, its two sets of weights and its pictures. model: the base, whose networks load when they are used."""

    run: Run
    config: Config
    said: str
    base: Weights
    tuned: Weights
    model: BaseModel
    collection: TrainingSet

    @property
    def is_pocket(self) -> bool:
        return self.base.model == resolve_model.POCKET

    @property
    def size(self) -> int:
        """Pixels a side of what it was trained on, and of what is drawn."""
        return self.config.pictures.size or self.model.sample_size

    def picture(self, sample: Sample) -> Image.Image:
        """As it was trained on, but for buckets: the centre square at the size that is drawn."""
        return resize_and_crop(open_image(sample.path), self.size, self.size)

    def caption(self, sample: Sample) -> str:
        return self.collection.prompts[sample.annotation.file_name][0]


def find(asked: EvaluateOptions) -> Subject:
    """The run that the options mean. Raises InputError: none, unfinished, nothing tuned, other pictures than it had."""
    folder = folder_of(asked)
    finder = WeightsFinder(CompareOptions(model=str(folder), runs=asked.runs))
    found = Run(folder)
    config = load_run_config(found)
    base, tuned = finder.base(), finder.of_model(TUNED)
    model = load_model(base.model, tokenizer=base.tokenizer)
    collection = training_set.load_training_set(config, model)
    refuse_others(found, collection)
    return Subject(found, config, finder.chosen.said, base, tuned, model, collection)


def folder_of(asked: EvaluateOptions) -> Path:
    """The folder named, in short or whole; else the newest finished run's."""
    if asked.run is None:
        newest = run_folder.newest_finished(asked.runs)
        if newest is None:
            fix = "Make one: python train/finetune.py, or name a run's folder."
            raise InputError(f"there is no finished run in {asked.runs}/", where="RUN", fix=fix)
        return newest
    folder = Path(full_run_name(str(asked.run)) or "")
    if not resolve_model.is_run(folder):
        fix = "Name a folder that train/finetune.py made, such as runs/0001-lora-r16."
        raise InputError("not a run's folder", where=folder, fix=fix)
    return folder


def refuse_others(run: Run, collection: TrainingSet) -> None:
    """Raise InputError where the folder holds other pictures than the run had, or too few were held out."""
    facts = run.facts("data.json")
    sides = {"train": collection.train, "held_out": collection.held_out}
    for side, samples in sides.items():
        before, now = set(facts.get(side, {}).values()), {sample.sha256 for sample in samples}
        if before != now:
            what = f"{len(before ^ now)} of the {side.replace('_', '-')} pictures are not those that the run had"
            fix = "Bring the old pictures back: likeness to others says nothing about this run."
            raise InputError(what, where=run.path / "data.json", fix=fix)
    if len(collection.held_out) < LEAST_HELD_OUT:
        raise InputError(
            f"{len(collection.held_out)} held-out pictures: nothing says what chance likeness is",
            where=run.path, allowed=f"{LEAST_HELD_OUT} or more", fix="Train with --pictures.held-out 0.1.",
        )  # fmt: skip
