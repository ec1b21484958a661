"""Which weights each image is generated with: `base`, `tuned`, a run, one of its checkpoints, LoRAs at a weight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from data import disk_cache
from data.atomic_io import atomic_folder, cache_root, file_sha256
from data.errors import InputError
from infer import resolve_model
from infer.config import CompareOptions, GenerateOptions, LoraFile, parse_lora
from infer.resolve_model import ResolvedModel
from train import checkpoint as checkpoints
from train import run_folder
from train.config import ReexportOptions
from train.exporters import run_export as reexport
from train.run_folder import Run

BASE, TUNED = "base", "tuned"
FINAL = "final"  # what a finished run exported
NO_LORA = "none"  # a value of the axis `lora`


@dataclass(frozen=True)
class Weights:
    """A model as base_model.load takes it, and the LoRAs applied to it."""

    model: str
    tokenizer: str | None = None
    loras: tuple[LoraFile, ...] = ()
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class WeightsFinder:
    """Turns values of the axes into weights."""

    options: CompareOptions

    @cached_property
    def chosen(self) -> ResolvedModel:
        """What --model and --lora mean; without them the newest finished run, else the embedded base."""
        options = GenerateOptions(model=full_run_name(self.options.model), lora=self.options.lora)
        chosen = resolve_model.resolve(options, self.options.runs)
        return replace(chosen, tokenizer=self.options.tokenizer or chosen.tokenizer)

    def find(self, model: str, lora: str | None, weight: float | None, checkpoint: str | None) -> Weights:
        """The weights of one place of the grid; model: "" for what --model means. Raises InputError."""
        weights = self.of_model(model) if checkpoint is None else self.of_checkpoint(model, checkpoint)
        if lora is not None:
            weights = replace(weights, loras=() if lora == NO_LORA else (parse_lora(lora),))
        if weight is not None:
            weights = replace(weights, loras=self._reweight(weights.loras, weight))
        return weights

    def _reweight(self, loras: Sequence[LoraFile], weight: float) -> tuple[LoraFile, ...]:
        """Every LoRA at one weight; at 0 it is left out. Raises InputError if there is none."""
        if not loras and not self.chosen.loras:
            fix = "Name one with --lora FILE, or a run that trained one with --model."
            raise InputError("there is no LoRA", where="lora-weight", fix=fix)
        return tuple(LoraFile(lora.path, weight) for lora in loras) if weight else ()

    def of_model(self, model: str) -> Weights:
        if model == BASE:
            return self.base()
        if model == TUNED and not self.chosen.is_tuned:
            fix = "Finish a run with train/finetune.py first, or name a --lora FILE or a run with --model."
            raise InputError(f"{self.chosen.model} is a base model: nothing is tuned", where="model=tuned", fix=fix)
        if model in ("", TUNED):
            found = self.chosen
        else:
            loras = tuple(parse_lora(text) for text in self.options.lora)
            found = resolve_model.resolve_named(full_run_name(model) or model, loras)
        tokenizer = self.options.tokenizer or found.tokenizer
        return Weights(found.model, tokenizer, found.loras, found.zero_terminal_snr)

    def base(self) -> Weights:
        """What --model was tuned from, without any LoRA."""
        return Weights(self.chosen.base or self.chosen.model, self.chosen.tokenizer)

    def _run_of(self, model: str) -> Path:
        """The run whose checkpoints are meant. Raises InputError."""
        newest = run_folder.newest_finished(self.options.runs)
        named = model if model not in ("", TUNED) else self.options.model
        folder = Path(full_run_name(named) or newest or "")
        if not named and newest is None:
            fix = "Name one with --model runs/0001-name."
            raise InputError(f"there is no finished run in {self.options.runs}/", where="checkpoint", fix=fix)
        if not resolve_model.is_run(folder):
            fix = "Checkpoints belong to a folder that train/finetune.py made."
            raise InputError("not a run", where=f"checkpoint of {folder}", fix=fix)
        return folder

    def checkpoints(self, model: str) -> list[str]:
        """What `checkpoint=all` stands for: the base, every kept checkpoint, and the export of a finished run."""
        run = self._run_of(model)
        steps = [str(int(path.name)) for path in checkpoints.list_checkpoints(run / "checkpoints")]
        return ["0", *steps, *([FINAL] if (run / "done").exists() else [])]

    def of_checkpoint(self, model: str, checkpoint: str) -> Weights:
        run = self._run_of(model)
        base, tokenizer, rescaled = resolve_model.base_of_run(run)
        tokenizer = self.options.tokenizer or tokenizer
        if checkpoint == "0":
            return Weights(base, tokenizer)
        if checkpoint == FINAL:
            found = resolve_model.resolve_run(run, ())
            return Weights(found.model, found.tokenizer, found.loras, found.zero_terminal_snr)
        file = export_checkpoint(run, checkpoint)
        return Weights(str(file)) if file.is_dir() else Weights(base, tokenizer, (LoraFile(file),), rescaled)


def full_run_name(model: str | None) -> str | None:
    """runs/0003 -> runs/0003-lora-r16, if there is exactly one such run."""
    path = Path(model or "")
    if not model or path.exists() or not path.name.isdecimal():
        return model
    found = list(path.parent.glob(f"{path.name}-*"))
    return str(found[0]) if len(found) == 1 else model


def export_checkpoint(run: Path, checkpoint: str) -> Path:
    """A checkpoint as generate.py reads it: a LoRA file or a model folder named RUN-step-STEP.

    Exported by train/export.py's own code, which loads each file back and compares; cached by the checkpoint's content.
    """
    step = reexport.choose_checkpoint(Run(run), checkpoint).step  # raises for a damaged or missing one
    state = run / "checkpoints" / f"{step:06d}" / "state.json"
    key = disk_cache.cache_key(run.resolve().name, file_sha256(state), file_sha256(run / "config.yaml"))
    folder, name = cache_root() / "checkpoints" / key, f"{run.resolve().name}-step-{step}"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            reexport.reexport(ReexportOptions(run=run, checkpoint=str(step), output=temporary / "all"))
            model, lora = temporary / "all" / "model", temporary / "all" / "lora.safetensors"
            (model if model.is_dir() else lora).rename(temporary / (name if model.is_dir() else f"{name}.safetensors"))
    return folder / name if (folder / name).is_dir() else folder / f"{name}.safetensors"
