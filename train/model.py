"""The base model: found, loaded part by part, fingerprinted by content; and the network as a function."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data import buckets
from data.atomic_io import atomic_folder, cache_root, file_sha256, write_atomic
from data.errors import InputError, suggest
from data.shapes import Latents, TextStates, Timesteps
from train import architecture
from train.architecture import CLIP, OPEN_CLIP, PARTS, Family, SingleFile
from train.config import POCKET, POCKET_FOLDER
from train.ddpm import schedule
from train.ddpm.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTokenizer


WEIGHT_FILE = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
CLIP_MERGES = Path(__file__).parent / "architectures" / "clip-merges.txt.gz"  # of CLIP ViT-L/14: OpenAI, MIT licence


def weight_files(folder: Path) -> tuple[str | None, list[Path]]:
    """The weights of a part and diffusers' name of their variant: the plain ones, else fp16, else any other."""
    variants: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if found := WEIGHT_FILE.fullmatch(file.name):
            variants.setdefault(found["variant"], []).append(file)
    chosen = next((name for name in (None, "fp16", *sorted(filter(None, variants))) if name in variants), None)
    return chosen, variants.get(chosen, [])


def folder_hash(folder: Path) -> str:
    """A hash over the names and contents of those files of a part that are loaded."""
    configs = (file for file in folder.iterdir() if file.suffix in {".json", ".txt"} and file.is_file())
    files = [file for file in configs if ".index." not in file.name]
    files = sorted([*files, *weight_files(folder)[1]])
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
    """The text tower in a single file: CLIP, or OpenCLIP for Stable Diffusion 2. Raises InputError."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from safetensors import SafetensorError, safe_open
    from transformers import CLIPTextConfig, CLIPTextModel

    try:
        with safe_open(weights, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith((CLIP, OPEN_CLIP))]  # noqa: SIM118
            state = {key: file.get_tensor(key) for key in keys}
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder"))
        if any(key.startswith(OPEN_CLIP) for key in state):
            state = convert_open_clip_checkpoint(model, state, OPEN_CLIP)
        state = {key.removeprefix(CLIP): tensor for key, tensor in state.items()}
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


ARCHITECTURES = Path(__file__).parent / "architectures"  # configs only: what a single file does not hold
LAYOUTS: dict[Family, str] = {"sd1": "sd-v1", "sd2": "sd-v2"}
SD_V1_CONFIGS = ARCHITECTURES / LAYOUTS["sd1"]


@dataclass(frozen=True)
class BaseModel:
    """A pretrained text-to-image model, frozen. `layout` holds the configs; `weights` is a file for single-file models.

    name: what the user typed. dtype: of every part's weights. tokenizer_source: a folder that holds a CLIP tokenizer.
    zero_terminal_snr: whether its noise schedule is rescaled, for training and for sampling. scheduler: in place of the
    layout's scheduler_config.json.
    """

    name: str
    layout: Path
    weights: Path | None
    tokenizer_source: Path
    dtype: torch.dtype = torch.float32
    zero_terminal_snr: bool = False
    scheduler: Mapping[str, Any] | None = None

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

        with loading("tokenizer", self.tokenizer_source):
            return transformers.CLIPTokenizer.from_pretrained(self.tokenizer_source, local_files_only=True)

    def load_part(self, kind: Any, part: str) -> Any:
        """One network with its weights in self.dtype. Raises InputError when file and architecture do not match."""
        where = self.weights or self.layout / part
        with loading(part, where):
            network, missing = self.read_part(kind, part)
        if missing:  # the libraries would go on with random numbers in their place
            what = f"the {part} could not be loaded ({len(missing)} weights are missing, such as {missing[0]})"
            raise InputError(what, where=where)
        if broken := [name for name, weight in network.named_parameters() if not weight.isfinite().all()]:
            what = f"{len(broken)} weights of the {part} are not finite numbers, such as {broken[0]}"
            raise InputError(what, where=where, fix="Download or convert the model again.")
        return network

    def read_part(self, kind: Any, part: str) -> tuple[Any, list[str]]:
        """One network, and the names of weights that were not in its file."""
        given = {"subfolder": part, "torch_dtype": self.dtype, "local_files_only": True}
        if self.weights is None:
            given |= {"variant": weight_files(self.layout / part)[0], "use_safetensors": True}
            network, found = kind.from_pretrained(self.layout, **given, output_loading_info=True)
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
        if part == "scheduler" and self.scheduler is not None:
            return dict(self.scheduler)
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
    def family(self) -> Family:
        return architecture.family_of(self.config("text_encoder"))

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
        return buckets.trained_side(self.config("unet"), self.config("vae"))

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


@contextmanager
def loading(part: str, where: Path) -> Iterator[None]:
    """An InputError for whatever the libraries make of a broken config or file: errors of any kind."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"the {part} could not be loaded ({reason})", where=where) from error


