"""What a run's previews show, and who draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data import seeds
from train import machine
from train.folders import POCKET
from train.previews import Easel, questions_of
from train.run_folder import Run

if TYPE_CHECKING:
    from train.job import Job

FEW_CAPTIONS = 4  # pictures of the data's own that are previewed, where no prompts are given
POCKET_PROMPTS = ("a water type fridge", "a fire type fridge")  # things the sample set does not show in its style


def easel_of(job: Job, found: Run) -> Easel:
    """The previews of a run; the first process draws them."""
    config, accelerator = job.config, job.accelerator
    return Easel(
        options=config.previews,
        validated_every=config.validation.every,
        questions=questions_of(preview_prompts(job), config.previews),
        folder=found.path / "previews",
        model=job.model,
        size=job.collection.square.width,
        identity=job.identity,
        precision=machine.precision(accelerator),
        device=accelerator.device,
        draw=job.draw if accelerator.is_main_process else None,
    )


def preview_prompts(job: Job) -> list[str]:
    """Captions of the first pictures that validation looks at, and for the sample set things that it does not show."""
    pictures = job.collection.held_out or job.collection.train
    order = sorted(pictures, key=lambda sample: seeds.seed_for(job.config.seed, "validation", sample.sha256))
    captions = dict.fromkeys(
        text for sample in order for text in job.collection.prompts[sample.annotation.file_name][:1]
    )
    own = POCKET_PROMPTS if job.config.data[0].path == POCKET else ()
    return [*list(captions)[: FEW_CAPTIONS - len(own)], *own]
