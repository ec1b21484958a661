"""What generate.py does, from options to files: plan and check, generate image by image, write the contact sheet.

Several processes, as torchrun or accelerate start them, share one job by the images' positions in it, so none needs to
hear of another on the way. Images that are on the disk are not generated again: killed at any moment and started again,
with the same or another number of processes, a job loses and repeats nothing.
"""

from __future__ import annotations

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
from typing import Any, TypeVar

import torch
from torch import distributed

from data.atomic_io import file_sha256
from data.errors import EXIT_INTERRUPTED, EXIT_USAGE, InputError, printable, raise_all
from data.progress import ProgressBar
from infer import lora_loading, output, pipeline, png_info, prompts, sampling_loop, schedulers, text_encoding
from infer.conditioning_images import ConditioningImages, check_side, check_unet, choose_size, read_conditioning
from infer.config import RANDOM_SEED, GenerateOptions, LoraFile
from infer.metadata import LoraUsed, read_metadata, write_png
from infer.output import SavedImage
from infer.pipeline import ImageCallback, ImageDecoder, SafetyChecker
from infer.prompt_files import read_prompt_file
from infer.prompts import ImageRequest, Style, shorten
from infer.resolve_model import ResolvedModel, recommended, resolve
from infer.sampling_loop import SamplingSettings
from infer.text_encoding import PromptEncoder, TokenCount
from train.model import BaseModel, load_model

EXIT_NAN = 1  # an image came out as NaN
PROCESS_TIMEOUT = timedelta(days=30)  # that one process waits for another's share
COMPILE_MODES = {"cuda": "reduce-overhead"}  # with CUDA graphs: a step is one launch
COMPILE_TOLERANCE = {torch.float32: 1e-3}  # relative change of latents: rounding in another order
COMPILE_TOLERANCE_HALF = 0.05
Item = TypeVar("Item")
Result = TypeVar("Result")


# ---- planning


@dataclass(frozen=True)
class GenerationJob:
    """Everything that is decided before the first image. notes: what the user should know. summary: values in force."""

    options: GenerateOptions
    requests: list[ImageRequest]
    settings: SamplingSettings
    tokens: dict[str, TokenCount]
    device: torch.device
    conditioning: ConditioningImages
    style: str
    notes: tuple[str, ...]
    summary: str

    def calls(self, pipe: Any, requests: Sequence[ImageRequest]) -> int:
        """U-Net calls for these images. Raises InputError for steps that the scheduler cannot make."""
        kinds = Counter((own.steps, own.strength) for own in map(self.settings.of, requests))
        return sum(sampling_loop.count_unet_calls(pipe, *kind) * count for kind, count in kinds.items())

    def identity(self, model: BaseModel, compare_base: bool) -> str:
        """A hash over all that decides the job's images: the same command with the same weights has the same."""
        files = {lora.path for request in self.requests for lora in request.loras}
        loras = {str(path): file_sha256(path) for path in sorted(files) if path.is_file()}
        requests = [(r.index, r.prompt, r.seed, dict(r.own), list(map(str, r.loras))) for r in self.requests]
        inputs = [used.model_dump() for used in self.conditioning.used]
        control = [self.conditioning.polarity, self.conditioning.control_hash, self.conditioning.control_scale]
        how = [asdict(self.settings), self.options.scheduler, str(model.dtype), self.options.compile, compare_base]
        decisive = [model.fingerprint, requests, loras, inputs, control, how]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def plan_job(
    options: GenerateOptions, model: BaseModel, device: torch.device, loras: tuple[LoraFile, ...] = ()
) -> GenerationJob:
    """Check the options against the model, all problems at once. loras: of every image. Raises InputError."""
    conditioning = read_conditioning(options, device, model.dtype)
    style = prompts.choose_style(options.style, options.styles)
    lines = read_prompt_file(options.from_file) if options.from_file else []
    requests = prompts.apply_style(prompts.apply_lora_tags(prompts.requested_images(options, lines), loras), style)
    settings = choose_settings(options, model, device, conditioning, style)
    each = list(dict.fromkeys(settings.of(request) for request in requests))
    sides = [(flag, side) for own in each for flag, side in (("--width", own.width), ("--height", own.height))]
    problems = [error for flag, side in dict.fromkeys(sides) for error in check_side(flag, side, model)]
    texts = [*(request.prompt for request in requests), *(own.negative_prompt for own in each)]
    problems += text_encoding.check_grammar(texts, options.weighting)
    tokens = text_encoding.measure_prompts(texts, model.tokenizer, options.weighting) if not problems else {}
    truncated = text_encoding.truncated_prompts(tokens)
    raise_all([*problems, *truncated] if options.strict else problems)
    notes = [str(error) for error in truncated]
    notes += [
        f"{shorten(prompt)!r} has {found.count} tokens: encoded as {found.chunks} chunks of {found.limit}, uncut"
        for prompt, found in tokens.items()
        if found.chunks > 1
    ]
    scheduler = schedulers.build_scheduler(options.scheduler, model.scheduler_config)
    sampler = schedulers.a1111_name(scheduler, options.scheduler)
    summary = describe_values(options, settings, sampler)
    return GenerationJob(options, requests, settings, tokens, device, conditioning, style.name, tuple(notes), summary)


