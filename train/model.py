"""The base model: found, loaded part by part, fingerprinted by content; and the network as a function."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data.atomic_io import cache_root, file_sha256, write_atomic
from data.errors import InputError, suggest
from data.shapes import Latents, TextStates, Timesteps
from train.config import POCKET, POCKET_FOLDER
from train.ddpm import schedule
from train.ddpm.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTokenizer


def folder_hash(folder: Path) -> str:
    """A hash over the names and contents of a part's files."""
    files = sorted(file for file in folder.iterdir() if file.suffix in {".json", ".safetensors", ".txt"})
    return hashlib.sha256("".join(f"{file.name}:{file_hash(file)};" for file in files).encode()).hexdigest()


SETTLED_NS = 2_000_000_000  # a file written a moment ago may change again within one tick of its file system's clock


def file_hash(file: Path) -> str:
    """SHA-256 of a file, remembered by its path, size and times so that 3 GB are read once and not at every start."""
    found = file.resolve().stat()
    key = f"{file.resolve()}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"
    memo = cache_root() / "hashes.json"
    known = read_memo(memo).get(key)
    if known is None:
        known = file_sha256(file)
        if time.time_ns() - found.st_mtime_ns > SETTLED_NS:
            write_atomic(memo, json.dumps({**read_memo(memo), key: known}))
    return known


def read_memo(memo: Path) -> Mapping[str, str]:
    """The remembered hashes; a damaged memo is only a slower start."""
    try:
        return json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


ZERO_SNR_SETTINGS = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ZERO_SNR_SCHEDULERS = {  # diffusers' schedulers that follow both settings; the others would use another schedule
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}
ZERO_SNR_FALLBACK = "DDIMScheduler"  # the paper's, and nearest to Stable Diffusion's own PNDM
PNDM_ONLY = ("skip_prk_steps",)
ZERO_SNR_ADVICE = (
    "trained at zero terminal SNR: use a scheduler that has rescale_betas_zero_snr and timestep_spacing"
    ' "trailing", such as diffusers\' DDIMScheduler'
)


def zero_snr_scheduler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A base model's scheduler_config.json, changed to what its rescaled version must be sampled with."""
    if config.get("_class_name") in ZERO_SNR_SCHEDULERS:
        return {**config, **ZERO_SNR_SETTINGS}
    kept = {key: value for key, value in config.items() if key not in PNDM_ONLY}
    # DDIM clips to [-1, 1] unless it is told not to; latents are not bounded by that
    return {"clip_sample": False, **kept, **ZERO_SNR_SETTINGS, "_class_name": ZERO_SNR_FALLBACK}


@dataclass(frozen=True)
class Denoiser:
    """A U-Net, perhaps wrapped by accelerate (autocast, data parallel).

    (B, C, h, w) noisy latents, (B,) timesteps, (B, L, D) text states -> (B, C, h, w) float32: what the network was
    trained to predict (eps, v or x_0).
    """

    unet: nn.Module

    def __call__(self, noisy: Latents, t: Timesteps, states: TextStates) -> Latents:
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        dtype = next(self.unet.parameters()).dtype if not torch.is_autocast_enabled() else noisy.dtype
        (predicted,) = self.unet(noisy.to(dtype), t, encoder_hidden_states=states.to(dtype), return_dict=False)
        return predicted.float()


