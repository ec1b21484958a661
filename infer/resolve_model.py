"""Which weights a command means: a named model or run; by default the newest finished run, else the embedded base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from data.errors import InputError
from infer.config import GenerateOptions, LoraFile

POCKET = "pocket"
RUNS = Path("runs")


@dataclass(frozen=True)
class ResolvedModel:
    """model, tokenizer: what base_model.load takes. base: what it was tuned from, if that is not `model` itself.

    loras: a run's own adapter first, then those asked for. said: which weights these are, and why, for the first line.
    zero_terminal_snr: whether the adapter was trained at a rescaled noise schedule, which its base does not say.
    """

    model: str
    said: str
    base: str | None = None
    loras: tuple[LoraFile, ...] = ()
    tokenizer: str | None = None
    zero_terminal_snr: bool = False

    @property
    def is_tuned(self) -> bool:
        """Whether there is a base to compare with."""
        return self.base is not None or bool(self.loras)


def resolve(options: GenerateOptions, runs: Path = RUNS) -> ResolvedModel:
    """The weights that the options mean. Raises InputError: an unfinished run, or nothing to compare with the base."""
    source = resolve_named(options.model, options.loras) if options.model else resolve_default(options.loras, runs)
    if options.base:
        source = replace_base(options.base, source, options.model)
    if options.tokenizer:
        source = replace(source, tokenizer=options.tokenizer)
    if options.compare_base and not source.is_tuned:
        fix = "Finish a run with train/finetune.py first, or name a --lora FILE or a run with --model."
        raise InputError(f"{source.model} is itself a base: nothing is tuned", where="--compare-base", fix=fix)
    return source


def replace_base(base: str, source: ResolvedModel, model: str | None) -> ResolvedModel:
    """The same weights over another base: of a LoRA the model under it, of a whole model what it is compared with."""
    is_laid_over = source.base is None and (model is None or is_run(Path(model).expanduser()))
    said = f"{source.said}; base: {base}"
    return replace(source, model=base, said=said) if is_laid_over else replace(source, base=base, said=said)


def resolve_default(loras: tuple[LoraFile, ...], runs: Path) -> ResolvedModel:
    """The base of the run that a LoRA lies in; without a LoRA the newest finished run; else the embedded base."""
    from train import run_folder

    if loras:
        homes = (home for lora in loras for home in lora.path.resolve().parents[:2])
        model, tokenizer, rescaled = next((base_of_run(home) for home in homes if is_run(home)), (POCKET, None, False))
        return ResolvedModel(model, f"model: {model}, which the LoRA is laid over", None, loras, tokenizer, rescaled)
    newest = run_folder.newest_finished(runs)
    if newest is None:
        return ResolvedModel(POCKET, f"model: {POCKET}, the embedded base (there is no finished run in {runs}/)")
    run = resolve_run(newest, ())
    return replace(run, said=f"{run.said}, the newest finished run")


def resolve_named(model: str, loras: tuple[LoraFile, ...]) -> ResolvedModel:
    """A model by its name; a run folder means what the run exported."""
    folder = Path(model).expanduser()
    return resolve_run(folder, loras) if is_run(folder) else ResolvedModel(model, f"model: {model}", loras=loras)


def is_run(folder: Path) -> bool:
    """Whether a folder is one of train/finetune.py's."""
    return (folder / "config.yaml").is_file() and not (folder / "model_index.json").exists()


def resolve_run(folder: Path, loras: tuple[LoraFile, ...]) -> ResolvedModel:
    """What a run exported: a whole model, or a LoRA over the model it was tuned from."""
    base, tokenizer, rescaled = base_of_run(folder)
    whole, lora = folder / "export" / "model", folder / "export" / "lora.safetensors"
    if not (folder / "done").exists() or not (whole.is_dir() or lora.is_file()):
        fix = "Give the command that began it once more: it goes on where it stopped."
        raise InputError("the run is not finished, nothing is exported", where=f"--model {folder}", fix=fix)
    if whole.is_dir():
        return ResolvedModel(str(whole), f"model: {folder}", base, loras)
    return ResolvedModel(
        base, f"model: {folder} (a LoRA over {base})", None, (LoraFile(lora), *loras), tokenizer, rescaled
    )


def base_of_run(folder: Path) -> tuple[str, str | None, bool]:
    """The model that a run was tuned from, the tokenizer it named and whether it rescaled the noise schedule to zero
    terminal SNR, out of its config.yaml.
    """
    file = folder / "config.yaml"
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        rescaled = settings.get("objective", {}).get("zero_terminal_snr", False)
        return str(settings["model"]), settings.get("tokenizer"), bool(rescaled)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise InputError("does not say which model the run was tuned from", where=file) from None
