"""The worker: runs jobs through generate.py's own code, with models that stay loaded between jobs.

Previews of unfinished images are decoded where that is cheap, otherwise a linear approximation from the latents.
"""

import io
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from data import images, sample_set
from data.errors import InputError
from data.shapes import Latents
from infer import generation, output, pipeline, prompts, resolve_model
from infer.config import RANDOM_SEED, GenerateOptions, LoraFile, StudioOptions
from infer.generation import GenerationPass, ProcessGroup
from infer.output import SavedImage
from infer.prompts import ImageRequest
from infer.web.queue import Job, JobImage
from infer.web.service import LOADING, MAX_IMAGES, ModelList, check_size
from train.model import BaseModel, load_model

MAX_MODELS = 2  # kept in memory: a tuned one and another
INTERVAL = 0.3  # seconds between two previews of one image
SMALL_VAE = 5_000_000  # weights; decoding a smaller one is cheap on a CPU too
FIT_IMAGES = 4  # images that the linear approximation is fitted to
PREVIEW_SIDE = 384  # pixels; small enough to be sent several times a second
Preview = Callable[[Latents], Image.Image]  # latents (1, C, h, w) -> image


class Worker:
    """Generates the images of one job at a time."""

    def __init__(self, options: StudioOptions, models: ModelList) -> None:
        self.device = pipeline.choose_device(options.device)
        self.dtype = pipeline.choose_dtype(options.dtype, self.device)
        self.runs = models.runs
        self.default = GenerateOptions(model=models.model(""), tokenizer=options.tokenizer)
        self.models: OrderedDict[tuple[object, ...], BaseModel] = OrderedDict()
        self.previews: dict[str, Preview] = {}
        self.lock = threading.Lock()

    def generate(self, job: Job) -> None:
        """Generate a job's images into a folder of their own. Raises InputError, and JobStopped when it is stopped."""
        with self.lock:
            self._generate(job)

    def _generate(self, job: Job) -> None:
        options = job.options
        if options.seed == RANDOM_SEED:
            options = options.model_copy(update={"seed": prompts.random_seed()})
        chosen = resolve_model.resolve(options, self.runs)
        model = self._model(chosen.model, chosen.tokenizer, chosen.zero_terminal_snr)
        plan = self._plan(options, model, chosen.loras)
        job.notes, job.count = plan.notes, len(plan.requests)
        job.size, job.steps = (plan.settings.width, plan.settings.height), plan.settings.steps
        base = None
        if options.compare_base:
            base = self._model(chosen.base or chosen.model, chosen.tokenizer, use="base")
        with LOADING:
            pipe = pipeline.build_pipeline(model, plan.options.scheduler, self.device)
        job.total = plan.calls(pipe, plan.requests) * (1 if base is None else 2)
        progress = ProgressCallback(job, self._preview(pipe, model))
        job.raise_if_stopped()
        folder = output.open_output_folder(None, plan.identity(model, options.compare_base))
        passes = generation.make_passes(chosen, plan, folder, model, base)

        def on_step(batch: Sequence[ImageRequest], latents: torch.Tensor) -> None:
            progress(batch, latents)
            begun = [(each, done) for each in passes for done in list(each.saved.values())]
            job.images = [job_image(*one) for one in begun if one[1].path.exists()]

        try:
            generation.run_passes(plan, passes, folder, ProcessGroup(), None, on_step)
        finally:
            job.images = [job_image(each, done) for each in passes for done in each.finished]
            if any(image.loras for image in plan.requests):
                pipe.unload_lora_weights()

    def _plan(self, options: GenerateOptions, model: BaseModel, loras: Iterable[LoraFile]) -> generation.GenerationJob:
        """generate.py's plan, within the limits of a job. Raises InputError."""
        check_size(options.width or 1, options.height or 1, model.sample_size)
        expanded = prompts.requested_images(options.model_copy(update={"num_images": 1}))
        count = len(expanded) * options.num_images  # before that many are prepared
        if count > MAX_IMAGES:
            what, fix = f"the prompt expands to {count} images", "Request fewer, or use generate.py."
            raise InputError(what, where="--prompt", allowed=str(MAX_IMAGES), fix=fix)
        plan = generation.plan_job(options, model, self.device, tuple(loras))
        check_size(plan.settings.width, plan.settings.height, model.sample_size)
        return plan

    def _model(self, name: str, tokenizer: str | None, zero_terminal_snr: bool = False, use: str = "") -> BaseModel:
        """A model with its networks, loaded or cached. Raises InputError.

        use: models of different uses share no networks, because a LoRA changes those it is applied to.
        """
        key = (name, tokenizer, zero_terminal_snr, use)
        if key not in self.models:
            while len(self.models) >= MAX_MODELS:
                self.models.popitem(last=False)
                self.previews.clear()
            model = load_model(name, tokenizer=tokenizer, dtype=self.dtype)
            self.models[key] = replace(model, zero_terminal_snr=zero_terminal_snr)
        self.models.move_to_end(key)
        return self.models[key]

    def _preview(self, pipe: StableDiffusionPipeline, model: BaseModel) -> Preview:
        if model.name not in self.previews:
            self.previews[model.name] = choose_preview(pipe, model.sample_size)
        return self.previews[model.name]

    def check_default_model(self) -> None:
        """Raise InputError if the model of the command line does not exist."""
        chosen = resolve_model.resolve(self.default, self.runs)
        load_model(chosen.model, tokenizer=chosen.tokenizer)

    def warm_up(self) -> None:
        """Load the default model before the first job needs it. Its problems are reported again by that job."""
        with self.lock:
            if self.models:
                return
            try:
                chosen = resolve_model.resolve(self.default, self.runs)
                model = self._model(chosen.model, chosen.tokenizer, chosen.zero_terminal_snr)
                with LOADING:
                    pipe = pipeline.build_pipeline(model, None, self.device)
                settings = pipeline.SamplingSettings(1, 2.0, model.sample_size, model.sample_size)
                list(pipeline.generate_images(pipe, [ImageRequest(0, "an image", 0)], settings))  # the slow call
                self._preview(pipe, model)
                _ = model.fingerprint  # hashes the weights, once
            except InputError as error:
                print(f"warning: {error}")


