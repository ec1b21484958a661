"""The job of generate.py from options to files: weights, checks, pictures with their recipes, and the sheets."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from data.errors import INTERRUPTED, show
from infer import (
    canvas,
    decoding,
    loras,
    metadata,
    outputs,
    pipeline,
    planning,
    prompts,
    recipes,
    replay,
    source,
    styles,
)
from infer.config import RANDOM_SEED, GenerateOptions
from infer.decoding import Checker, Decoder
from infer.outputs import Finished
from infer.pipeline import Watch, unwatched
from infer.planning import Job
from infer.processes import Processes, started
from infer.prompts import Picture
from infer.source import Source
from train import base_model
from train.base_model import BaseModel

BROKEN = 1  # exit code when a picture came out as NaN


@dataclass
class Pass:
    """The job's pictures drawn with one set of weights, into one folder."""

    name: str
    model: BaseModel
    folder: Path
    pictures: Sequence[Picture]
    begun: dict[Path, Finished] = field(default_factory=dict)  # drawn by this process
    known: dict[Path, Finished] = field(default_factory=dict)  # drawn by another, or before

    def path_of(self, picture: Picture) -> Path:
        return self.folder / picture.file_name

    @property
    def finished(self) -> list[Finished]:
        """What is on the disk: the rename of a picture that was begun may or may not have happened."""
        return [self.result(picture) for picture in self.pictures if self.path_of(picture).exists()]

    def result(self, picture: Picture) -> Finished:
        path = self.path_of(picture)
        if path not in self.begun and path not in self.known:
            self.known[path] = outputs.found(path, picture)
        return self.begun.get(path) or self.known[path]


def run(options: GenerateOptions) -> int:
    """Draw what the options ask for; returns the exit code. Raises InputError."""
    if options.style == styles.LIST:
        print(styles.listed(options.styles))
        return 0
    with started() as us:
        if options.params_from is None:
            return draw(options, us)
        options, found = replay.over(options)
        us.say(f"settings: as {found.program} wrote them into {show(options.params_from)}")
        for line in found.said:
            warn(line, us)
        return draw(options, us, found)


def draw(options: GenerateOptions, us: Processes, found: replay.Found | None = None) -> int:
    """As run(). found: the picture whose settings the options were taken from."""
    chosen = source.choose(options)
    us.say(chosen.said)
    options = with_seed(options, us)
    device = pipeline.choose_device(options.device, us.local_rank)
    tuned, base = models(chosen, pipeline.choose_dtype(options.dtype, device))
    job = planning.plan(options, tuned, device, chosen.loras)
    for note in job.notes:
        warn(note, us)
    checker = None if options.safety_checker is None else decoding.load_checker(options, device)
    identity = job.identity(tuned, options.compare_base)
    folder = us.agree(lambda: open_folder(options, identity))
    passes = passes_of(chosen, job, folder, tuned, base if options.compare_base else None)
    code = carry_out(job, passes, folder, us, checker)
    if code in (0, BROKEN) and us.is_first and found is not None and found.recipe is not None:
        print(replay.compared(passes[0].finished[0], found.recipe, options))
    return code


def open_folder(options: GenerateOptions, identity: str) -> Path:
    """Where the pictures go; says so if some are there already."""
    folder = outputs.folder_for(options.outdir, identity, resume=options.resume)
    there = len([*folder.glob("[0-9]*.png"), *folder.glob("base/[0-9]*.png")])
    if there:
        print(f"going on in {show(folder)}: {there} pictures are there")
    return folder


def passes_of(chosen: Source, job: Job, folder: Path, tuned: BaseModel, base: BaseModel | None) -> list[Pass]:
    """What is drawn with which model; base: what the tuned one is compared with, if it is."""
    passes = [Pass("tuned" if chosen.is_tuned else "drawing", tuned, folder, job.pictures)]
    if base is not None:
        passes.append(Pass("base", base, folder / "base", [replace(each, loras=()) for each in job.pictures]))
    return passes


def with_seed(options: GenerateOptions, us: Processes) -> GenerateOptions:
    """With the seed that -1 stands for, the same in every process."""
    if options.seed != RANDOM_SEED or options.seeds:
        return options
    seed = us.agree(prompts.random_seed)
    us.say(f"seed: {seed}")
    return options.model_copy(update={"seed": seed})


