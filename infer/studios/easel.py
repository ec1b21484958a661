"""Where orders are drawn: generate.py's own path, with networks that stay loaded from one order to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from infer import drawing, outputs, pipeline, planning, prompts, source
from infer.config import RANDOM_SEED, GenerateOptions
from infer.drawing import Pass
from infer.pipeline import Watch
from infer.planning import Job
from infer.processes import Processes
from infer.prompts import Picture
from infer.studios import asking, looks
from infer.studios.desk import Done, Order
from infer.studios.looks import Look
from train import base_model
from train.base_model import BaseModel

KEPT = 2  # models in memory: a tuned one and another


class Easel:
    """Draws one order at a time, in one thread. device, dtype: as generate.py takes them. Raises InputError."""

    def __init__(self, device: str | None = None, dtype: str | None = None, runs: Path = source.RUNS) -> None:
        self.device = pipeline.choose_device(device)
        self.dtype = pipeline.choose_dtype(dtype, self.device)
        self.runs = runs
        self.models: OrderedDict[tuple[object, ...], BaseModel] = OrderedDict()
        self.looks: dict[str, Look] = {}

    def draw(self, order: Order) -> None:
        """All of an order, into a folder of its own. Raises InputError, and Withdrawn when it is stopped."""
        options = with_seed(order.options)
        chosen = source.choose(options, self.runs)
        model = self.model(chosen.model, chosen.tokenizer, chosen.zero_terminal_snr)
        job = self.plan(options, model, chosen.loras)
        order.notes, order.count = job.notes, len(job.pictures)
        order.size = (job.settings.width, job.settings.height)
        base = None
        if options.compare_base:
            base = self.model(chosen.base or chosen.model, chosen.tokenizer, False, "base")
        pipe = pipeline.build(model, job.scheduler, self.device)
        order.total = job.calls(pipe, job.pictures) * (1 if base is None else 2)
        watch = looks.Watching(order, self.look(pipe, model))
        order.check()
        folder = outputs.folder_for(None, job.identity(model, options.compare_base, False))  # from here on it is drawn
        passes = drawing.passes_of(chosen, job, folder, model, base)
        try:
            self.carry_out(job, passes, folder, order, watch)
        finally:
            order.done = [done for each in passes for done in finished(each)]
            if job_wears(job.pictures):
                pipe.unload_lora_weights()  # the next order finds the networks as they were

    def plan(self, options: GenerateOptions, model: BaseModel, loras: Sequence[drawing.loras.LoraFile]) -> Job:
        """As generate.py plans it, within what a stranger may ask for. Raises InputError."""
        asking.check_size(options.width or 1, options.height or 1, model.sample_size)
        texts = planning.asked(options.model_copy(update={"num_images": 1}))
        asking.check_count(len(texts) * options.num_images)  # before so many are prepared
        job = planning.plan(options, model, self.device, tuple(loras))
        asking.check_size(job.settings.width, job.settings.height, model.sample_size)
        return job

    def carry_out(self, job: Job, passes: Sequence[Pass], folder: Path, order: Order, watch: Watch) -> None:
        """Draw, and tell the order of each picture as it lands on the disk."""

        def looked(pictures: Sequence[Picture], latents: torch.Tensor) -> None:
            watch(pictures, latents)
            order.done = [done for each in passes for done in landed(each)]

        drawing.carry_out(job, passes, folder, Processes(), None, looked)

    def model(self, name: str, tokenizer: str | None, rescaled: bool, use: str = "") -> BaseModel:
        """A model with its networks, loaded or as the last order left them. Raises InputError.

        use: models of different uses share no network, because a LoRA changes those it is laid over.
        """
        key = (name, tokenizer, rescaled, use)
        if key not in self.models:
            while len(self.models) >= KEPT:
                self.models.popitem(last=False)
                self.looks.clear()
            found = base_model.load(name, tokenizer=tokenizer, dtype=self.dtype)
            self.models[key] = replace(found, zero_terminal_snr=rescaled)
        self.models.move_to_end(key)
        return self.models[key]

    def look(self, pipe: object, model: BaseModel) -> Look:
        """How previews of this model's pictures are made."""
        if model.name not in self.looks:
            self.looks[model.name] = looks.suited(pipe, model.sample_size)  # pyright: ignore[reportArgumentType]
        return self.looks[model.name]

    def warm(self, options: GenerateOptions) -> None:
        """Load what the first order will need, before it comes."""
        chosen = source.choose(options, self.runs)
        model = self.model(chosen.model, chosen.tokenizer, chosen.zero_terminal_snr)
        pipe = pipeline.build(model, None, self.device)
        settings = pipeline.Settings(1, 2.0, model.sample_size, model.sample_size)
        picture = Picture(0, "a picture", 0)
        for drawn in pipeline.draw(pipe, [picture], settings):  # the libraries' first call is the slow one
            assert drawn.picture is picture
        self.look(pipe, model)
        assert model.fingerprint


def with_seed(options: GenerateOptions) -> GenerateOptions:
    """With the seed that -1 stands for."""
    if options.seed != RANDOM_SEED:
        return options
    return options.model_copy(update={"seed": prompts.random_seed()})


def job_wears(pictures: Sequence[Picture]) -> bool:
    """Whether any of the pictures is drawn with a LoRA."""
    return any(picture.loras for picture in pictures)


def finished(each: Pass) -> list[Done]:
    """What is on the disk."""
    return [of(each, done) for done in each.finished]


def landed(each: Pass) -> list[Done]:
    """What this process has written so far."""
    return [of(each, done) for path, done in list(each.begun.items()) if path.exists()]


def of(each: Pass, done: outputs.Finished) -> Done:
    recipe = done.recipe
    prompt = recipe.unstyled or recipe.prompt
    return Done(done.path, prompt, recipe.seed, each.name == "base", recipe.verdict)
