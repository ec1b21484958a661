"""What the page and the API share: models and LoRAs by name, limits on requests, the job queue, worker and gallery."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from pydantic import ValidationError

from data.cli import explain_error
from data.errors import InputError, check_choice, raise_all
from infer import prompts
from infer.config import LORAS, OUTPUTS, RUNS, GenerateOptions, StudioOptions
from infer.prompts import LORA_TAG
from infer.resolve_model import resolve
from infer.web.queue import Job, JobQueue
from train import run_folder
from train.config import POCKET

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_IMAGES = 16  # per job
MAX_STEPS = 150
MAX_PROMPT = 4000  # characters
MAX_GUIDANCE = 30.0
MAX_AREA = 4  # times the number of pixels that the model was trained at
LIMITS = {"steps": MAX_STEPS, "num_images": MAX_IMAGES, "guidance_scale": MAX_GUIDANCE}
LABELS = {
    "--prompt": "Prompt", "--negative-prompt": "Negative prompt", "--style": "Style", "--model": "Model",
    "--lora": "LoRA", "--seed": "Seed", "--steps": "Steps", "--guidance-scale": "Guidance", "--scheduler": "Sampler",
    "--height": "Height", "--width": "Width", "--aspect": "Shape", "--scribble": "Scribble", "--search": "Search",
    "--num-images": "Images", "--strength": "Freedom", "--compare-base": "Compare", "--grid": "Prompt",
}  # fmt: skip
# Networks are loaded one at a time: transformers creates them under a global "meta" device.
SHAPES = {"Square": "1:1", "Landscape": "3:2", "Portrait": "2:3", "Wide": "16:9", "Tall": "9:16"}
LOADING = threading.Lock()
KNOWN_BASES = ("CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5")


# ---- models


@dataclass(frozen=True)
class ModelList:
    """extra: the model named by --model. runs, loras: folders. Clients name models, never paths."""

    extra: str | None = None
    runs: Path = RUNS
    loras: Path = LORAS

    def models(self) -> dict[str, str]:
        """Name -> what --model takes; the default comes first."""
        finished = [run.path for run in run_folder.all_runs(self.runs) if run.done is not None]
        runs = {path.name: str(path) for path in reversed(finished) if _can_generate(path)}
        cached = [name for name in KNOWN_BASES if isinstance(try_to_load_from_cache(name, "model_index.json"), str)]
        extra = {Path(self.extra).name if Path(self.extra).exists() else self.extra: self.extra} if self.extra else {}
        others = runs | {name: name for name in (POCKET, *cached)}
        return extra | others | extra  # first, and not replaced by a run of the same name

    def lora_files(self) -> dict[str, str]:
        """Name -> path of every LoRA in loras/."""
        return {path.stem: str(path) for path in sorted(self.loras.glob("*.safetensors"))}

    def model(self, name: str) -> str:
        """What --model takes for a name; the default for "". Raises InputError."""
        models = self.models()
        name = check_choice(name, models, what="model", where="--model") if name else next(iter(models))
        return models[name]

    def lora(self, name: str, weight: float) -> str:
        """What --lora takes. Raises InputError."""
        files = self.lora_files()
        return f"{files[check_choice(name, files, what='LoRA', where='--lora')]}:{weight!r}"

    def is_tuned(self, name: str) -> bool:
        """Whether there is a base to compare a model with. Raises InputError."""
        return resolve(GenerateOptions(model=self.model(name)), self.runs).is_tuned


def _can_generate(run: Path) -> bool:
    """Whether a run exported a model or LoRA; a classifier's run did not."""
    exported = (run / "export" / "model").is_dir() or (run / "export" / "lora.safetensors").is_file()
    return exported and (run / "config.yaml").is_file()


def check_lora_tags(prompt: str) -> None:
    """Raise InputError for a tag that names a path: clients must not reach other files of this machine."""
    for tag in LORA_TAG.finditer(prompt):
        name = tag["name"].strip()
        if "/" in name or "\\" in name or name.startswith((".", "~")):
            raise InputError(f"{tag.group().strip()}: name a LoRA without its folder", where="--prompt")


# ---- limits on what a client may request


def parse_request(fields: Mapping[str, Any]) -> GenerateOptions:
    """Fields of GenerateOptions, validated. Raises InputError, all problems at once."""
    prompt = str(fields.get("prompt", ""))
    check_lora_tags(prompt)
    check_limits(fields)
    values = {name: value for name, value in {**fields, "prompt": (prompt,)}.items() if value is not None}
    try:
        return GenerateOptions.model_validate(values)
    except ValidationError as error:
        raise_all([explain_error(GenerateOptions, detail, set(), {}) for detail in error.errors()])
        raise


def check_limits(fields: Mapping[str, Any]) -> None:
    """Raise InputError for requests that would keep everybody else waiting."""
    problems = [
        InputError(f"{fields[name]} is too much", where=f"--{name.replace('_', '-')}", allowed=f"up to {limit:g}")
        for name, limit in LIMITS.items()
        if (fields.get(name) or 0) > limit
    ]
    problems += [
        InputError("is too long", where=f"--{name.replace('_', '-')}", allowed=f"{MAX_PROMPT} characters")
        for name in ("prompt", "negative_prompt")
        if len(str(fields.get(name) or "")) > MAX_PROMPT
    ]
    raise_all(problems)


def check_size(width: int, height: int, side: int) -> None:
    """Raise InputError for an image far larger than the model's own side x side pixels."""
    if width * height > MAX_AREA * side**2:
        what = f"{width} x {height} is more than {MAX_AREA} times this model's {side} x {side} pixels"
        raise InputError(what, where="--width", fix=f"Use {2 * side} x {2 * side} or less.")


def page_message(error: InputError) -> str:
    """An error with the page's field names in place of flags."""
    lines = []
    for line in str(error).splitlines():
        flag, colon, rest = line.partition(": ")
        label = LABELS.get(flag.split(" ")[0])
        lines.append(f"{label}: {rest}" if colon and label else line)
    return "\n".join(lines)


# ---- the service


class Backend(NamedTuple):
    """What needs torch: infer.web.worker.Worker and infer.web.gallery.Gallery."""

    worker: Any
    gallery: Any


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
