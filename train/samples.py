"""Preview images while a run trains: when and where. The generating function is infer's: the entry passes it down.

previews/STEP/ holds an image for each prompt and seed, strip.png with the base beside the tuned network, and
preview.json. The training does not notice: modes, gradients and generators are afterwards as they were.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.atomic_io import atomic_folder
from data.errors import InputError
from train.config import POCKET, Config
from train.device import release_memory
from train.metrics import MetricsLogger
from train.model import BaseModel
from train.training_set import TrainingSet, validation_order

STRIP_FILE, PREVIEW_FILE = "strip.png", "preview.json"


@dataclass(frozen=True)
class PreviewImage:
    """One image to generate, always the same: it depends only on its prompt and seed."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class PreviewRequest:
    """The argument of a generating function.

    unet: the network that is trained, used in place; None: the base's own, loaded from its file.
    weights: a name for these weights, unlike any others. precision: in words, for the images' metadata.
    folder: an empty folder to write PNGs into. beside: the folder of the base's images, for the strip.
    """

    model: BaseModel
    unet: Any
    weights: str
    precision: str
    device: torch.device
    questions: Sequence[PreviewImage]
    steps: int
    guidance: float | None  # None: what suits the model
    size: int
    folder: Path
    beside: Path | None


GeneratePreviews = Callable[[PreviewRequest], list[str]]  # returns remarks for the user


@dataclass(frozen=True)
class PreviewSampler:
    """Generates and saves the previews of one run. generate: None on every process but the first."""

    config: Config
    images: Sequence[PreviewImage]
    folder: Path
    model: BaseModel
    size: int
    identity: str
    precision: str
    device: torch.device
    generate: GeneratePreviews | None

    def due(self, step: int, *, last: bool) -> bool:
        """Whether this step has previews, the same on every process. Those of step 0 are the base's."""
        return step % preview_interval(self.config) == 0 or last

    def save(self, unet: Any, step: int, logger: MetricsLogger) -> None:
        """Generate what does not exist yet. A failure is reported, and the training continues."""
        if self.generate is None or self.exists(step):
            return
        try:
            for path in [path for pattern in (".*.part", ".*.old") for path in self.folder.glob(pattern)]:
                shutil.rmtree(path)
            if step and not self.exists(0):  # previews were switched on, or their prompts changed, in between
                self.write(None, 0, logger)
            self.write(unet, step, logger)
        except Exception as error:  # whatever it is, hours of training are worth more than an image
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
            logger.say(f"step {step}: no previews ({reason}); the training continues")
            return
        logger.log_image("previews", step, self.place(step) / STRIP_FILE)

    def write(self, unet: Any, step: int, logger: MetricsLogger) -> None:
        """One folder of previews, whole or not at all."""
        assert self.generate is not None
        with atomic_folder(self.place(step)) as folder, isolated_evaluation(unet, self.device):
            request = PreviewRequest(
                model=self.model,
                unet=unet,
                weights=f"{self.identity} at step {step}" if step else "",
                precision=self.precision,
                device=self.device,
                questions=self.images,
                steps=self.config.previews.steps,
                guidance=self.config.previews.guidance,
                size=self.size,
                folder=folder,
                beside=self.place(0) if step else None,
            )
            for remark in self.generate(request):
                logger.say(f"step {step}: previews: {remark}")
            (folder / PREVIEW_FILE).write_text(self.facts(step), encoding="utf-8")

    def place(self, step: int) -> Path:
        return self.folder / f"{step:06d}"

    def facts(self, step: int) -> str:
        """preview.json: what the images follow from."""
        options = self.config.previews
        settings = {"step": step, "steps": options.steps, "guidance": options.guidance, "size": self.size}
        return json.dumps(settings | {"pictures": [asdict(image) for image in self.images]}, indent=1) + "\n"

    def exists(self, step: int) -> bool:
        """Whether a step's previews exist, of these prompts and settings."""
        try:
            return (self.place(step) / PREVIEW_FILE).read_text(encoding="utf-8") == self.facts(step)
        except OSError:
            return False


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
            release_memory()  # frees the networks loaded for generating
            if device.type == "cuda":
                torch.cuda.empty_cache()


CAPTIONS = 4  # previewed captions where no prompts are given
POCKET_PROMPTS = ("a water type fridge", "a fire type fridge")  # things that the sample set does not contain


def preview_interval(config: Config) -> int:
    """Steps between previews; 0: none."""
    return config.validation.every if config.previews.every is None else config.previews.every


def choose_previews(config: Config, dataset: TrainingSet) -> list[PreviewImage]:
    """The images to generate: `count` of each prompt, with the same seeds for all prompts; none if switched off.

    Default prompts: captions of the first images in validation, and for the sample set things that it does not contain.
    """
    if not preview_interval(config):
        return []
    own = POCKET_PROMPTS if config.data[0].path == POCKET else ()
    order = validation_order(dataset.held_out or dataset.train, config.seed)
    captions = dict.fromkeys(text for sample in order for text in dataset.prompts[sample.annotation.file_name][:1])
    prompts = dict.fromkeys(config.previews.prompts or [*list(captions)[: CAPTIONS - len(own)], *own])
    options = config.previews
    return [PreviewImage(prompt, options.seed + index) for prompt in prompts for index in range(options.count)]
