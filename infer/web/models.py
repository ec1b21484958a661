"""Models and LoRAs that the page and the API offer: the embedded base, finished runs, files in loras/."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from data.errors import InputError, check_choice
from infer.config import LORAS, RUNS, GenerateOptions
from infer.prompts import LORA_TAG
from infer.resolve_model import POCKET, resolve
from train import run_folder

# Networks are loaded one at a time: transformers creates them under a global "meta" device.
SHAPES = {"Square": "1:1", "Landscape": "3:2", "Portrait": "2:3", "Wide": "16:9", "Tall": "9:16"}
LOADING = threading.Lock()
KNOWN_BASES = ("CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5")


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
        bases = {name: name for name in KNOWN_BASES if _is_in_hub_cache(name)}
        extra = {Path(self.extra).name if Path(self.extra).exists() else self.extra: self.extra} if self.extra else {}
        return extra | runs | {POCKET: POCKET} | bases | extra  # first, and not replaced by a run of the same name

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


def _is_in_hub_cache(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "model_index.json"), str)


def check_lora_tags(prompt: str) -> None:
    """Raise InputError for a tag that names a path: clients must not reach other files of this machine."""
    for tag in LORA_TAG.finditer(prompt):
        name = tag["name"].strip()
        if "/" in name or "\\" in name or name.startswith((".", "~")):
            raise InputError(f"{tag.group().strip()}: name a LoRA without its folder", where="--prompt")
