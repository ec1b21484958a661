"""One job on several processes, as torchrun or accelerate starts them: who draws which pictures, and who speaks.

The pictures are divided by their place in the job, so no process needs to hear of another while it draws. What is on
the disk is not drawn again: killed at any moment and started again, with the same or another number of processes, the
job loses and repeats nothing.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from data.atomic_io import file_sha256
from data.errors import EXIT_INTERRUPTED, EXIT_USAGE, InputError, printable, raise_all
from data.progress import ProgressBar
from infer import (
    conditioning_images,
    lora_loading,
    metadata,
    output,
    pipeline,
    png_info,
    prompts,
    resolve_model,
    sampling_loop,
    templates,
    text_encoding,
)
from infer.conditioning_images import ConditioningImages
from infer.config import RANDOM_SEED, GenerateOptions, LoraFile
from infer.output import SavedImage
from infer.pipeline import ImageCallback, ImageDecoder, SafetyChecker, SamplingSettings, no_callback
from infer.prompts import ImageRequest, PromptLine, Style, shorten
from infer.resolve_model import ResolvedModel
from infer.text_encoding import PromptEncoder, TokenCount
from train import model
from train.model import BaseModel

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from data.shapes import Latents

PROCESS_TIMEOUT = timedelta(days=30)  # that one process waits for another's share
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the job. rank: from 0; the first one speaks and lays out the sheet."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def say(self, text: object) -> None:
        if self.is_first:
            print(text)

    def share(self, items: Sequence[Item], together: int) -> list[Item]:
        """What this process draws: every count-th micro-batch of `together` pictures."""
        return [item for place, item in enumerate(items) if place // together % self.count == self.rank]

    def agree(self, decide: Callable[[], Result]) -> Result:
        """What the first process decides, in all of them. An InputError there ends the others as well."""
        if self.count == 1:
            return decide()

        decided: list[Any] = [None]
        if self.is_first:
            try:
                decided = [(decide(), None)]
            except InputError as error:
                decided = [(None, error)]
        distributed.broadcast_object_list(decided, src=0)
        found, error = decided[0]
        if error is not None:
            raise error
        return found

    def wait(self) -> None:
        """Until all have come this far."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def start_processes() -> Iterator[ProcessGroup]:
    """The processes that a launcher started, or this one alone. A mistake is said by the first of them only."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ProcessGroup()
        return

    distributed.init_process_group("gloo", timeout=PROCESS_TIMEOUT)
    rank = distributed.get_rank()
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # launchers set OMP_NUM_THREADS=1 unless told otherwise
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_count))
    try:
        yield ProcessGroup(rank, count, int(os.environ.get("LOCAL_RANK", "0")))
        distributed.destroy_process_group()
    except InputError:
        if rank == 0:
            raise
        sys.exit(EXIT_USAGE)


@dataclass(frozen=True)
class GenerationJob:
    """Everything that was decided before the first picture is drawn. notes: what a person should know of it."""

    pictures: list[ImageRequest]
    settings: SamplingSettings
    tokens: dict[str, TokenCount]
    scheduler: str | None
    device: torch.device
    strict: bool
    given: ConditioningImages = conditioning_images.NO_IMAGES
    style: str = ""
    notes: tuple[str, ...] = ()
    compile: bool = False

    def strength_of(self, picture: ImageRequest) -> float:
        """What of the steps is made: all of them, unless a picture is given to begin from."""
        return self.settings.of(picture).strength if self.given.init is not None else 1.0

    def calls(self, pipe: StableDiffusionPipeline, pictures: Sequence[ImageRequest]) -> int:
        """Of the U-Net, for these pictures. Raises InputError for steps that the scheduler cannot make."""
        kinds = Counter((self.settings.of(picture).steps, self.strength_of(picture)) for picture in pictures)
        return sum(pipeline.count_unet_calls(pipe, *kind) * count for kind, count in kinds.items())

    def identity(self, model: BaseModel, *more: Any) -> str:
        """A hash over all that decides the job's pictures: the same command on the same weights has the same."""
        files = {lora.path for picture in self.pictures for lora in picture.loras}
        loras = {str(path): file_sha256(path) for path in sorted(files) if path.is_file()}
        pictures = [(p.index, p.prompt, p.seed, dict(p.own), [str(lora) for lora in p.loras]) for p in self.pictures]
        given = [used.model_dump() for used in self.given.used]
        given += [self.given.polarity, self.given.control_hash, self.given.control_scale]
        how = [asdict(self.settings), self.scheduler, str(model.dtype), *["compiled"] * self.compile]
        return hashlib.sha256(json.dumps([model.fingerprint, pictures, loras, given, how, *more]).encode()).hexdigest()


