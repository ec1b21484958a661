"""Trackers: TensorBoard, and Weights & Biases through accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from data.errors import InputError


class Tracker(Protocol):
    """Someone who draws curves."""

    def write(self, numbers: Mapping[str, float], step: int) -> None: ...

    def picture(self, name: str, file: Path, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`. A resumed run forgets the steps after `start`."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, file: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as picture:
            self.writer.add_image(name, np.array(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One run of Weights & Biases for one run folder, whatever the number of sessions; WANDB_MODE=offline as usual."""

    def __init__(self, project: str, name: str, identity: str, settings: Mapping[str, Any], folder: Path) -> None:
        from accelerate.tracking import WandBTracker

        unique = f"{name}-{identity[:8]}"
        self.tracker = WandBTracker(project, id=unique, name=name, resume="allow", dir=str(folder))
        self.tracker.start()
        self.tracker.store_init_configuration(dict(settings))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(numbers), step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        from PIL import Image

        with Image.open(file) as picture:
            self.tracker.log_images({name: [picture.convert("RGB")]}, step=step)

    def close(self) -> None:
        self.tracker.finish()


def refuse_absent_wandb() -> None:
    """Raises InputError before any work is done if Weights & Biases was asked for and is not installed."""
    if find_spec("wandb") is None:
        raise InputError("Weights & Biases is not installed", where="--logging.wandb", fix="pip install wandb")