def load_model(model: str, *, tokenizer: str | None = None, dtype: torch.dtype = torch.float32) -> BaseModel:
    """Find a model: "pocket", a diffusers folder, a single .safetensors file, or a hub id that is in the hub's cache.

    Raises InputError when it is not on this machine (saying how to get it) or lacks a part.
    """
    path, where = Path(model).expanduser(), f"--model {model}"
    if path.is_file() and model != POCKET:
        found = architecture.recognize_file(path, where)
        layout = ARCHITECTURES / LAYOUTS[found.family]
        base = BaseModel(model, layout, path, tokenizer_folder(tokenizer, None, found.family), dtype)
        return replace(base, scheduler=scheduler_of(found, base.config("scheduler")))
    fix = None
    if model == POCKET:
        path = POCKET_FOLDER
    elif not path.is_dir():
        path, fix = hub_snapshot(model), download_command(model)
    family = architecture.recognize_folder(path, where, fix)
    if without := [part for part in PARTS if not weight_files(path / part)[1]]:
        what = f"no .safetensors weights in {', '.join(without)}"
        raise InputError(what, where=where, fix=" ".join(filter(None, (fix and f"{fix}.", architecture.CONVERT))))
    return BaseModel(model, path, None, tokenizer_folder(tokenizer, path / "tokenizer", family), dtype)


def scheduler_of(found: SingleFile, config: dict[str, Any]) -> dict[str, Any]:
    """A family's scheduler, changed to what a checkpoint says of itself."""
    if found.prediction_type is not None:
        config |= {"prediction_type": found.prediction_type}
    return zero_snr_scheduler_config(config) if found.zero_terminal_snr else config


HUB_FILES = ("model_index.json", "*/*.json", "*/*.txt", *(f"{part}/*.safetensors" for part in PARTS))
SD_V1_NAME = "CompVis/stable-diffusion-v1-4"


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
        title = "Stable Diffusion v1.4" if name == SD_V1_NAME else name
        raise InputError(f"{title} is not on this machine", where=where, fix=download_command(name)) from None


def download_command(name: str) -> str:
    """The command that fetches a hub model."""
    return f"Get it with: hf download {name} --include {' '.join(repr(pattern) for pattern in HUB_FILES)}"


ALLOWED_MODELS = (
    "pocket, a folder in diffusers layout, a .safetensors file, or a hub id such as CompVis/stable-diffusion-v1-4"
)


def tokenizer_folder(given: str | None, own: Path | None, family: Family) -> Path:
    """Where the tokenizer lies: the one named, the model's own, or, for a single file, CLIP's. Raises InputError."""
    if given is not None:
        for folder in (Path(given).expanduser(), Path(given).expanduser() / "tokenizer"):
            if is_tokenizer(folder):
                return folder
        raise InputError("no tokenizer there (vocab.json or tokenizer.json)", where=f"--tokenizer {given}")
    if own is None:
        return clip_tokenizer(family)
    if is_tokenizer(own):
        return own
    fix = "Name one with --tokenizer FOLDER (vocab.json and merges.txt of CLIP L/14, as in any SD v1 folder)."
    raise InputError("holds no tokenizer", where=f"--model {own.parent}", fix=fix)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in CLIP's vocabulary, printable ones for themselves first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len(set(range(256)) - set(printable))
    return [*map(chr, printable), *(chr(256 + number) for number in range(others))]


def clip_tokenizer(family: Family) -> Path:
    """CLIP's own tokenizer, which every Stable Diffusion 1.x and 2.x has, in the cache; 2.x pads with `!`."""
    folder = cache_root() / "clip-tokenizer" / family
    if is_tokenizer(folder):
        return folder
    merges = gzip.decompress(CLIP_MERGES.read_bytes()).decode()
    alphabet = byte_alphabet()
    words = [*alphabet, *(f"{char}</w>" for char in alphabet), *(line.replace(" ", "") for line in merges.splitlines())]
    words += ["<|startoftext|>", "<|endoftext|>"]
    marks = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1]}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace"}
    config |= marks | {"pad_token": words[-1] if family == "sd1" else "!"}
    with atomic_folder(folder) as beside:
        (beside / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
        (beside / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), "utf-8")
        (beside / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


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