def job_image(each: GenerationPass, done: SavedImage) -> JobImage:
    recipe = done.metadata
    return JobImage(done.path, recipe.unstyled or recipe.prompt, recipe.seed, each.name == "base", recipe.verdict)


# ---- previews


def choose_preview(pipe: StableDiffusionPipeline, side: int) -> Preview:
    """Decode on an accelerator or with a small VAE; elsewhere decoding would take as long as several steps."""
    weights = sum(weight.numel() for weight in pipe.vae.parameters())
    if pipe.device.type != "cpu" or weights < SMALL_VAE:
        return DecodedPreview(pipe)
    return LinearPreview(pipe, min(side, 256))


class DecodedPreview:
    """Decodes the latents with the VAE."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.vae = pipe.vae

    @torch.no_grad()
    def __call__(self, latents: Latents) -> Image.Image:
        decoded = self.vae.decode(normalize(latents) / self.vae.config.scaling_factor, return_dict=False)[0]
        return images.tensor_to_image(decoded[0].float().nan_to_num().cpu())


class LinearPreview:
    """An affine map from the latent at a position to the color there, fitted by least squares to a few images."""

    def __init__(self, pipe: StableDiffusionPipeline, side: int) -> None:
        self.map = fit_colors(*fit_samples(pipe, side))

    def __call__(self, latents: Latents) -> Image.Image:
        rows = normalize(latents).float().cpu()[0].permute(1, 2, 0)  # (h, w, C)
        return images.tensor_to_image((with_ones(rows) @ self.map).permute(2, 0, 1).nan_to_num())


def normalize(latents: Latents) -> Latents:
    """Scale down to a standard deviation of at most 1: some schedulers start with much stronger noise."""
    return latents / latents.float().std().clamp(min=1.0).to(latents.dtype)


def with_ones(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, torch.ones(*rows.shape[:-1], 1)], dim=-1)


def fit_colors(latents: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(C + 1, 3): the affine map from latents (n, C) to colors (n, 3)."""
    return torch.linalg.lstsq(with_ones(latents), colors).solution


@torch.no_grad()
def fit_samples(pipe: StableDiffusionPipeline, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (n, C) of some images and the mean colors (n, 3), in [-1, 1], of the pixels at each position."""
    pixels = torch.stack([images.image_to_tensor(sample_set.sample_image(index, side)) for index in range(FIT_IMAGES)])
    mean = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist.mean.float().cpu()
    latents = mean * pipe.vae.config.scaling_factor
    small = torch.nn.functional.interpolate(pixels, size=latents.shape[2:], mode="area")
    return latents.permute(0, 2, 3, 1).flatten(0, 2), small.permute(0, 2, 3, 1).flatten(0, 2)


class ProgressCallback:
    """Called after every step: counts U-Net calls, keeps a preview of each image, and ends a stopped job."""

    def __init__(self, job: Job, preview: Preview) -> None:
        self.job, self.preview = job, preview
        self.lock = threading.Lock()
        self.last: dict[int, float] = {}

    def __call__(self, batch: Sequence[ImageRequest], latents: Latents) -> None:
        """latents: (B, C, h, w). Raises JobStopped."""
        self.job.raise_if_stopped()
        with self.lock:
            self.job.calls += len(batch)
        now = time.monotonic()
        for image, row in zip(batch, latents.split(1), strict=False):
            if now - self.last.get(image.index, -math.inf) >= INTERVAL:
                self.last[image.index] = now
                self.job.previews[image.index] = to_webp(self.preview(row))


def to_webp(image: Image.Image) -> bytes:
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70, method=0)
    return buffer.getvalue()
