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
from typing import Any

import torch
from torch import nn

from data.errors import InputError
from data.files import replaced_folder
from train import machine
from train.base_model import BaseModel
from train.config import Previews as PreviewOptions
from train.report import Report

STRIP, FACTS = "strip.png", "preview.json"


@dataclass(frozen=True)
class Question:
    """One picture to draw, always the same: it depends on nothing but its prompt and its seed."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Asked:
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
    questions: Sequence[Question]
    steps: int
    guidance: float
    size: int
    folder: Path
    beside: Path | None


Draw = Callable[[Asked], list[str]]  # returns what a person should be told


@dataclass(frozen=True)
class Easel:
    """Draws the previews of one run. draw: None on every process but the first, and where nothing can draw."""

    options: PreviewOptions
    validated_every: int
    questions: Sequence[Question]
    folder: Path
    model: BaseModel
    size: int
    identity: str
    precision: str
    device: torch.device
    draw: Draw | None

    def due(self, step: int, *, last: bool) -> bool:
        """Whether step's previews are wanted, the same on every process. Those of step 0 are the base's."""
        every = self.options.interval(self.validated_every)
        return every > 0 and bool(self.questions) and (step % every == 0 or last)

    def take(self, unet: Any, step: int, report: Report) -> None:
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
            report.say(f"step {step}: no previews ({reason(error)}); the training goes on")
            return
        report.picture("previews", step, self.place(step) / STRIP)

    def paint(self, draw: Draw, unet: Any, step: int, report: Report) -> None:
        """One folder of previews, whole or not at all."""
        with replaced_folder(self.place(step)) as folder, undisturbed(unet, self.device):
            asked = Asked(
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
            (folder / FACTS).write_text(self.facts(step), encoding="utf-8")

    def place(self, step: int) -> Path:
        return self.folder / f"{step:06d}"

    def facts(self, step: int) -> str:
        """preview.json: what the pictures follow from."""
        asked = {"step": step, "steps": self.options.steps, "guidance": self.options.guidance, "size": self.size}
        return json.dumps(asked | {"pictures": [asdict(question) for question in self.questions]}, indent=1) + "\n"

    def is_there(self, step: int) -> bool:
        """Whether a step's previews were drawn, of these prompts and in this way."""
        try:
            return (self.place(step) / FACTS).read_text(encoding="utf-8") == self.facts(step)
        except OSError:
            return False


def questions_of(prompts: Sequence[str], options: PreviewOptions) -> list[Question]:
    """The pictures to draw: `count` of each prompt, with seeds that are alike for all prompts."""
    texts = dict.fromkeys(options.prompts or prompts)
    return [Question(text, options.seed + number) for text in texts for number in range(options.count)]


@contextmanager
def undisturbed(unet: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients, and afterwards everything as it was: each module's mode, the generators."""
    modes = [(module, module.training) for module in unet.modules()] if unet is not None else []
    devices = [device] if device.type == "cuda" else []
    machine.give_back()
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, was_training in modes:
                module.training = was_training
            machine.give_back()  # the networks that were loaded for drawing go now, not some time
            if device.type == "cuda":
                torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """An error on one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0] if isinstance(error, InputError) else f"{type(error).__name__}: {text.splitlines()[0]}"
