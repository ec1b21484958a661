"""Which weights a command uses, and which settings suit them: a named model or run, else the newest finished run.

Without a finished run it is the embedded base.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import yaml

from data.buckets import trained_side
from data.errors import InputError
from infer.config import RUNS, GenerateOptions, LoraFile
from train import run_folder
from train.config import POCKET

RECOMMENDED_FILE = "recommended.json"  # beside model_index.json


class Recommended(NamedTuple):
    """Settings that suit a model, in force where no other value is given. size: the side in pixels."""

    guidance_scale: float = 7.5
    steps: int = 50  # both from SD v1.4's paper and model card
    size: int = 512


SMALL_GUIDANCE = 4.0  # for text widths below SD's 768, as of the embedded base: more makes colours too strong


def recommended(folder: Path | None) -> Recommended:
    """The settings in a model's folder (BaseModel.layout) if it has some, else those for models of its shape.

    None: a model that is not a folder on this machine has Stable Diffusion's. Raises InputError for a damaged file.
    """
    if folder is None:
        return Recommended()
    try:
        unet, vae = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae")
        )
        shape = Recommended(size=trained_side(unet, vae))
        if unet.get("cross_attention_dim", 768) < 768:
            shape = shape._replace(guidance_scale=SMALL_GUIDANCE)
        file = folder / RECOMMENDED_FILE
        own = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return shape._replace(**{name: type(getattr(shape, name))(own[name]) for name in shape._fields if name in own})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"has no readable settings ({error})", where=folder) from None


@dataclass(frozen=True)
class ResolvedModel:
    """model, tokenizer: arguments of train.model.load_model. base: what it was tuned from, if that is not `model`.

    loras: a run's own adapter first, then the requested ones. description: which weights and why.
    zero_terminal_snr: whether the adapter was trained at a rescaled noise schedule, which its base does not say.
    """

    model: str
    description: str
    base: str | None = None
    loras: tuple[LoraFile, ...] = ()
    tokenizer: str | None = None
    zero_terminal_snr: bool = False

    @property
    def is_tuned(self) -> bool:
        """Whether there is a base to compare with."""
        return self.base is not None or bool(self.loras)


def resolve(options: GenerateOptions, runs: Path = RUNS) -> ResolvedModel:
    """The weights that the options name. Raises InputError: an unfinished run, or nothing to compare with the base."""
    chosen = resolve_named(options.model, options.loras) if options.model else resolve_default(options.loras, runs)
    if options.base:  # under a LoRA the model itself, of a whole model what it is compared with
        is_under_lora = chosen.base is None and (not options.model or is_run(Path(options.model).expanduser()))
        description = f"{chosen.description}; base: {options.base}"
        chosen = replace(chosen, description=description, **{"model" if is_under_lora else "base": options.base})
    if options.tokenizer:
        chosen = replace(chosen, tokenizer=options.tokenizer)
    if options.compare_base and not chosen.is_tuned:
        fix = "Finish a run with train/finetune.py first, or name a --lora FILE or a run with --model."
        raise InputError(f"{chosen.model} is itself a base model", where="--compare-base", fix=fix)
    return chosen


def resolve_default(loras: tuple[LoraFile, ...], runs: Path) -> ResolvedModel:
    """The base of the run that a LoRA lies in; without a LoRA the newest finished run; else the embedded base."""
    if loras:
        folders = [folder for lora in loras for folder in lora.path.resolve().parents[:2] if is_run(folder)]
        model, tokenizer, zero_snr = base_of_run(folders[0]) if folders else (POCKET, None, False)
        return ResolvedModel(model, f"model: {model}, the base of the LoRA", None, loras, tokenizer, zero_snr)
    newest = run_folder.newest_finished(runs)
    if newest is None:
        return ResolvedModel(POCKET, f"model: {POCKET}, the embedded base (there is no finished run in {runs}/)")
    run = resolve_run(newest, ())
    return replace(run, description=f"{run.description}, the newest finished run")


def resolve_named(model: str, loras: tuple[LoraFile, ...]) -> ResolvedModel:
    """A model by its name; a run folder stands for what the run exported."""
    folder = Path(model).expanduser()
    return resolve_run(folder, loras) if is_run(folder) else ResolvedModel(model, f"model: {model}", loras=loras)


def is_run(folder: Path) -> bool:
    """Whether a folder is one of train/finetune.py's."""
    return (folder / "config.yaml").is_file() and not (folder / "model_index.json").exists()


def resolve_run(folder: Path, loras: tuple[LoraFile, ...]) -> ResolvedModel:
    """What a run exported: a whole model, or a LoRA over the model it was tuned from."""
    base, tokenizer, zero_snr = base_of_run(folder)
    whole, lora = folder / "export" / "model", folder / "export" / "lora.safetensors"
    if not (folder / "done").exists() or not (whole.is_dir() or lora.is_file()):
        fix = "Repeat the command that started it: it resumes where it stopped."
        raise InputError("the run is not finished, nothing is exported", where=f"--model {folder}", fix=fix)
    if whole.is_dir():
        return ResolvedModel(str(whole), f"model: {folder}", base, loras)
    description = f"model: {folder} (a LoRA over {base})"
    return ResolvedModel(base, description, None, (LoraFile(lora), *loras), tokenizer, zero_snr)


def base_of_run(folder: Path) -> tuple[str, str | None, bool]:
    """The base model and tokenizer of a run, and whether it was trained at zero terminal SNR, from its config.yaml."""
    file = folder / "config.yaml"
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        zero_snr = settings.get("objective", {}).get("zero_terminal_snr", False)
        return str(settings["model"]), settings.get("tokenizer"), bool(zero_snr)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise InputError("does not say which model the run was tuned from", where=file) from None