def plan_job(
    options: GenerateOptions, model: BaseModel, device: torch.device, loras: tuple[LoraFile, ...] = ()
) -> GenerationJob:
    """Check the options against the model, all problems at once, and note what of the prompts is not read.

    loras: that every picture is drawn with. Raises InputError.
    """
    given = conditioning_images.read_conditioning(options, device, model.dtype)
    style = prompts.choose_style(options.style, options.styles)
    pictures = apply_style(prompts.apply_lora_tags(requested_images(options), loras), style)
    settings = default_settings(options, model, device, given, style)
    each = list(dict.fromkeys(settings.of(picture) for picture in pictures))
    problems = [
        *(
            error
            for w in dict.fromkeys(own.width for own in each)
            for error in conditioning_images.check_side("--width", w, model)
        ),
        *(
            error
            for h in dict.fromkeys(own.height for own in each)
            for error in conditioning_images.check_side("--height", h, model)
        ),
    ]
    texts = [*(picture.prompt for picture in pictures), *(own.negative_prompt for own in each)]
    problems += check_grammar(texts, options.weighting)
    tokens = text_encoding.measure_prompts(texts, model.tokenizer, options.weighting) if not problems else {}
    cut = text_encoding.truncated_prompts(tokens)
    raise_all([*problems, *cut] if options.strict else problems)
    notes = (*(str(error) for error in cut), *chunk_notes(tokens))
    fixed = (options.scheduler, device, options.strict, given, style.name, notes, options.compile)
    return GenerationJob(pictures, settings, tokens, *fixed)


def default_settings(
    options: GenerateOptions, model: BaseModel, device: torch.device, given: ConditioningImages, style: Style
) -> SamplingSettings:
    """How all pictures are drawn that have no settings of their own."""
    width, height = conditioning_images.choose_size(options, model, given.size)
    return SamplingSettings(
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


def requested_images(options: GenerateOptions) -> list[ImageRequest]:
    """Every picture that prompts and prompt files ask for; the built-in prompts only if nothing else does."""
    axes = templates.parse_grid(options.grid)
    given = [] if options.from_file is None else prompts.read_prompt_file(options.from_file)
    typed = options.prompt if "prompt" in options.model_fields_set or not given else ()
    lines = [*(PromptLine(prompt=prompt) for prompt in typed), *given]
    seeds = options.listed_seeds
    return prompts.expand_lines(lines, options.seed, options.num_images, axes, options.wildcards, seeds)


def apply_style(pictures: Sequence[ImageRequest], style: Style) -> list[ImageRequest]:
    """The pictures with a style laid around their words; a line's own negative prompt gets the style's as well."""
    if style is prompts.NO_STYLE:
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


def check_grammar(texts: Sequence[str], grammar: str) -> list[InputError]:
    """An InputError for each prompt whose weights are a slip, or that compel does not take."""
    if grammar == "a1111":
        heavy = [text for text in dict.fromkeys(texts) if text_encoding.has_extreme_weight(text)]
        allowed = f"-{text_encoding.MAX_EMPHASIS:g} to {text_encoding.MAX_EMPHASIS:g}"
        return [InputError(f"a weight in {shorten(text)!r}", where="--prompt", allowed=allowed) for text in heavy]
    return list(filter(None, map(compel_error, dict.fromkeys(texts)))) if grammar == "compel" else []


def compel_error(text: str) -> InputError | None:
    """What compel has against a prompt."""
    try:
        text_encoding.compel_text(text)
    except Exception as error:  # its grammar raises parser errors of several libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        what = f"{shorten(text)!r} is not understood by compel ({reason})"
        return InputError(what, where="--prompt", fix="Mend it, or take --weighting none.")
    return None


def chunk_notes(tokens: dict[str, TokenCount]) -> list[str]:
    """A line for each prompt that is longer than the text encoder reads at once: all of it is read."""
    return [
        f"{shorten(prompt)!r} has {found.count} tokens: read in {found.chunks} chunks of {found.limit}, nothing is cut"
        for prompt, found in tokens.items()
        if found.chunks > 1
    ]


COMPILE_MODES = {"cuda": "reduce-overhead"}  # with CUDA graphs; other devices have none
COMPILE_TOLERANCE = {torch.float32: 1e-3}  # share of the predicted noise that may change: rounding, in another order
COMPILE_TOLERANCE_HALF = 0.05  # the same in 16 bits
ActivateLoras = Callable[["tuple[LoraFile, ...]"], object]


def compile_unet(
    pipe: StableDiffusionPipeline, job: GenerationJob, pictures: Sequence[ImageRequest], wear: ActivateLoras
) -> str:
    """Compile the U-Net in place; the line that says how long it took and how far its predictions moved.

    wear: activates an image's LoRAs, whose weights are part of the graph. Every shape of the job is compiled and
    checked here, before the first image. Raises InputError when compilation fails or the predictions differ.
    """
    from torch._dynamo import config

    shapes = list({shape_of(job, picture): picture for picture in reversed(pictures)}.values())
    config.recompile_limit = max(config.recompile_limit, 2 * len(shapes) + 8)  # dynamo gives up beyond it
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 64 * len(shapes))
    before = [prediction for picture in shapes for prediction in first_predictions(pipe, job, picture, wear)]
    pipe.unet.compile(dynamic=False, fullgraph=True, mode=COMPILE_MODES.get(pipe.device.type))
    start = time.perf_counter()
    try:
        after = [prediction for picture in shapes for prediction in first_predictions(pipe, job, picture, wear)]
    except (RuntimeError, OSError) as error:  # the compiler's own errors are RuntimeErrors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        fix = "Install a C++ compiler if there is none, or leave out --compile."
        raise InputError(f"torch.compile failed ({reason})", where="--compile", fix=fix) from error
    error = max(map(relative_error, before, after))
    limit = COMPILE_TOLERANCE.get(pipe.unet.dtype, COMPILE_TOLERANCE_HALF)
    if not error <= limit:
        what = f"the U-Net compiled by torch {torch.__version__} predicts something else: {error:.2%} relative error"
        raise InputError(what, where="--compile", allowed=f"{limit:.2%}", fix="Leave out --compile.")
    seconds = time.perf_counter() - start
    return (
        f"compile: {len(after)} graphs in {seconds:.1f} s; predicted noise within {error:.1e} of the uncompiled U-Net"
    )


