"""What the page and the API share: models, styles, the job queue, the worker and the gallery."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.errors import InputError, check_choice
from infer import prompts
from infer.config import OUTPUTS, StudioOptions
from infer.web.models import ModelList
from infer.web.queue import Job, JobQueue
from infer.web.validation import parse_request

if TYPE_CHECKING:
    from infer.web.gallery import Gallery
    from infer.web.worker import Worker

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Backend(NamedTuple):
    """What needs torch."""

    worker: Worker
    gallery: Gallery


LoadBackend = Callable[[StudioOptions, ModelList], Backend]


class StudioService:
    """load_backend: imports torch, which takes seconds; called once, when the page is open or the first job runs."""

    def __init__(self, options: StudioOptions, load_backend: LoadBackend) -> None:
        self.options, self._load_backend = options, load_backend
        self.models = ModelList(options.model)
        self.styles = prompts.read_styles(prompts.STYLES_FILE)
        self.queue = JobQueue(lambda job: self.backend().worker.generate(job))
        self.default_model = ""  # the model that an API client switched to
        self._backend: Backend | None = None
        self._loading = threading.Lock()

    def backend(self) -> Backend:
        with self._loading:
            if self._backend is None:
                self._backend = self._load_backend(self.options, self.models)
            return self._backend

    def warm_up(self) -> None:
        """Load the default model in the background, while somebody looks at the page."""
        threading.Thread(target=lambda: self.backend().worker.warm_up(), name="warm-up", daemon=True).start()

    def submit(self, fields: Mapping[str, Any]) -> Job:
        """Queue a job. fields: of GenerateOptions, where `model` is a name and `loras` maps names to weights.

        Raises InputError.
        """
        fields = dict(fields)
        model = self.models.model(fields.pop("model", None) or self.default_model)
        loras = tuple(self.models.lora(name, weight) for name, weight in fields.pop("loras", {}).items())
        if fields.get("style"):
            check_choice(fields["style"], self.styles, what="style", where="--style")
        own = {name: getattr(self.options, name) for name in ("tokenizer", "dtype", "device")}
        return self.queue.submit(parse_request({**fields, **own, "model": model, "lora": loras}))

    def image_path(self, name: str) -> Path:
        """An image in outputs/ by its relative path. Raises InputError for anything else, links included."""
        path = OUTPUTS / name
        hidden = any(part.startswith(".") for part in path.parts[1:])
        try:
            inside = path.resolve().is_relative_to(OUTPUTS.resolve()) and not path.is_symlink()
            exists = inside and not hidden and path.suffix.lower() in SUFFIXES and path.is_file()
        except (OSError, ValueError):  # not a possible file name
            exists = False
        if not exists:
            raise InputError("there is no such image", where=name)
        return path