def choose_settings(
    options: GenerateOptions, model: BaseModel, device: torch.device, conditioning: ConditioningImages, style: Style
) -> SamplingSettings:
    """The settings of all images that have none of their own: as typed, else as they suit the model."""
    suited = recommended(model.layout)
    width, height = choose_size(options, suited.size, model.step, conditioning.size)
    return SamplingSettings(
        options.steps or suited.steps,
        suited.guidance_scale if options.guidance_scale is None else options.guidance_scale,
        width, height, style.extend_negative(options.negative_prompt),
        options.batch_size or pipeline.micro_batch_for(device.type), options.guidance_rescale, options.guidance_stop,
        options.strength if conditioning.init is not None else 1.0, options.weighting,
    )  # fmt: skip


def describe_values(options: GenerateOptions, settings: SamplingSettings, sampler: str) -> str:
    """The line that says which values are in force, and which of them were chosen by the model."""
    size = f"{settings.width} x {settings.height}"
    values = f"{settings.steps} steps, guidance {settings.guidance_scale:g}, {sampler}, {size}"
    names = ("steps", "guidance_scale", "scheduler")
    chosen = [name.replace("_scale", "") for name in names if getattr(options, name) is None]
    chosen += [] if options.width or options.height or options.aspect else ["size"]
    return f"settings: {values}" + (f" ({', '.join(chosen)}: the model's defaults)" if chosen else "")


# ---- running


@dataclass
class GenerationPass:
    """The job's images generated with one set of weights, into one folder."""

    name: str
    model: BaseModel
    folder: Path
    requests: Sequence[ImageRequest]
    saved: dict[Path, SavedImage] = field(default_factory=dict)

    def path_of(self, request: ImageRequest) -> Path:
        return self.folder / request.file_name

    @property
    def finished(self) -> list[SavedImage]:
        """What is on the disk: the rename of an image in `saved` may or may not have happened."""
        for request in self.requests:
            path = self.path_of(request)
            if path not in self.saved and path.exists():
                self.saved[path] = SavedImage(path, request, read_metadata(path), None)
        return [self.saved[path] for path in map(self.path_of, self.requests) if path.exists()]


def run_generation(options: GenerateOptions) -> int:
    """Generate what the options ask for; returns the exit code. Raises InputError."""
    if options.style == prompts.LIST_STYLES:
        print(prompts.list_styles(options.styles))
        return 0
    with start_processes() as group:
        original = None
        if options.params_from is not None:
            options, found = png_info.options_from_image(options)
            original = found.metadata
            group.say(f"settings: as {found.program} wrote them into {printable(options.params_from)}")
            for note in found.notes:
                warn(note, group)
        return generate(options, group, original)