def shape_of(job: GenerationJob, picture: ImageRequest) -> tuple[object, ...]:
    """What an image's graphs depend on: LoRAs, size, text chunks and settings of guidance."""
    own = job.settings.of(picture)
    chunks = max(job.tokens[text].chunks for text in (picture.prompt, own.negative_prompt))
    return picture.loras, own.width, own.height, chunks, own.guidance_scale > 1, own.guidance_stop


def first_predictions(
    pipe: StableDiffusionPipeline, job: GenerationJob, picture: ImageRequest, wear: ActivateLoras
) -> list[Latents]:
    """The U-Net's first predictions of a micro-batch of one image, with and without guidance as the loop needs them."""
    wear(picture.loras)
    own = job.settings.of(picture)
    states = PromptEncoder(pipe, own.weighting).pair([picture.prompt] * own.micro_batch, own.negative_prompt)
    generators = [torch.Generator("cpu").manual_seed(picture.seed) for _ in range(own.micro_batch)]
    parts = sampling_loop.Networks(pipe.unet, pipe.vae, copy.deepcopy(pipe.scheduler), pipe.device)
    return [
        way().clone()
        for way in sampling_loop.unet_calls(parts, sampling_loop.MicroBatch(own, *states, generators, job.given))
    ]


def relative_error(one: Latents, other: Latents) -> float:
    """The norm of the difference over the norm of `one`; inf where it is not a number."""
    share = float((one - other).float().norm() / one.float().norm())
    return share if math.isfinite(share) else math.inf


EXIT_NAN = 1  # exit code when a picture came out as NaN


@dataclass
class GenerationPass:
    """The job's pictures drawn with one set of weights, into one folder."""

    name: str
    model: BaseModel
    folder: Path
    pictures: Sequence[ImageRequest]
    begun: dict[Path, SavedImage] = field(default_factory=dict)  # drawn by this process
    known: dict[Path, SavedImage] = field(default_factory=dict)  # drawn by another, or before

    def path_of(self, picture: ImageRequest) -> Path:
        return self.folder / picture.file_name

    @property
    def finished(self) -> list[SavedImage]:
        """What is on the disk: the rename of a picture that was begun may or may not have happened."""
        return [self.result(picture) for picture in self.pictures if self.path_of(picture).exists()]

    def result(self, picture: ImageRequest) -> SavedImage:
        path = self.path_of(picture)
        if path not in self.begun and path not in self.known:
            self.known[path] = output.load_saved_image(path, picture)
        return self.begun.get(path) or self.known[path]


