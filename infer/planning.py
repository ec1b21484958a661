"""Everything that is decided, and checked against the model, before the first picture is drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from data.errors import InputError, raise_all
from data.files import sha256
from infer import canvas, encoder, pipeline, prompt_files, prompts, sizes, styles, tags, templates, weighting
from infer.canvas import Canvas
from infer.config import GenerateOptions, LoraFile
from infer.encoder import Tokens
from infer.pipeline import Settings
from infer.prompt_files import Line
from infer.prompts import Picture, shorten
from infer.styles import Style
from train.base_model import BaseModel

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Job:
    """Everything that was decided before the first picture is drawn. notes: what a person should know of it."""

    pictures: list[Picture]
    settings: Settings
    tokens: dict[str, Tokens]
    scheduler: str | None
    device: torch.device
    strict: bool
    given: Canvas = canvas.BLANK
    style: str = ""
    notes: tuple[str, ...] = ()
    compile: bool = False

    def strength_of(self, picture: Picture) -> float:
        """What of the steps is made: all of them, unless a picture is given to begin from."""
        return self.settings.of(picture).strength if self.given.init is not None else 1.0

    def calls(self, pipe: StableDiffusionPipeline, pictures: Sequence[Picture]) -> int:
        """Of the U-Net, for these pictures. Raises InputError for steps that the scheduler cannot make."""
        kinds = Counter((self.settings.of(picture).steps, self.strength_of(picture)) for picture in pictures)
        return sum(pipeline.calls_of(pipe, *kind) * count for kind, count in kinds.items())

    def identity(self, model: BaseModel, *more: Any) -> str:
        """A hash over all that decides the job's pictures: the same command on the same weights has the same."""
        files = {lora.path for picture in self.pictures for lora in picture.loras}
        loras = {str(path): sha256(path) for path in sorted(files) if path.is_file()}
        pictures = [(p.index, p.prompt, p.seed, dict(p.own), [str(lora) for lora in p.loras]) for p in self.pictures]
        given = [used.model_dump() for used in self.given.used]
        given += [self.given.polarity, self.given.control_hash, self.given.control_scale]
        how = [asdict(self.settings), self.scheduler, str(model.dtype), *["compiled"] * self.compile]
        return hashlib.sha256(json.dumps([model.fingerprint, pictures, loras, given, how, *more]).encode()).hexdigest()


def plan(options: GenerateOptions, model: BaseModel, device: torch.device, loras: tuple[LoraFile, ...] = ()) -> Job:
    """Check the options against the model, all problems at once, and note what of the prompts is not read.

    loras: that every picture is drawn with. Raises InputError.
    """
    given = canvas.of(options, device, model.dtype)
    style = styles.chosen(options.style, options.styles)
    pictures = styled(tags.dressed(asked(options), loras), style)
    settings = settings_of(options, model, device, given, style)
    each = list(dict.fromkeys(settings.of(picture) for picture in pictures))
    problems = [
        *(error for w in dict.fromkeys(own.width for own in each) for error in sizes.wrong("--width", w, model)),
        *(error for h in dict.fromkeys(own.height for own in each) for error in sizes.wrong("--height", h, model)),
    ]
    texts = [*(picture.prompt for picture in pictures), *(own.negative_prompt for own in each)]
    problems += unreadable(texts, options.weighting)
    tokens = encoder.measure(texts, model.tokenizer, options.weighting) if not problems else {}
    cut = encoder.cut_prompts(tokens)
    raise_all([*problems, *cut] if options.strict else problems)
    notes = (*(str(error) for error in cut), *in_chunks(tokens))
    fixed = (options.scheduler, device, options.strict, given, style.name, notes, options.compile)
    return Job(pictures, settings, tokens, *fixed)


def settings_of(
    options: GenerateOptions, model: BaseModel, device: torch.device, given: Canvas, style: Style
) -> Settings:
    """How all pictures are drawn that have no settings of their own."""
    width, height = sizes.chosen(options, model, given.size)
    return Settings(
        options.steps,
        options.guidance_scale,
        width,
        height,
        style.behind(options.negative_prompt),
        options.batch_size or pipeline.micro_batch_for(device),
        options.guidance_rescale,
        options.guidance_stop,
        options.strength if given.init is not None else 1.0,
        options.weighting,
    )


def asked(options: GenerateOptions) -> list[Picture]:
    """Every picture that prompts and prompt files ask for; the built-in prompts only if nothing else does."""
    axes = templates.grid(options.grid)
    given = [] if options.from_file is None else prompt_files.read(options.from_file)
    typed = options.prompt if "prompt" in options.model_fields_set or not given else ()
    lines = [*(Line(prompt=prompt) for prompt in typed), *given]
    seeds = options.listed_seeds
    return prompts.planned(lines, options.seed, options.num_images, axes, options.wildcards, seeds)


def styled(pictures: Sequence[Picture], style: Style) -> list[Picture]:
    """The pictures with a style laid around their words; a line's own negative prompt gets the style's as well."""
    if style is styles.PLAIN:
        return list(pictures)
    return [
        replace(
            picture,
            prompt=style.around(picture.prompt),
            unstyled=picture.prompt,
            own={
                name: style.behind(value) if name == "negative_prompt" else value for name, value in picture.own.items()
            },
        )
        for picture in pictures
    ]


def unreadable(texts: Sequence[str], grammar: str) -> list[InputError]:
    """An InputError for each prompt whose weights are a slip, or that compel does not take."""
    if grammar == "a1111":
        heavy = [text for text in dict.fromkeys(texts) if weighting.too_heavy(text)]
        allowed = f"-{weighting.HIGHEST:g} to {weighting.HIGHEST:g}"
        return [InputError(f"a weight in {shorten(text)!r}", where="--prompt", allowed=allowed) for text in heavy]
    return list(filter(None, map(unparsed, dict.fromkeys(texts)))) if grammar == "compel" else []


def unparsed(text: str) -> InputError | None:
    """What compel has against a prompt."""
    try:
        encoder.compel_text(text)
    except Exception as error:  # its grammar raises parser errors of several libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        what = f"{shorten(text)!r} is not understood by compel ({reason})"
        return InputError(what, where="--prompt", fix="Mend it, or take --weighting none.")
    return None


def in_chunks(tokens: dict[str, Tokens]) -> list[str]:
    """A line for each prompt that is longer than the text encoder reads at once: all of it is read."""
    return [
        f"{shorten(prompt)!r} has {found.count} tokens: read in {found.chunks} chunks of {found.limit}, nothing is cut"
        for prompt, found in tokens.items()
        if found.chunks > 1
    ]
