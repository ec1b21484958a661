"""Where a synthetic set's pictures come from: this project's own pipeline, or any text-to-image one of diffusers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from data.errors import InputError
from infer import loras, pipeline, source
from infer.config import GenerateOptions
from infer.pipeline import Settings
from infer.prompts import Picture
from infer.synthesize_options import MODELS, SynthesizeOptions
from train import base_model

Asked = tuple[str, int]  # prompt and seed
OWN = "StableDiffusionPipeline"  # of model_index.json: what this project's own pipeline draws


class Generator(Protocol):
    """Draws a prompt from a seed; equal fingerprint and settings promise equal pictures on one kind of machine."""

    @property
    def model(self) -> str: ...  # as asked for, with its adapters
    @property
    def folder(self) -> str: ...  # a file name made of it
    @property
    def said(self) -> str: ...  # for the first line
    @property
    def fingerprint(self) -> str: ...

    def draw(self, asked: Sequence[Asked]) -> Iterator[tuple[Image.Image, str]]:
        """A picture and `ok`, `nan` or `flagged` for each prompt and seed, in order."""
        ...


def make(name: str, options: SynthesizeOptions) -> Generator:
    """The generator of a name; nothing is ever downloaded behind anybody's back. Raises InputError."""
    wanted = MODELS.get(name, name)
    return Own(wanted or None, options) if is_own(wanted) else Library(wanted, options)


def is_own(name: str) -> bool:
    """Whether our pipeline draws it: the default, the embedded base, SD v1.4, a run, a file, an SD v1 folder."""
    index = Path(name) / "model_index.json"
    if name and index.is_file():
        return json.loads(index.read_text(encoding="utf-8")).get("_class_name") == OWN
    return name in ("", source.POCKET, MODELS["sd14"]) or Path(name).exists()


def as_folder(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


class Own:
    """A run, a LoRA, the embedded base or an SD v1 folder or file, drawn as generate.py draws."""

    def __init__(self, name: str | None, options: SynthesizeOptions) -> None:
        chosen = source.choose(GenerateOptions(model=name))
        device = pipeline.choose_device(options.device)
        model = base_model.load(chosen.model, tokenizer=chosen.tokenizer,
                                dtype=pipeline.choose_dtype(options.dtype, device))  # fmt: skip
        self.pipe = pipeline.build(model, options.scheduler, device)
        loras.attach(self.pipe, chosen.loras, strict=True)
        size = model.sample_size
        self.settings = Settings(options.steps, options.guidance_scale, size, size,
                                 micro_batch=pipeline.micro_batch_for(device))  # fmt: skip
        self.said = chosen.said
        self.model = " + ".join([chosen.model, *(str(lora.path) for lora in chosen.loras)])
        run = next((lora.path.parent.parent.name for lora in chosen.loras), None)
        self.folder = as_folder(run or Path(chosen.model).name)

    @property
    def fingerprint(self) -> str:
        """Of the U-Net as it draws, adapters included."""
        digest = hashlib.sha256()
        for parameter in self.pipe.unet.parameters():
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def draw(self, asked: Sequence[Asked]) -> Iterator[tuple[Image.Image, str]]:
        pictures = [Picture(index, prompt, seed) for index, (prompt, seed) in enumerate(asked)]
        for drawn in pipeline.draw(self.pipe, pictures, self.settings):
            yield drawn.image, drawn.verdict


@dataclass
class Library:
    """Whatever AutoPipelineForText2Image takes, from the hub's cache on this machine or a folder."""

    model: str
    options: SynthesizeOptions

    def __post_init__(self) -> None:
        refuse_absent(self.model)
        import diffusers

        from infer import schedulers  # isort: skip

        device = pipeline.choose_device(self.options.device)
        dtype = pipeline.choose_dtype(self.options.dtype, device)
        pipeline.quieten()
        try:
            self.pipe: Any = diffusers.AutoPipelineForText2Image.from_pretrained(
                self.model, torch_dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:160]
            raise InputError(f"{self.model} cannot be loaded ({reason})", where="--model") from None
        asked = self.options.scheduler or ("dpmpp_2m" if "stable-diffusion-2-1" in self.model else None)
        if asked:
            self.pipe.scheduler = schedulers.build(asked, dict(self.pipe.scheduler.config))
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe = self.pipe.to(device)

    @property
    def folder(self) -> str:
        return as_folder(Path(self.model).name)

    @property
    def said(self) -> str:
        return f"model: {self.model}"

    @property
    def fingerprint(self) -> str:
        """The commit that the hub's cache names, or the folder's path."""
        return str(getattr(self.pipe.config, "_name_or_path", self.model))

    def draw(self, asked: Sequence[Asked]) -> Iterator[tuple[Image.Image, str]]:
        for prompt, seed in asked:
            rng = torch.Generator("cpu").manual_seed(seed)
            found = self.pipe(
                prompt,
                num_inference_steps=self.options.steps,
                guidance_scale=self.options.guidance_scale,
                generator=rng,
            )
            flagged = any(getattr(found, "nsfw_content_detected", None) or [])
            yield found.images[0], "flagged" if flagged else "ok"


def refuse_absent(model: str) -> None:
    """Raise InputError for a model that is neither a folder nor in the hub's cache; nothing is asked over a network."""
    from huggingface_hub import try_to_load_from_cache

    if not Path(model).is_dir() and not isinstance(try_to_load_from_cache(model, "model_index.json"), str):
        raise InputError(f"{model} is not on this machine", where="--model", fix=f"Fetch it: hf download {model}")
