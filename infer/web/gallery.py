"""The studio's gallery: search and stars in generate.py's index, and the settings that an image was made with."""

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from data.errors import InputError, printable
from data.features import Clip
from infer import galleries, metadata, png_info, prompts, schedulers
from infer.conditioning_images import size_for_aspect
from infer.config import OUTPUTS, POCKET_SCORER, GenerateOptions, parse_aspect
from infer.galleries import GalleryIndex, SearchHit, search_index
from infer.metadata import ImageMetadata
from infer.resolve_model import resolve
from infer.web.service import LOADING, SHAPES, ModelList, check_limits
from train.model import load_model

MAX_HITS = 120  # images shown at once
FIELDS = {"prompt", "negative_prompt", "seed", "steps", "guidance_scale", "scheduler", "width", "height"}


class Gallery:
    """judge: folder of the CLIP model that compares words and images; None for the embedded scorer."""

    def __init__(self, judge: Path | None, models: ModelList) -> None:
        self.folder, self.models = judge or POCKET_SCORER, models
        self.lock = threading.Lock()

    @cached_property
    def judge(self) -> Clip:
        clip = Clip(self.folder)
        with LOADING:
            _ = clip.parts
        return clip

    def search(self, text: str) -> list[SearchHit]:
        """The newest images, or those that match the text best. Raises InputError."""
        galleries.parse_query(text)  # reports mistakes before anything is loaded
        with self._index() as index:
            return search_index(index, text, self.judge, MAX_HITS)

    def star(self, path: Path, on: bool) -> None:
        """Mark an image as a favorite, or remove the mark."""
        with self._index() as index:
            index.star(path, on)

    @contextmanager
    def _index(self) -> Iterator[GalleryIndex]:
        """The updated index; one user at a time."""
        with self.lock:
            OUTPUTS.mkdir(exist_ok=True)
            index = GalleryIndex(OUTPUTS)
            try:
                index.update(self.judge)
                yield index
            finally:
                index.close()

    def settings(self, path: Path) -> dict[str, Any]:
        """How an image was made, as fields of GenerateOptions plus "model", "lora", "weight" and "shape".

        All settings of our own images; of other programs' images those that exist here. Raises InputError.
        """
        texts = metadata.read_image_texts(path)
        if metadata.KEY in texts:
            found = self._own_settings(metadata.parse_metadata(texts[metadata.KEY], printable(path)))
        else:
            theirs = png_info.read_foreign(texts, printable(path))
            if theirs is None:
                raise InputError("this image has no generation settings")
            found = {name: value for name, value in theirs.values.items() if name in FIELDS and value is not None}
            found["prompt"] = prompts.escape_template(str(found.get("prompt", "")))
        check_limits(found)
        return found | {"shape": self._shape(found)}

    def _own_settings(self, recipe: ImageMetadata) -> dict[str, Any]:
        """Raises InputError if the image was made with something that is no longer here."""
        if recipe.inputs:
            raise InputError("it was made from a scribble or image", fix="generate.py --params-from can repeat it.")
        models, files = self.models.models(), self.models.lora_files()
        runs = [Path(lora.name).stem for lora in recipe.loras if Path(lora.name).stem in models]
        model = runs[0] if runs else recipe.model.name
        if model not in models:
            raise InputError(f"it was made with {model!r}, which is not here", fix="Start the studio with --model.")
        loras = [(Path(lora.name).stem, lora.weight) for lora in recipe.loras if Path(lora.name).stem not in runs]
        for name, _ in loras:
            if name not in files:
                raise InputError(f"it was made with the LoRA {name!r}, which is not here", fix="Put it into loras/.")
        try:
            sampler = schedulers.canonical_name(recipe.sampler)
        except InputError:  # of a kind that the page does not offer
            sampler = None
        tags = "".join(f" <lora:{name}:{weight!r}>" for name, weight in loras[1:])  # the page has one LoRA field
        return {
            "prompt": prompts.escape_template(recipe.prompt) + tags, "negative_prompt": recipe.negative_prompt,
            "seed": recipe.seed, "steps": recipe.steps, "guidance_scale": recipe.guidance_scale, "scheduler": sampler,
            "width": recipe.width, "height": recipe.height, "model": model,
            **({"lora": loras[0][0], "weight": loras[0][1]} if loras else {}),
        }  # fmt: skip

    def _shape(self, settings: Mapping[str, Any]) -> str:
        """The aspect ratio that gives exactly this size with this model; "" if none does."""
        if "width" not in settings or "height" not in settings:
            return "1:1"
        name = self.models.model(str(settings.get("model", "")))
        model = load_model(resolve(GenerateOptions(model=name), self.models.runs).model)
        for shape in SHAPES.values():
            ratio = parse_aspect(shape) or 1.0
            size = size_for_aspect(ratio, model.sample_size**2, model.step)
            if size == (settings["width"], settings["height"]):
                return shape
        return ""

    def png_info(self, content: bytes) -> dict[str, Any]:
        """A1111's answer to an uploaded PNG. Raises InputError."""
        texts = metadata.read_image_texts(io.BytesIO(content), "image")
        info = texts.get(metadata.A1111_KEY, "")
        return {"info": info, "items": texts, "parameters": metadata.parse_parameters(info) if info else {}}

    def a1111_info(self, paths: Sequence[Path]) -> dict[str, Any]:
        """A1111's `info` of finished images."""
        recipes = [metadata.read_metadata(path) for path in paths]
        if not recipes:
            return {"all_prompts": [], "all_seeds": [], "infotexts": []}
        first = recipes[0]
        return {
            "prompt": first.prompt, "all_prompts": [recipe.prompt for recipe in recipes],
            "negative_prompt": first.negative_prompt,
            "all_negative_prompts": [recipe.negative_prompt for recipe in recipes],
            "seed": first.seed, "all_seeds": [recipe.seed for recipe in recipes],
            "subseed": first.seed, "all_subseeds": [recipe.seed for recipe in recipes], "subseed_strength": 0,
            "width": first.width, "height": first.height, "sampler_name": first.sampler, "steps": first.steps,
            "cfg_scale": first.guidance_scale, "batch_size": len(recipes), "restore_faces": False,
            "face_restoration_model": None, "sd_model_name": first.model.name,
            "sd_model_hash": (first.model.file_hash or first.model.fingerprint)[: metadata.MODEL_HASH_LENGTH],
            "sd_vae_name": None, "sd_vae_hash": None, "seed_resize_from_w": -1, "seed_resize_from_h": -1,
            "denoising_strength": 0, "extra_generation_params": {}, "index_of_first_image": 0, "clip_skip": 1,
            "infotexts": [metadata.format_parameters(recipe) for recipe in recipes],
            "styles": [first.style] if first.style else [], "job_timestamp": "",
            "is_using_inpainting_conditioning": False, "version": first.versions.get("atelier", ""),
        }  # fmt: skip