def run_generation(options: GenerateOptions) -> int:
    """Draw what the options ask for; returns the exit code. Raises InputError."""
    if options.style == prompts.LIST_STYLES:
        print(prompts.list_styles(options.styles))
        return 0
    with start_processes() as us:
        if options.params_from is None:
            return generate(options, us)
        options, found = png_info.options_from_image(options)
        us.say(f"settings: as {found.program} wrote them into {printable(options.params_from)}")
        for line in found.said:
            warn(line, us)
        return generate(options, us, found)


def generate(options: GenerateOptions, us: ProcessGroup, found: png_info.ImageSettings | None = None) -> int:
    """As run(). found: the picture whose settings the options were taken from."""
    chosen = resolve_model.resolve(options)
    us.say(chosen.said)
    options = with_seed(options, us)
    device = pipeline.choose_device(options.device, us.local_rank)
    tuned, base = load_models(chosen, pipeline.choose_dtype(options.dtype, device))
    job = plan_job(options, tuned, device, chosen.loras)
    for note in job.notes:
        warn(note, us)
    checker = None if options.safety_checker is None else pipeline.load_safety_checker(options, device)
    identity = job.identity(tuned, options.compare_base)
    folder = us.agree(lambda: open_folder(options, identity))
    passes = make_passes(chosen, job, folder, tuned, base if options.compare_base else None)
    code = run_passes(job, passes, folder, us, checker)
    if code in (0, EXIT_NAN) and us.is_first and found is not None and found.recipe is not None:
        print(png_info.compare_with_original(passes[0].finished[0], found.recipe, options))
    return code


def open_folder(options: GenerateOptions, identity: str) -> Path:
    """Where the pictures go; says so if some are there already."""
    folder = output.open_output_folder(options.outdir, identity, resume=options.resume)
    there = len([*folder.glob("[0-9]*.png"), *folder.glob("base/[0-9]*.png")])
    if there:
        print(f"going on in {printable(folder)}: {there} pictures are there")
    return folder


def make_passes(
    chosen: ResolvedModel, job: GenerationJob, folder: Path, tuned: BaseModel, base: BaseModel | None
) -> list[GenerationPass]:
    """What is drawn with which model; base: what the tuned one is compared with, if it is."""
    passes = [GenerationPass("tuned" if chosen.is_tuned else "drawing", tuned, folder, job.pictures)]
    if base is not None:
        passes.append(GenerationPass("base", base, folder / "base", [replace(each, loras=()) for each in job.pictures]))
    return passes


def with_seed(options: GenerateOptions, us: ProcessGroup) -> GenerateOptions:
    """With the seed that -1 stands for, the same in every process."""
    if options.seed != RANDOM_SEED or options.seeds:
        return options
    seed = us.agree(prompts.random_seed)
    us.say(f"seed: {seed}")
    return options.model_copy(update={"seed": seed})