def load_single_file_text_encoder(weights: Path, layout: Path) -> CLIPTextModel:
    """The text tower inside a single-file checkpoint (keys under cond_stage_model.transformer). Raises InputError."""
    from safetensors import SafetensorError, safe_open
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = "cond_stage_model.transformer."
    try:
        with safe_open(weights, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            state = {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder"))
        missing, unexpected = model.load_state_dict(rename_text_encoder_keys(state, model), strict=False)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise InputError(f"the text_encoder could not be loaded ({reason})", where=weights) from error
    if missing or unexpected:
        counts = f"{len(missing)} of its weights are missing, {len(unexpected)} are unknown"
        raise InputError(f"the text_encoder could not be loaded ({counts})", where=weights)
    return model


def rename_text_encoder_keys(state: Mapping[str, Tensor], model: CLIPTextModel) -> dict[str, Tensor]:
    """A single file's text tower with this library's names, without what Stable Diffusion v1 makes no use of.

    Checkpoints name the tower `text_model.`; transformers 5 dropped that level.
    """
    deep = any(name.startswith("text_model.") for name, _ in model.named_parameters())
    unused = ("position_ids", "text_projection.weight")
    kept = {key.removeprefix("text_model."): tensor for key, tensor in state.items() if not key.endswith(unused)}
    return {f"text_model.{key}": tensor for key, tensor in kept.items()} if deep else kept


SD_V1_CONFIGS = Path(__file__).parent / "architectures" / "sd-v1"  # configs only: what a single file does not hold
PARTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class BaseModel:
    """A pretrained text-to-image model, frozen. `layout` holds the configs; `weights` is a file for single-file models.

    name: what the user typed. dtype: of every part's weights. tokenizer_source: a folder that holds a CLIP tokenizer.
    zero_terminal_snr: whether its noise schedule is rescaled, for training and for sampling.
    """

    name: str
    layout: Path
    weights: Path | None
    tokenizer_source: Path
    dtype: torch.dtype = torch.float32
    zero_terminal_snr: bool = False

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoising network; (B, C, h, w), (B,), (B, L, D) -> (B, C, h, w)."""
        import diffusers

        return freeze(self.load_part(diffusers.UNet2DConditionModel, "unet"))

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder; (B, 3, H, W) in [-1, 1] <-> (B, C, H / factor, W / factor)."""
        import diffusers

        return freeze(self.load_part(diffusers.AutoencoderKL, "vae"))

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The text tower; (B, L) token ids -> (B, L, D)."""
        import transformers

        if self.weights is None:
            return freeze(self.load_part(transformers.CLIPTextModel, "text_encoder"))
        return freeze(load_single_file_text_encoder(self.weights, self.layout)).to(self.dtype)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        import transformers

        return transformers.CLIPTokenizer.from_pretrained(self.tokenizer_source, local_files_only=True)

    def load_part(self, kind: Any, part: str) -> Any:
        """One network with its weights in self.dtype. Raises InputError when file and architecture do not match."""
        from diffusers.loaders.single_file_utils import SingleFileComponentError
        from safetensors import SafetensorError

        where = self.weights or self.layout / part
        try:
            network, missing = self.read_part(kind, part)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, SingleFileComponentError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise InputError(f"the {part} could not be loaded ({reason})", where=where) from error
        if missing:  # the libraries would go on with random numbers in their place
            what = f"the {part} could not be loaded ({len(missing)} weights are missing, such as {missing[0]})"
            raise InputError(what, where=where)
        return network

    def read_part(self, kind: Any, part: str) -> tuple[Any, list[str]]:
        """One network, and the names of weights that were not in its file."""
        given = {"subfolder": part, "torch_dtype": self.dtype, "local_files_only": True}
        if self.weights is None:
            network, found = kind.from_pretrained(self.layout, **given, use_safetensors=True, output_loading_info=True)
            return network, sorted(found["missing_keys"])
        try:
            return kind.from_single_file(str(self.weights), config=str(self.layout), **given), []
        except NotImplementedError as error:  # what torch says of a tensor that was given no data
            raise ValueError("some of its weights are missing") from error

    def forget(self, *parts: str) -> None:
        """Free the memory of parts that are no longer needed; they load again when they are used again."""
        for part in parts:
            vars(self).pop(part, None)

    def config(self, part: str) -> dict[str, Any]:
        """A part's config.json."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return json.loads((self.layout / part / name).read_text(encoding="utf-8"))

    @property
    def scheduler_config(self) -> dict[str, Any]:
        own = self.config("scheduler")
        return zero_snr_scheduler_config(own) if self.zero_terminal_snr else own

    @cached_property
    def schedule(self) -> Schedule:
        """The noise schedule that the base model was trained with, or that schedule rescaled."""
        return schedule.from_diffusers(self.scheduler_config)

    @property
    def prediction_type(self) -> str:
        """epsilon, v_prediction or sample."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def latent_channels(self) -> int:
        return self.config("vae")["latent_channels"]

    @property
    def scaling_factor(self) -> float:
        return self.config("vae").get("scaling_factor", 0.18215)

    @property
    def factor(self) -> int:
        """Pixels per latent position: 8 for SD v1, 4 for the embedded base."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    @property
    def step(self) -> int:
        """Image sides must be multiples of this many pixels: the autoencoder's factor times the U-Net's."""
        return self.factor * 2 ** (len(self.config("unet")["block_out_channels"]) - 1)

    @property
    def sample_size(self) -> int:
        """The side in pixels that the model was trained at."""
        return self.config("unet")["sample_size"] * self.factor

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A content hash for each of unet, vae, text_encoder and tokenizer: weights and config."""
        if self.weights is not None:
            parts = dict.fromkeys(PARTS, file_hash(self.weights))
        else:
            parts = {part: folder_hash(self.layout / part) for part in PARTS}
        return parts | {"tokenizer": folder_hash(self.tokenizer_source)}

    @property
    def schedule_fingerprint(self) -> str:
        """A hash of what training takes from the scheduler: its betas, and what the network was trained to predict."""
        betas = self.schedule.betas.numpy().tobytes()
        return hashlib.sha256(betas + self.prediction_type.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """One hash for the whole model."""
        return hashlib.sha256("".join(sorted(self.fingerprints.values())).encode()).hexdigest()


def load_model(model: str, *, tokenizer: str | None = None, dtype: torch.dtype = torch.float32) -> BaseModel:
    """Find a model: "pocket", a diffusers folder, a single .safetensors file, or a hub id that is in the hub's cache.

    Raises InputError when it is not on this machine (saying how to get it) or lacks a part.
    """
    path = Path(model).expanduser()
    if path.is_file() and model != POCKET:  # in the original layout, without a tokenizer
        if path.suffix != ".safetensors":
            raise InputError("only .safetensors files are read (a .ckpt can run code)", where=f"--model {model}")
        return BaseModel(model, SD_V1_CONFIGS, path, tokenizer_folder(tokenizer, None), dtype)
    fix = None
    if model == POCKET:
        path = POCKET_FOLDER
    elif not path.is_dir():
        path, fix = hub_snapshot(model), download_command(model)
    check_layout(path, f"--model {model}", fix)
    return BaseModel(model, path, None, tokenizer_folder(tokenizer, path / "tokenizer"), dtype)


def check_layout(folder: Path, where: str, fix: str | None) -> None:
    """Raises InputError unless it is in diffusers layout, as save_pretrained writes it. fix: where to get the rest."""
    missing = [part for part in (*PARTS, "scheduler") if not (folder / part).is_dir()]
    if not (folder / "model_index.json").is_file() or missing:
        lacks = ", ".join(missing) or "model_index.json"
        raise InputError(f"not a Stable Diffusion model in diffusers layout: lacks {lacks}", where=where, fix=fix)
    without = [part for part in PARTS if not list((folder / part).glob("*.safetensors"))]
    if without:
        what = f"no .safetensors weights in {', '.join(without)}"
        raise InputError(what, where=where, fix=f"{fix}. {CONVERT_HINT}" if fix else CONVERT_HINT)


CONVERT_HINT = "Pickled weights are not read; convert the model with diffusers' save_pretrained."
HUB_FILES = ("model_index.json", "*/*.json", "*/*.txt", *(f"{part}/*.safetensors" for part in PARTS))
SD_V1_NAMES = ("CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5")


def hub_snapshot(name: str) -> Path:
    """The folder of a hub model that was downloaded before. Raises InputError with the command that downloads it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    where = f"--model {name}"
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).suffix in {".safetensors", ".ckpt"}:
        raise InputError(f"no such file or folder{suggest(name, [POCKET])}", where=where, allowed=ALLOWED_MODELS)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        title = "Stable Diffusion v1.4" if name == SD_V1_NAMES[0] else name
        raise InputError(f"{title} is not on this machine", where=where, fix=download_command(name)) from None


def download_command(name: str) -> str:
    """The command that fetches a hub model."""
    return f"Get it with: hf download {name} --include {' '.join(repr(pattern) for pattern in HUB_FILES)}"


ALLOWED_MODELS = (
    "pocket, a folder in diffusers layout, a .safetensors file, or a hub id such as CompVis/stable-diffusion-v1-4"
)


def tokenizer_folder(given: str | None, own: Path | None) -> Path:
    """Where the tokenizer lies: the one named, the model's own, or SD v1.4's in the hub cache. Raises InputError."""
    if given is not None:
        for folder in (Path(given).expanduser(), Path(given).expanduser() / "tokenizer"):
            if is_tokenizer(folder):
                return folder
        raise InputError("no tokenizer there (vocab.json or tokenizer.json)", where=f"--tokenizer {given}")
    if own is not None:
        if is_tokenizer(own):
            return own
        raise InputError("holds no tokenizer", where=f"--model {own.parent}", fix=TOKENIZER_HINT)
    for name in SD_V1_NAMES:
        try:
            return hub_snapshot(name) / "tokenizer"
        except InputError:
            continue
    raise InputError("a single-file model holds no tokenizer", where="--tokenizer", fix=TOKENIZER_HINT)


TOKENIZER_HINT = "Name one with --tokenizer FOLDER (vocab.json and merges.txt of CLIP L/14, as in any SD v1 folder)."


def is_tokenizer(folder: Path) -> bool:
    return (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()


def freeze(module: Any) -> Any:
    """Evaluation mode, no gradients."""
    return module.requires_grad_(False).eval()


@torch.no_grad()
def copy_tensors(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str, where: object) -> None:
    """Restore saved tensors into one's own, whose names and shapes must be the same. Raises InputError."""
    wrong = sorted(own.keys() ^ saved.keys())
    wrong += [name for name in own if name in saved and own[name].shape != saved[name].shape]
    if wrong:
        raise InputError(f"{len(wrong)} {what} do not fit this adapter, e.g. {wrong[0]}", where=where)
    for name, tensor in own.items():
        tensor.copy_(saved[name])
