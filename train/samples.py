"""When previews are drawn and where they lie. How a picture is drawn is infer's business: the entry hands it down.

previews/STEP/ holds a picture for each prompt and seed, strip.png with the base beside the tuned network, and
preview.json. The training does not notice: modes, gradients and generators are afterwards as they were.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data import rng
from data.atomic_io import atomic_folder
from data.errors import InputError
from train import device
from train.config import POCKET, PreviewOptions
from train.device import release_memory
from train.metrics import MetricsLogger
from train.model import BaseModel
from train.run_folder import Run

if TYPE_CHECKING:
    from train.trainer import Job

STRIP_FILE, PREVIEW_FILE = "strip.png", "preview.json"


@dataclass(frozen=True)
class PreviewImage:
    """One picture to draw, always the same: it depends on nothing but its prompt and its seed."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class PreviewRequest:
    """What a drawing function is asked for.

    unet: the network that is trained, used in place; None: the base's own, loaded from its file.
    weights: names the weights that draw, unlike any others. precision: in words, for the pictures' metadata.
    folder: an empty folder to write PNGs into. beside: the folder of the base's pictures, for the strip.
    """

    model: BaseModel
    unet: Any
    weights: str
    precision: str
    device: torch.device
    questions: Sequence[PreviewImage]
    steps: int
    guidance: float
    size: int
    folder: Path
    beside: Path | None


GeneratePreviews = Callable[[PreviewRequest], list[str]]  # returns what a person should be told


@dataclass(frozen=True)
class PreviewSampler:
    """Draws the previews of one run. draw: None on every process but the first, and where nothing can draw."""

    options: PreviewOptions
    validated_every: int
    questions: Sequence[PreviewImage]
    folder: Path
    model: BaseModel
    size: int
    identity: str
    precision: str
    device: torch.device
    draw: GeneratePreviews | None

    def due(self, step: int, *, last: bool) -> bool:
        """Whether step's previews are wanted, the same on every process. Those of step 0 are the base's."""
        every = self.options.interval(self.validated_every)
        return every > 0 and bool(self.questions) and (step % every == 0 or last)

    def take(self, unet: Any, step: int, report: MetricsLogger) -> None:
        """Draw what is not there yet. A failure is said, and the training goes on."""
        if self.draw is None or self.is_there(step):
            return
        try:
            for path in [path for pattern in (".*.part", ".*.old") for path in self.folder.glob(pattern)]:
                shutil.rmtree(path)
            if step and not self.is_there(0):  # previews were switched on, or their prompts changed, in between
                self.paint(self.draw, None, 0, report)
            self.paint(self.draw, unet, step, report)
        except Exception as error:  # whatever it is, hours of training are worth more than a picture
            report.say(f"step {step}: no previews ({error_line(error)}); the training goes on")
            return
        report.picture("previews", step, self.place(step) / STRIP_FILE)

    def paint(self, draw: GeneratePreviews, unet: Any, step: int, report: MetricsLogger) -> None:
        """One folder of previews, whole or not at all."""
        with atomic_folder(self.place(step)) as folder, isolated_evaluation(unet, self.device):
            asked = PreviewRequest(
                model=self.model,
                unet=unet,
                weights=f"{self.identity} at step {step}" if step else "",
                precision=self.precision,
                device=self.device,
                questions=self.questions,
                steps=self.options.steps,
                guidance=self.options.guidance,
                size=self.size,
                folder=folder,
                beside=self.place(0) if step else None,
            )
            for remark in draw(asked):
                report.say(f"step {step}: previews: {remark}")
            (folder / PREVIEW_FILE).write_text(self.facts(step), encoding="utf-8")

    def place(self, step: int) -> Path:
        return self.folder / f"{step:06d}"

    def facts(self, step: int) -> str:
        """preview.json: what the pictures follow from."""
        asked = {"step": step, "steps": self.options.steps, "guidance": self.options.guidance, "size": self.size}
        return json.dumps(asked | {"pictures": [asdict(question) for question in self.questions]}, indent=1) + "\n"

    def is_there(self, step: int) -> bool:
        """Whether a step's previews were drawn, of these prompts and in this way."""
        try:
            return (self.place(step) / PREVIEW_FILE).read_text(encoding="utf-8") == self.facts(step)
        except OSError:
            return False


def preview_images(prompts: Sequence[str], options: PreviewOptions) -> list[PreviewImage]:
    """The pictures to draw: `count` of each prompt, with seeds that are alike for all prompts."""
    texts = dict.fromkeys(options.prompts or prompts)
    return [PreviewImage(text, options.seed + number) for text in texts for number in range(options.count)]


@contextmanager
def isolated_evaluation(unet: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients, and afterwards everything as it was: each module's mode, the generators."""
    modes = [(module, module.training) for module in unet.modules()] if unet is not None else []
    devices = [device] if device.type == "cuda" else []
    release_memory()
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, was_training in modes:
                module.training = was_training
            release_memory()  # the networks that were loaded for drawing go now, not some time
            if device.type == "cuda":
                torch.cuda.empty_cache()


def error_line(error: Exception) -> str:
    """An error on one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0] if isinstance(error, InputError) else f"{type(error).__name__}: {text.splitlines()[0]}"


FEW_CAPTIONS = 4  # pictures of the data's own that are previewed, where no prompts are given
POCKET_PROMPTS = ("a water type fridge", "a fire type fridge")  # things the sample set does not show in its style


def build_preview_sampler(job: Job, found: Run) -> PreviewSampler:
    """The previews of a run; the first process draws them."""
    config, accelerator = job.config, job.accelerator
    return PreviewSampler(
        options=config.previews,
        validated_every=config.validation.every,
        questions=preview_images(preview_prompts(job), config.previews),
        folder=found.path / "previews",
        model=job.model,
        size=job.collection.square.width,
        identity=job.identity,
        precision=device.describe_precision(accelerator),
        device=accelerator.device,
        draw=job.draw if accelerator.is_main_process else None,
    )


def preview_prompts(job: Job) -> list[str]:
    """Captions of the first pictures that validation looks at, and for the sample set things that it does not show."""
    pictures = job.collection.held_out or job.collection.train
    order = sorted(pictures, key=lambda sample: rng.seed_for(job.config.seed, "validation", sample.sha256))
    captions = dict.fromkeys(
        text for sample in order for text in job.collection.prompts[sample.annotation.file_name][:1]
    )
    own = POCKET_PROMPTS if job.config.data[0].path == POCKET else ()
    return [*list(captions)[: FEW_CAPTIONS - len(own)], *own]
