"""What is evaluated: a finished run, its base, and the images that it was and was not trained on."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.errors import InputError
from data.images import open_image, resize_and_crop
from data.schema import Sample
from infer.comparison.weights import TUNED, Weights, WeightsFinder, full_run_name
from infer.config import CompareOptions, EvaluateOptions
from infer.resolve_model import POCKET, is_run
from train import run_folder
from train.config import Config
from train.exporters.run_export import load_run_config
from train.model import BaseModel, load_model
from train.run_folder import Run
from train.training_set import TrainingSet, keep_split, load_training_set

MIN_HELD_OUT = 5


@dataclass(frozen=True)
class TargetRun:
    """model: the base, whose networks load when they are used. message: which weights were chosen."""

    run: Run
    config: Config
    message: str
    base: Weights
    tuned: Weights
    model: BaseModel
    images: TrainingSet

    @property
    def is_pocket(self) -> bool:
        return self.base.model == POCKET

    @property
    def size(self) -> int:
        """Pixels a side of the training images, and of the generated ones."""
        return self.config.pictures.size or self.model.sample_size

    def image(self, sample: Sample) -> Image.Image:
        """As it was trained on, without buckets: the center square."""
        return resize_and_crop(open_image(sample.path), self.size, self.size)

    def caption(self, sample: Sample) -> str:
        return self.images.prompts[sample.annotation.file_name][0]


def find_target(options: EvaluateOptions) -> TargetRun:
    """Raises InputError: no run, unfinished, nothing tuned, or its images changed."""
    folder = find_folder(options)
    finder = WeightsFinder(CompareOptions(model=str(folder), runs=options.runs))
    run = Run(folder)
    config = load_run_config(run)
    base, tuned = finder.base(), finder.of_model(TUNED)
    model = load_model(base.model, tokenizer=base.tokenizer)
    images = load_training_set(config, model)
    images = keep_split(images, run.facts("data.json"), model, several=config.pictures.buckets)
    check_images(run, images)
    return TargetRun(run, config, finder.chosen.description, base, tuned, model, images)


def find_folder(options: EvaluateOptions) -> Path:
    """The run's folder, by its name or number; default: the newest finished run's."""
    if options.run is None:
        newest = run_folder.newest_finished(options.runs)
        if newest is None:
            fix = "Make one: python train/finetune.py, or name a run's folder."
            raise InputError(f"there is no finished run in {options.runs}/", where="RUN", fix=fix)
        return newest
    folder = Path(full_run_name(str(options.run)) or "")
    if not is_run(folder):
        fix = "Name a folder that train/finetune.py made, such as runs/0001-lora-r16."
        raise InputError("not a run's folder", where=folder, fix=fix)
    return folder


def check_images(run: Run, images: TrainingSet) -> None:
    """Raise InputError if the run had other images, or too few were held out."""
    facts = run.facts("data.json")
    for side, samples in (("train", images.train), ("held_out", images.held_out)):
        changed = set(facts.get(side, {}).values()) ^ {sample.sha256 for sample in samples}
        if changed:
            what = f"{len(changed)} of the {side.replace('_', '-')} images are not those of the run"
            raise InputError(what, where=run.path / "data.json", fix="Restore the old images.")
    if len(images.held_out) < MIN_HELD_OUT:
        raise InputError(
            f"{len(images.held_out)} held-out images: too few to know what similarity is chance",
            where=run.path, allowed=f"{MIN_HELD_OUT} or more", fix="Train with --pictures.held-out 0.1.",
        )  # fmt: skip
