"""Which weights each cell is drawn with: `base`, `tuned`, a run, one of its checkpoints, LoRAs at their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from data import kept
from data.errors import InputError
from data.files import cache_root, replaced_folder, sha256
from infer import source
from infer.comparing.axes import NOTHING
from infer.comparing.options import CompareOptions
from infer.config import GenerateOptions, LoraFile, split_weight
from infer.source import Source

BASE, TUNED = "base", "tuned"
FINAL = "final"  # what the run exported when it finished


@dataclass(frozen=True)
class Weights:
    """A model as base_model.load takes it, and the LoRAs over it."""

    model: str
    tokenizer: str | None = None
    loras: tuple[LoraFile, ...] = ()
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class Finder:
    """Turns the words of the axes into weights; looks things up only when an axis asks for them."""

    options: CompareOptions

    @cached_property
    def chosen(self) -> Source:
        """What --model and --lora mean; without them the newest finished run, else the embedded base."""
        asked = GenerateOptions(model=self.run_name(self.options.model), lora=self.options.lora)
        found = source.choose(asked, self.options.runs)
        return replace(found, tokenizer=self.options.tokenizer or found.tokenizer)

    def find(self, model: str, lora: str | None, weight: float | None, checkpoint: str | None) -> Weights:
        """The weights of one place on the axes; model: "" for what --model means. Raises InputError."""
        found = self.of_model(model) if checkpoint is None else self.of_checkpoint(model, checkpoint)
        if lora is not None:
            own = () if lora == NOTHING else (split_weight(lora),)
            found = replace(found, loras=own)
        if weight is not None:
            found = replace(found, loras=self.weighed(found.loras, weight))
        return found

    def weighed(self, loras: Sequence[LoraFile], weight: float) -> tuple[LoraFile, ...]:
        """Every LoRA at one weight; at 0 it is left out. Raises InputError where there is none."""
        if not loras and not self.chosen.loras:
            fix = "Name one with --lora FILE, or a run that trained one with --model."
            raise InputError("there is no LoRA to weigh", where="lora-weight", fix=fix)
        return tuple(LoraFile(lora.path, weight) for lora in loras) if weight else ()

    def of_model(self, model: str) -> Weights:
        if model == BASE:
            return self.base()
        if model == TUNED and not self.chosen.is_tuned:
            fix = "Finish a run with train/finetune.py first, or name a --lora FILE or a run with --model."
            raise InputError(f"{self.chosen.model} is itself a base: nothing is tuned", where="model=tuned", fix=fix)
        found = self.chosen if model in ("", TUNED) else source.named(self.run_name(model) or model, self.laid_over)
        tokenizer = self.options.tokenizer or found.tokenizer
        return Weights(found.model, tokenizer, found.loras, found.zero_terminal_snr)

    def base(self) -> Weights:
        """What --model was tuned from, without any LoRA."""
        return Weights(self.chosen.base or self.chosen.model, self.chosen.tokenizer)

    @property
    def laid_over(self) -> tuple[LoraFile, ...]:
        return tuple(split_weight(text) for text in self.options.lora)

    def run_name(self, model: str | None) -> str | None:
        """runs/0003 -> runs/0003-lora-r16, where there is one such run."""
        path = Path(model or "")
        if not model or path.exists() or not path.name.isdecimal():
            return model
        found = sorted(path.parent.glob(f"{path.name}-*"))
        return str(found[0]) if len(found) == 1 else model

    # ---- checkpoints

    def run_of(self, model: str) -> Path:
        """The run whose checkpoints are meant. Raises InputError."""
        from train import run_folder

        newest = run_folder.newest_finished(self.options.runs)
        named = model if model not in ("", TUNED) else self.options.model
        folder = Path(self.run_name(named) or newest or "")
        if not named and newest is None:
            fix = "Name one with --model runs/0001-name."
            raise InputError(f"there is no finished run in {self.options.runs}/", where="checkpoint", fix=fix)
        if not source.is_run(folder):
            fix = "Checkpoints are those of a folder that train/finetune.py made."
            raise InputError("not a run", where=f"checkpoint of {folder}", fix=fix)
        return folder

    def checkpoints(self, model: str) -> list[str]:
        """What `checkpoint=all` stands for: the base, every checkpoint that is kept, and the end of a finished run."""
        from train import checkpoint

        run = self.run_of(model)
        there = [str(int(path.name)) for path in checkpoint.steps(run / "checkpoints")]
        return ["0", *there, *([FINAL] if (run / "done").exists() else [])]

    def of_checkpoint(self, model: str, checkpoint: str) -> Weights:
        run = self.run_of(model)
        base, tokenizer, rescaled = source.base_of(run)
        if checkpoint == "0":
            return Weights(base, self.options.tokenizer or tokenizer)
        if checkpoint == FINAL:
            found = source.of_run(run, ())
            return Weights(found.model, found.tokenizer, found.loras, found.zero_terminal_snr)
        file = exported(run, checkpoint)
        if file.is_dir():
            return Weights(str(file), None)
        return Weights(base, self.options.tokenizer or tokenizer, (LoraFile(file),), rescaled)


def exported(run: Path, checkpoint: str) -> Path:
    """The weights of a checkpoint as generate.py reads them: a LoRA file or a model's folder, named run-step-STEP.

    Made by train/export.py's own code, which loads each file back and compares; kept by the checkpoint's content.
    """
    from train.exports import again
    from train.exports.options import Again
    from train.run_folder import Run

    step = again.checkpoint_of(Run(run), checkpoint).step  # damaged or missing: said here
    state = run / "checkpoints" / f"{step:06d}" / "state.json"
    key = kept.digest(run.resolve().name, sha256(state), sha256(run / "config.yaml"))
    folder, name = cache_root() / "checkpoints" / key, f"{run.resolve().name}-step-{step}"
    if not folder.is_dir():
        with replaced_folder(folder) as beside:
            again.export(Again(run=run, checkpoint=str(step), output=beside / "all"))
            whole, lora = beside / "all" / "model", beside / "all" / "lora.safetensors"
            (whole if whole.is_dir() else lora).rename(beside / (name if whole.is_dir() else f"{name}.safetensors"))
    return folder / name if (folder / name).is_dir() else folder / f"{name}.safetensors"
