"""What can be drawn with: the embedded base, finished runs, files of loras/. A page can name nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError, choose
from infer.config import GenerateOptions
from infer.source import POCKET, RUNS
from infer.source import choose as source_of
from infer.tags import FOLDER, TAG

KNOWN_BASES = ("CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5")


@dataclass(frozen=True)
class Shelf:
    """extra: the model that the command named. runs, loras: folders."""

    extra: str | None = None
    runs: Path = RUNS
    loras: Path = FOLDER

    def models(self) -> dict[str, str]:
        """Name -> what --model takes, the one that is drawn with at first in front."""
        from train import run_folder

        finished = [run.path for run in run_folder.all_runs(self.runs) if run.done is not None]
        named = {path.name: str(path) for path in reversed(finished) if self.can_draw(path)}
        found = {Path(self.extra).name if Path(self.extra).exists() else self.extra: self.extra} if self.extra else {}
        others = named | {POCKET: POCKET} | {name: name for name in KNOWN_BASES if in_hub_cache(name)}
        return found | others | found  # in front, and never another model of its name

    def can_draw(self, run: Path) -> bool:
        """Whether a run exported something that pictures are drawn with; a classifier did not."""
        return (run / "config.yaml").is_file() and (
            (run / "export" / "model").is_dir() or (run / "export" / "lora.safetensors").is_file()
        )

    def files(self) -> dict[str, str]:
        """Name -> path of every LoRA in loras/."""
        found = sorted(self.loras.glob("*.safetensors")) if self.loras.is_dir() else []
        return {path.stem: str(path) for path in found}

    def model(self, name: str) -> str:
        """What --model takes for a name; the first one for none. Raises InputError."""
        known = self.models()
        return known[choose(name, known, what="model", where="--model")] if name else next(iter(known.values()))

    def lora(self, name: str, weight: float) -> str:
        """What --lora takes. Raises InputError."""
        known = self.files()
        return f"{known[choose(name, known, what='LoRA', where='--lora')]}:{weight!r}"

    def is_tuned(self, name: str) -> bool:
        """Whether there is a base to compare a model with."""
        return source_of(GenerateOptions(model=self.model(name)), self.runs).is_tuned

    def titles(self) -> Mapping[str, str]:
        """For a picker: what people read -> the name."""
        shown = {POCKET: f"{POCKET} (embedded)"}
        return {shown.get(name, name): name for name in self.models()}


def in_hub_cache(name: str) -> bool:
    """Whether a hub's model lies on this machine; nobody is asked."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "model_index.json"), str)


def refuse_paths(prompt: str) -> None:
    """A tag names a LoRA, it does not point into the machine. Raises InputError."""
    for tag in TAG.finditer(prompt):
        name = tag["name"].strip()
        if "/" in name or "\\" in name or name.startswith((".", "~")):
            raise InputError(f"{tag.group().strip()}: a LoRA is named without its folder", where="--prompt")