def load_models(chosen: ResolvedModel, dtype: torch.dtype) -> tuple[BaseModel, BaseModel]:
    """The model to draw with, and its base: one of its own, because a LoRA changes the networks it is laid over."""
    tuned = model.load_model(chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
    base = model.load_model(chosen.base or chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
    return replace(tuned, zero_terminal_snr=chosen.zero_terminal_snr), base


def run_passes(
    job: GenerationJob,
    passes: Sequence[GenerationPass],
    folder: Path,
    us: ProcessGroup,
    checker: SafetyChecker | None,
    watch: ImageCallback = no_callback,
) -> int:
    """Draw every pass, then lay out the sheet. What is finished stays, whatever ends the job."""
    try:
        for each in passes:
            run_pass(job, each, us, checker, watch)
            gc.collect()  # the networks of this pass go before the next ones come
        us.wait()
    except KeyboardInterrupt:
        if us.is_first:
            kept, total = sum(len(each.finished) for each in passes), len(job.pictures) * len(passes)
            on = f"; the same command with --outdir {printable(folder)} goes on" if kept else ""
            print(f"\nstopped: {kept} of {total} pictures are kept in {printable(folder)}{on}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if us.is_first:
            output.write_log(folder, [done for each in passes for done in each.finished])
    return finish_passes(passes, folder) if us.is_first else 0


def finish_passes(passes: Sequence[GenerationPass], folder: Path) -> int:
    """The sheet, and what became of the pictures; the exit code."""
    all_done = {each.name: each.finished for each in passes}
    sheet = output.write_contact_sheet(folder, all_done)
    output.mark_finished(folder)
    for done in (done for finished in all_done.values() for done in finished):
        if done.recipe.verdict == "nan":
            warn(
                f"{printable(done.path)}: no picture, the numbers broke down (NaN). Try --dtype fp32 or less guidance."
            )
        if done.recipe.verdict == "flagged":
            warn(f"{printable(done.path)}: flagged by the safety checker ({', '.join(done.recipe.concepts)})")
        if done.recipe.decoded_again:
            warn(f"{printable(done.path)}: decoded once more in fp32, the numbers broke down in {done.recipe.dtype}")
    print(summary_line(passes, sheet))
    return EXIT_NAN if any(done.recipe.verdict == "nan" for finished in all_done.values() for done in finished) else 0


def summary_line(passes: Sequence[GenerationPass], sheet: Path) -> str:
    """Where to look."""
    if len(passes) > 1:
        return f"base and tuned side by side: {printable(sheet)}"
    finished = passes[0].finished
    count, first = len(finished), finished[0].path
    pictures = f"1 picture: {printable(first)}" if count == 1 else f"{count} pictures in {printable(first.parent)}"
    return f"{pictures}, labelled on {printable(sheet)}"


def run_pass(
    job: GenerationJob,
    each: GenerationPass,
    us: ProcessGroup,
    checker: SafetyChecker | None,
    watch: ImageCallback = no_callback,
) -> None:
    """Draw this process' share of the pictures that are missing; each is written as soon as it is finished."""
    todo = us.share(each.pictures, job.settings.micro_batch)
    todo = [picture for picture in todo if not each.path_of(picture).exists()]
    if not todo:
        return
    pipe = pipeline.build_pipeline(each.model, job.scheduler, job.device)
    conditioning_images.check_unet(job.given, pipe.unet)
    total = job.calls(pipe, todo)
    files = list(dict.fromkeys(file for picture in each.pictures for file in picture.loras))
    used = load_pass_loras(pipe, files, job, us)
    shared = output.shared_metadata(pipe, each.model, [], job.scheduler, job.given)
    shared |= {"style": job.style, "safety": "off" if checker is None else "on"}
    wear = partial(lora_loading.activate_loras, pipe, files)
    if job.compile:
        us.say(compile_unet(pipe, job, todo, wear))
        shared |= {"compiled": True}
    with ProgressBar(
        total=total, desc=each.name, unit="step", leave=True, dynamic_ncols=True, disable=not us.is_first
    ) as bar:
        started_at = time.perf_counter()
        drawing = pipeline.generate_images(
            pipe,
            todo,
            job.settings,
            bar.update,
            watch=watch,
            given=job.given,
            decoder=ImageDecoder(pipe.vae, checker),
            wear=wear,
        )
        for drawn in drawing:
            worn = {"loras": tuple(used[file] for file in drawn.picture.loras)}
            recipe = output.build_metadata({**shared, **worn}, drawn, job.tokens)
            path = each.path_of(drawn.picture)
            each.begun[path] = SavedImage(path, drawn.picture, recipe, time.perf_counter() - started_at)
            metadata.write_png(path, drawn.image, recipe)
            started_at = time.perf_counter()


def load_pass_loras(
    pipe: object, files: Sequence[lora_loading.LoraFile], job: GenerationJob, us: ProcessGroup
) -> dict[lora_loading.LoraFile, metadata.LoraUsed]:
    """Every LoRA onto the networks, with the proof of what it does said; returns what the recipes say of each."""
    proofs = lora_loading.load_loras(pipe, files, strict=job.strict)  # pyright: ignore[reportArgumentType]
    for proof in proofs:
        us.say(proof)
        if proof.unused:
            what = f"{len(proof.unused)} tensors find no layer: {lora_loading.join_keys(proof.unused)}"
            warn(f"{printable(proof.file.path)}: {what}", us)
    return {proof.file: output.lora_used(proof) for proof in proofs}


def warn(what: object, us: ProcessGroup | None = None) -> None:
    """One line for people on stderr, away from what a program may read on stdout."""
    if us is None or us.is_first:
        print(f"warning: {what}", file=sys.stderr)
