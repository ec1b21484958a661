"""The job of generate.py from options to files: weights, checks, pictures with their recipes, and the sheets."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from data.errors import INTERRUPTED, InputError, raise_all, show
from infer import loras, metadata, outputs, pipeline, prompt_files, prompts, recipes, replay, source, templates
from infer.config import RANDOM_SEED, GenerateOptions, LoraFile
from infer.outputs import Finished
from infer.pipeline import Settings
from infer.prompt_files import Line
from infer.prompts import Picture, Tokens
from train import base_model
from train.base_model import BaseModel

BROKEN = 1  # exit code when a picture came out as NaN


@dataclass(frozen=True)
class Job:
    """Everything that was decided before the first picture is drawn."""

    pictures: list[Picture]
    settings: Settings
    tokens: dict[str, Tokens]
    scheduler: str | None
    device: torch.device
    strict: bool


@dataclass
class Pass:
    """The job's pictures drawn with one set of weights, into one folder."""

    name: str
    model: BaseModel
    folder: Path
    loras: Sequence[LoraFile] = ()
    begun: list[Finished] = field(default_factory=list)

    @property
    def finished(self) -> list[Finished]:
        """What is on the disk: the rename of a picture may or may not have happened when Ctrl-C came."""
        return [done for done in self.begun if done.path.exists()]


def run(options: GenerateOptions) -> int:
    """Draw what the options ask for; returns the exit code. Raises InputError."""
    if options.params_from is None:
        return draw(options)
    options, found = replay.over(options)
    print(f"settings: as {found.program} wrote them into {show(options.params_from)}")
    for line in found.said:
        warn(line)
    return draw(options, found)


def draw(options: GenerateOptions, found: replay.Found | None = None) -> int:
    """As run(). found: the picture whose settings the options were taken from."""
    chosen = source.choose(options)
    print(chosen.said)
    if options.seed == RANDOM_SEED:
        options = options.model_copy(update={"seed": prompts.random_seed()})
        print(f"seed: {options.seed}")
    device = pipeline.choose_device(options.device)
    dtype = pipeline.choose_dtype(options.dtype, device)
    tuned = base_model.load(chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
    tuned = replace(tuned, zero_terminal_snr=chosen.zero_terminal_snr)
    # A model of its own: a LoRA changes the networks it is laid over.
    base = base_model.load(chosen.base or chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
    job = plan(options, tuned, device)
    folder = outputs.folder_for(options.outdir)
    passes = [Pass("tuned" if chosen.is_tuned else "drawing", tuned, folder, chosen.loras)]
    if options.compare_base:
        passes.append(Pass("base", base, folder / "base"))
    code = carry_out(job, passes, folder)
    if found is not None and found.recipe is not None and passes[0].finished:
        print(replay.compared(passes[0].finished[0], found.recipe, options))
    return code


def plan(options: GenerateOptions, model: BaseModel, device: torch.device) -> Job:
    """Check the options against the model, all problems at once, and say what of the prompts is not read."""
    width, height = options.width or model.sample_size, options.height or model.sample_size
    micro_batch = pipeline.micro_batch_for(device)
    settings = Settings(options.steps, options.guidance_scale, width, height, options.negative_prompt, micro_batch)
    pictures = asked(options)
    each = list(dict.fromkeys(settings.of(picture) for picture in pictures))
    problems = [
        *(error for width in dict.fromkeys(own.width for own in each) for error in wrong_side("--width", width, model)),
        *(error for h in dict.fromkeys(own.height for own in each) for error in wrong_side("--height", h, model)),
    ]
    texts = [*(picture.prompt for picture in pictures), *(own.negative_prompt for own in each)]
    tokens = prompts.measure(texts, model.tokenizer)
    cut = prompts.cut_prompts(tokens)
    raise_all([*problems, *cut] if options.strict else problems)
    for problem in cut:
        warn(problem)
    return Job(pictures, settings, tokens, options.scheduler, device, options.strict)


def asked(options: GenerateOptions) -> list[Picture]:
    """Every picture that prompts and prompt files ask for; the built-in prompts only if nothing else does."""
    axes = templates.grid(options.grid)
    given = [] if options.from_file is None else prompt_files.read(options.from_file)
    typed = options.prompt if "prompt" in options.model_fields_set or not given else ()
    lines = [*(Line(prompt=prompt) for prompt in typed), *given]
    return prompts.planned(lines, options.seed, options.num_images, axes, options.wildcards)


def wrong_side(flag: str, side: int, model: BaseModel) -> list[InputError]:
    """An InputError for a side that the model's networks cannot halve as often as they do."""
    if side % model.step == 0:
        return []
    below = side // model.step * model.step
    near = f"{below} or {below + model.step}" if below else f"{model.step}"
    return [InputError(f"{side} is not a multiple of {model.step} pixels", where=flag, fix=f"Take {near}.")]


def carry_out(job: Job, passes: Sequence[Pass], folder: Path) -> int:
    """Draw every pass, then lay out the sheet. What is finished stays, whatever ends the job."""
    try:
        for each in passes:
            draw_pass(job, each)
            gc.collect()  # the networks of this pass go before the next ones come
    except KeyboardInterrupt:
        kept, total = sum(len(each.finished) for each in passes), len(job.pictures) * len(passes)
        print(f"\nstopped: {kept} of {total} pictures are kept in {show(folder)}", file=sys.stderr)
        return INTERRUPTED
    finally:
        outputs.write_log(folder, [done for each in passes for done in each.finished])
    sheet = outputs.lay_out(folder, {each.name: each.finished for each in passes})
    broken = [done for each in passes for done in each.finished if done.recipe.verdict == "nan"]
    for done in broken:
        warn(f"{show(done.path)}: no picture, the numbers broke down (NaN). Try --dtype fp32 or less guidance.")
    print(last_line(passes, sheet))
    return BROKEN if broken else 0


def last_line(passes: Sequence[Pass], sheet: Path) -> str:
    """Where to look."""
    if len(passes) > 1:
        return f"base and tuned side by side: {show(sheet)}"
    count, first = len(passes[0].finished), passes[0].finished[0].path
    pictures = f"1 picture: {show(first)}" if count == 1 else f"{count} pictures in {show(first.parent)}"
    return f"{pictures}, labelled on {show(sheet)}"


def draw_pass(job: Job, each: Pass) -> None:
    """Draw the job's pictures with one set of weights; each is written as soon as it is finished."""
    pipe = pipeline.build(each.model, job.scheduler, job.device)
    proofs = loras.attach(pipe, each.loras, strict=job.strict)
    for proof in proofs:
        print(proof)
        if proof.unused:
            warn(f"{show(proof.file.path)}: {len(proof.unused)} tensors find no layer: {loras.named(proof.unused)}")
    shared = recipes.shared(pipe, each.model, proofs, job.scheduler)
    pictures_with = Counter(job.settings.of(picture).steps for picture in job.pictures)
    total = sum(pipeline.calls_of(pipe, steps) * count for steps, count in pictures_with.items())
    with tqdm(total=total, desc=each.name, unit="step", dynamic_ncols=True) as bar:
        started = time.perf_counter()
        for drawn in pipeline.draw(pipe, job.pictures, job.settings, bar.update):
            recipe = recipes.of(shared, drawn, job.tokens)
            path = each.folder / drawn.picture.file_name
            each.begun.append(Finished(path, drawn.picture, recipe, time.perf_counter() - started))
            metadata.write(path, drawn.image, recipe)
            started = time.perf_counter()


def warn(what: object) -> None:
    """One line for people on stderr, away from what a program may read on stdout."""
    print(f"warning: {what}", file=sys.stderr)