def generate(options: GenerateOptions, group: ProcessGroup, original: Any = None) -> int:
    """original: the metadata of the image that --params-from repeats, if it is ours."""
    chosen = resolve(options)
    group.say(chosen.description)
    if options.seed == RANDOM_SEED and not options.seeds:
        options = options.model_copy(update={"seed": group.agree(prompts.random_seed)})
        group.say(f"seed: {options.seed}")
    device = pipeline.choose_device(options.device, group.local_rank)
    dtype = pipeline.choose_dtype(options.dtype, device)
    tuned = load_model(chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
    tuned = replace(tuned, zero_terminal_snr=chosen.zero_terminal_snr)
    base = None  # with networks of its own: a LoRA changes those it is loaded onto
    if options.compare_base:
        base = load_model(chosen.base or chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
    job = plan_job(options, tuned, device, chosen.loras)
    group.say(job.summary)
    for note in job.notes:
        warn(note, group)
    checker = pipeline.load_safety_checker(options, device)
    identity = job.identity(tuned, options.compare_base)
    folder = group.agree(lambda: open_folder(options, identity))
    passes = make_passes(chosen, job, folder, tuned, base)
    code = run_passes(job, passes, folder, group, checker)
    if code in (0, EXIT_NAN) and group.is_first and original is not None and options.params_from is not None:
        print(png_info.compare_with_original(passes[0].finished[0], original, options.params_from))
    return code


def open_folder(options: GenerateOptions, identity: str) -> Path:
    folder = output.open_output_folder(options.outdir, identity, resume=options.resume)
    there = len([*folder.glob("[0-9]*.png"), *folder.glob("base/[0-9]*.png")])
    if there:
        print(f"resuming {printable(folder)}: {there} images are finished")
    return folder


def make_passes(
    chosen: ResolvedModel, job: GenerationJob, folder: Path, tuned: BaseModel, base: BaseModel | None
) -> list[GenerationPass]:
    """What is generated with which model; base: what the tuned one is compared with, if it is."""
    passes = [GenerationPass("tuned" if chosen.is_tuned else "generating", tuned, folder, job.requests)]
    if base is not None:
        plain = [replace(request, loras=()) for request in job.requests]
        passes.append(GenerationPass("base", base, folder / "base", plain))
    return passes


def run_passes(
    job: GenerationJob,
    passes: Sequence[GenerationPass],
    folder: Path,
    group: ProcessGroup,
    checker: SafetyChecker | None = None,
    on_step: ImageCallback = lambda requests, latents: None,
) -> int:
    """Run every pass, then write the sheet; returns the exit code. What is finished stays, however the job ends."""
    try:
        for each in passes:
            run_pass(job, each, group, checker, on_step)
            gc.collect()  # frees the networks of this pass before the next ones are loaded
        group.wait()
    except KeyboardInterrupt:
        if group.is_first:
            done, total = sum(len(each.finished) for each in passes), len(job.requests) * len(passes)
            resume = f"; the same command with --outdir {printable(folder)} resumes" if done else ""
            print(f"\nstopped: {done} of {total} images are finished in {printable(folder)}{resume}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if group.is_first:
            output.write_log(folder, [done for each in passes for done in each.finished])
    return report_passes(passes, folder) if group.is_first else 0


def run_pass(
    job: GenerationJob, each: GenerationPass, group: ProcessGroup, checker: SafetyChecker | None, on_step: ImageCallback
) -> None:
    """Generate this process' share of the missing images; each is written as soon as it is finished."""
    share = group.share(each.requests, job.settings.micro_batch)
    todo = [request for request in share if not each.path_of(request).exists()]
    if not todo:
        return
    pipe = pipeline.build_pipeline(each.model, job.options.scheduler, job.device)
    check_unet(job.conditioning, pipe.unet)
    total = job.calls(pipe, todo)
    files = list(dict.fromkeys(file for request in each.requests for file in request.loras))
    used = load_pass_loras(pipe, files, job.options.strict, group) if files else {}
    activate = partial(lora_loading.activate_loras, pipe, files) if files else lambda loras: None
    shared = output.shared_metadata(pipe, each.model, [], job.options.scheduler, job.conditioning)
    shared |= {"style": job.style, "safety": "on" if checker else "off", "compiled": job.options.compile}
    if job.options.compile:
        group.say(compile_unet(pipe, job, todo, activate))
    how = {"callback": on_step, "conditioning": job.conditioning, "decoder": ImageDecoder(pipe.vae, checker)}
    with ProgressBar(total=total, desc=each.name, unit="step", leave=True, disable=not group.is_first) as bar:
        started = time.perf_counter()
        for image in pipeline.generate_images(pipe, todo, job.settings, bar.update, activate=activate, **how):
            loras = tuple(used[file] for file in image.request.loras)
            info = output.build_metadata({**shared, "loras": loras}, image, job.tokens)
            path = each.path_of(image.request)
            each.saved[path] = SavedImage(path, image.request, info, time.perf_counter() - started)
            write_png(path, image.image, info)
            started = time.perf_counter()


def load_pass_loras(
    pipe: Any, files: Sequence[LoraFile], strict: bool, group: ProcessGroup
) -> dict[LoraFile, LoraUsed]:
    """Load every LoRA and print what it does; returns what the metadata says of each."""
    effects = lora_loading.load_loras(pipe, files, strict=strict)
    for effect in effects:
        group.say(effect)
        if effect.unused:
            keys = lora_loading.join_keys(effect.unused)
            warn(f"{printable(effect.file.path)}: {len(effect.unused)} tensors match no layer: {keys}", group)
    return {effect.file: output.lora_used(effect) for effect in effects}


def report_passes(passes: Sequence[GenerationPass], folder: Path) -> int:
    """Write the contact sheet, warn about broken and flagged images, say where to look; returns the exit code."""
    saved = {each.name: each.finished for each in passes}
    sheet = output.write_contact_sheet(folder, saved)
    (folder / output.JOB_FILE).unlink(missing_ok=True)
    everything = [done for finished in saved.values() for done in finished]
    for done in everything:
        path, info = printable(done.path), done.metadata
        if info.verdict == "nan":
            warn(f"{path}: no image, the numbers broke down (NaN). Try --dtype fp32 or less guidance.")
        if info.verdict == "flagged":
            warn(f"{path}: flagged by the safety checker ({', '.join(info.concepts)})")
        if info.decoded_again:
            warn(f"{path}: decoded again in fp32, the numbers broke down in {info.dtype}")
    if len(passes) > 1:
        print(f"base and tuned side by side: {printable(sheet)}")
    elif len(everything) == 1:
        print(f"1 image: {printable(everything[0].path)}, labelled in {printable(sheet)}")
    else:
        print(f"{len(everything)} images in {printable(folder)}, labelled in {printable(sheet)}")
    return EXIT_NAN if any(done.metadata.verdict == "nan" for done in everything) else 0


def warn(what: object, group: ProcessGroup | None = None) -> None:
    if group is None or group.is_first:
        print(f"warning: {what}", file=sys.stderr)


# ---- torch.compile


def compile_unet(
    pipe: Any, job: GenerationJob, requests: Sequence[ImageRequest], activate: Callable[[tuple[LoraFile, ...]], object]
) -> str:
    """Compile the U-Net in place and check, for every shape of the job, that it still computes the same.

    Returns a line for the user. Shapes never change within a job, because the micro-batch is fixed. Text encoder and
    VAE stay as they are. Raises InputError when compilation fails or the results differ.
    """
    from torch._dynamo import config

    shapes: dict[object, ImageRequest] = {}
    for request in requests:
        own = job.settings.of(request)
        chunks = max(job.tokens[text].chunks for text in (request.prompt, own.negative_prompt))
        shapes.setdefault((request.loras, own.width, own.height, chunks, own.guidance_scale > 1), request)

    def sample_all() -> list[torch.Tensor]:
        """Latents after a few steps, with and without guidance where the job has both."""
        found = []
        for request in shapes.values():
            activate(request.loras)
            own = job.settings.of(request)
            few = replace(own, steps=min(own.steps, 4), guidance_stop=1 if own.guidance_stop == 1 else 0.5)
            embeds = PromptEncoder(pipe, own.weighting).pair([request.prompt] * own.micro_batch, own.negative_prompt)
            one = [request] * own.micro_batch
            latents = pipeline.sample_micro_batch(pipe, one, few, embeds, conditioning=job.conditioning)
            found.append(latents.float().clone())
        return found

    config.recompile_limit = max(config.recompile_limit, 2 * len(shapes) + 8)  # dynamo gives up beyond it
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 64 * len(shapes))
    before = sample_all()
    pipe.unet.compile(dynamic=False, fullgraph=True, mode=COMPILE_MODES.get(pipe.device.type))
    start = time.perf_counter()
    try:
        after = sample_all()
    except (RuntimeError, OSError) as error:  # the compiler's own errors are RuntimeErrors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        fix = "Install a C++ compiler if there is none, or leave out --compile."
        raise InputError(f"torch.compile failed ({reason})", where="--compile", fix=fix) from error
    errors = [float((one - other).norm() / one.norm()) for one, other in zip(before, after, strict=True)]
    worst = max(error if math.isfinite(error) else math.inf for error in errors)
    limit = COMPILE_TOLERANCE.get(pipe.unet.dtype, COMPILE_TOLERANCE_HALF)
    if worst > limit:
        what = f"the U-Net compiled by torch {torch.__version__} computes something else: {worst:.2%} relative error"
        raise InputError(what, where="--compile", allowed=f"{limit:.2%}", fix="Leave out --compile.")
    seconds = time.perf_counter() - start
    return f"compile: {len(shapes)} shapes in {seconds:.1f} s; latents within {worst:.1e} of the uncompiled U-Net's"


# ---- several processes


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the job. rank: from 0; the first one prints and writes the sheet."""

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
        """What this process does: every count-th micro-batch of `together` images."""
        return [item for place, item in enumerate(items) if place // together % self.count == self.rank]

    def agree(self, decide: Callable[[], Result]) -> Result:
        """What the first process decides, in all of them. An InputError there ends the others as well."""
        if self.count == 1:
            return decide()
        decided: list[Any] = [None]
        if self.is_first:
            try:
                decided = [decide()]
            except InputError as error:
                decided = [error]
        distributed.broadcast_object_list(decided, src=0)
        if isinstance(decided[0], InputError):
            raise decided[0]
        return decided[0]

    def wait(self) -> None:
        if self.count > 1:
            distributed.barrier()


@contextmanager
def start_processes() -> Iterator[ProcessGroup]:
    """The processes that a launcher started, or this one alone. Only the first of them reports an InputError."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ProcessGroup()
        return
    distributed.init_process_group("gloo", timeout=PROCESS_TIMEOUT)
    rank, local_count = distributed.get_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # launchers set OMP_NUM_THREADS=1 unless told otherwise
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_count))
    try:
        yield ProcessGroup(rank, count, int(os.environ.get("LOCAL_RANK", "0")))
        distributed.destroy_process_group()
    except InputError:
        if rank == 0:
            raise
        sys.exit(EXIT_USAGE)