def models(chosen: Source, dtype: torch.dtype) -> tuple[BaseModel, BaseModel]:
    """The model to draw with, and its base: one of its own, because a LoRA changes the networks it is laid over."""
    tuned = base_model.load(chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
    base = base_model.load(chosen.base or chosen.model, tokenizer=chosen.tokenizer, dtype=dtype)
    return replace(tuned, zero_terminal_snr=chosen.zero_terminal_snr), base


def carry_out(
    job: Job, passes: Sequence[Pass], folder: Path, us: Processes, checker: Checker | None, watch: Watch = unwatched
) -> int:
    """Draw every pass, then lay out the sheet. What is finished stays, whatever ends the job."""
    try:
        for each in passes:
            draw_pass(job, each, us, checker, watch)
            gc.collect()  # the networks of this pass go before the next ones come
        us.wait()
    except KeyboardInterrupt:
        if us.is_first:
            kept, total = sum(len(each.finished) for each in passes), len(job.pictures) * len(passes)
            on = f"; the same command with --outdir {show(folder)} goes on" if kept else ""
            print(f"\nstopped: {kept} of {total} pictures are kept in {show(folder)}{on}", file=sys.stderr)
        return INTERRUPTED
    finally:
        if us.is_first:
            outputs.write_log(folder, [done for each in passes for done in each.finished])
    return conclude(passes, folder) if us.is_first else 0


def conclude(passes: Sequence[Pass], folder: Path) -> int:
    """The sheet, and what became of the pictures; the exit code."""
    all_done = {each.name: each.finished for each in passes}
    sheet = outputs.lay_out(folder, all_done)
    outputs.close(folder)
    for done in (done for finished in all_done.values() for done in finished):
        if done.recipe.verdict == "nan":
            warn(f"{show(done.path)}: no picture, the numbers broke down (NaN). Try --dtype fp32 or less guidance.")
        if done.recipe.verdict == "flagged":
            warn(f"{show(done.path)}: flagged by the safety checker ({', '.join(done.recipe.concepts)})")
        if done.recipe.decoded_again:
            warn(f"{show(done.path)}: decoded once more in fp32, the numbers broke down in {done.recipe.dtype}")
    print(last_line(passes, sheet))
    return BROKEN if any(done.recipe.verdict == "nan" for finished in all_done.values() for done in finished) else 0


def last_line(passes: Sequence[Pass], sheet: Path) -> str:
    """Where to look."""
    if len(passes) > 1:
        return f"base and tuned side by side: {show(sheet)}"
    finished = passes[0].finished
    count, first = len(finished), finished[0].path
    pictures = f"1 picture: {show(first)}" if count == 1 else f"{count} pictures in {show(first.parent)}"
    return f"{pictures}, labelled on {show(sheet)}"


def draw_pass(job: Job, each: Pass, us: Processes, checker: Checker | None, watch: Watch = unwatched) -> None:
    """Draw this process' share of the pictures that are missing; each is written as soon as it is finished."""
    todo = us.share(each.pictures, job.settings.micro_batch)
    todo = [picture for picture in todo if not each.path_of(picture).exists()]
    if not todo:
        return
    pipe = pipeline.build(each.model, job.scheduler, job.device)
    canvas.check(job.given, pipe.unet)
    total = job.calls(pipe, todo)
    files = list(dict.fromkeys(file for picture in each.pictures for file in picture.loras))
    used = attach(pipe, files, job, us)
    shared = recipes.shared(pipe, each.model, [], job.scheduler, job.given)
    shared |= {"style": job.style, "safety": "off" if checker is None else "on"}
    wear = partial(loras.wear, pipe, files)
    if job.compile:
        from infer import compiled  # the compiler is loaded only where it is asked for

        us.say(compiled.prepare(pipe, job, todo, wear))
        shared |= {"compiled": True}
    with tqdm(total=total, desc=each.name, unit="step", dynamic_ncols=True, disable=not us.is_first) as bar:
        started_at = time.perf_counter()
        drawing = pipeline.draw(
            pipe,
            todo,
            job.settings,
            bar.update,
            watch=watch,
            given=job.given,
            decoder=Decoder(pipe.vae, checker),
            wear=wear,
        )
        for drawn in drawing:
            worn = {"loras": tuple(used[file] for file in drawn.picture.loras)}
            recipe = recipes.of({**shared, **worn}, drawn, job.tokens)
            path = each.path_of(drawn.picture)
            each.begun[path] = Finished(path, drawn.picture, recipe, time.perf_counter() - started_at)
            metadata.write(path, drawn.image, recipe)
            started_at = time.perf_counter()


def attach(
    pipe: object, files: Sequence[loras.LoraFile], job: Job, us: Processes
) -> dict[loras.LoraFile, metadata.LoraUsed]:
    """Every LoRA onto the networks, with the proof of what it does said; returns what the recipes say of each."""
    proofs = loras.attach(pipe, files, strict=job.strict)  # pyright: ignore[reportArgumentType]
    for proof in proofs:
        us.say(proof)
        if proof.unused:
            what = f"{len(proof.unused)} tensors find no layer: {loras.named(proof.unused)}"
            warn(f"{show(proof.file.path)}: {what}", us)
    return {proof.file: recipes.lora_used(proof) for proof in proofs}


def warn(what: object, us: Processes | None = None) -> None:
    """One line for people on stderr, away from what a program may read on stdout."""
    if us is None or us.is_first:
        print(f"warning: {what}", file=sys.stderr)
