"""evaluate.py from options to files: find the run, draw what is missing, look, work out, write, say what was found."""

from __future__ import annotations

import sys
from typing import Any

from data.errors import EXIT_INTERRUPTED, printable
from infer import pipeline
from infer.comparison.image_cache import ImageCache, Machine
from infer.evaluation import collect, features, output, sections, target_run
from infer.evaluation.collect import Drawings, Gathered
from infer.evaluation.config import Counts, EvaluateOptions, counts
from infer.evaluation.prompts import Questions, questions
from infer.evaluation.section import Section

POCKET_GUIDANCE, GUIDANCE = 4.0, 7.5  # what each was measured with


def run(asked: EvaluateOptions) -> int:
    """Write the report; returns the exit code. Raises InputError."""
    found = target_run.find(asked)
    print(found.said)
    eyes, count = features.eyes(asked, found), counts(asked)
    device = pipeline.choose_device(asked.device)
    store = ImageCache(Machine(device, pipeline.choose_dtype(asked.dtype, device)), asked.cells)
    wanted = questions(found, count, asked.seed, asked.trigger)
    guidance = asked.guidance_scale
    guidance = (POCKET_GUIDANCE if found.is_pocket else GUIDANCE) if guidance is None else guidance
    wishes = collect.wishes_of(found, wanted, count, guidance)
    empty = Gathered(found, wanted, Drawings({}), eyes, count, store, asked.seed)
    folder = output.folder_for(empty, asked.outdir, quick=asked.quick)
    store.check(list(wishes.values()))
    print(plan(wanted, count, len(wishes)))
    try:
        drawings = collect.draw(store, wishes)
    except KeyboardInterrupt:
        print("\nstopped: every finished picture is kept, and the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    gathered = Gathered(found, wanted, drawings, eyes, count, store, asked.seed)
    worked_out = sections.work_out(gathered.evidence, asked.seed)
    page = output.write(gathered, worked_out, folder, facts(gathered, guidance, asked))
    return told(worked_out, f"{len(drawings)} pictures, {drawings.fresh} newly drawn: {printable(page)}")


def plan(wanted: Questions, count: Counts, total: int) -> str:
    parts = {"training captions": wanted.captions, "prompts without style": wanted.plain,
             "types on objects": wanted.grid, "seeds of a prompt": wanted.variety, "mixes": wanted.mixes}  # fmt: skip
    told = ", ".join(f"{len(asks)} {name}" for name, asks in parts.items() if asks)
    return (
        f"{total} pictures of {count.steps} steps, of base and tuned: {told}; what was drawn before is not drawn again"
    )


def facts(found: Gathered, guidance: float, asked: EvaluateOptions) -> dict[str, Any]:
    """Section 0."""
    recipe = next(iter(found.drawings.cells.values())).recipe
    tuned = found.drawings.cells[collect.TUNED, found.questions.captions[0]].recipe
    texts = [ask.text for ask in found.questions.paired]
    cut = found.eyes.cut(list(dict.fromkeys(texts)))
    own = features.conditions_sd(found.eyes.joint.folder)
    return {
        "run": found.subject.run.path.name,
        "base": f"{recipe.model.name}, {recipe.model.fingerprint[:16]}",
        "tuned": ", ".join(f"{lora.name} {lora.sha256[:16]} at {lora.weight:g}" for lora in tuned.loras)
        or tuned.model.fingerprint[:16],
        "scheduler": recipe.sampler, "steps": recipe.steps, "guidance": guidance,
        "size": f"{recipe.width} x {recipe.height}", "dtype": recipe.dtype, "device": recipe.device,
        "seed": asked.seed, "prompts": f"{len(texts)}, {output.prompts_hash(texts)}",
        "training / held-out pictures": f"{len(found.train)} / {len(found.held_out)}",
        "pictures of training captions, a side": len(found.questions.captions),
        **{f"features of {side}": text for side, text in found.eyes.facts.items()},
        "prompts longer than the scorer reads": cut,
        "the scorer conditions the model": own,
        "resize": "training: Lanczos, centre square; descriptors: bicubic to 128 x 128 pixels; encoders: their own",
    }  # fmt: skip


def told(worked_out: list[Section], last: str) -> int:
    """Say what was found; alarms are findings, not failures of the command."""
    raised = sections.alarms(worked_out)
    for alarm in raised:
        print(f"{alarm.kind}: {alarm.said}")
    print("no alarm" if not raised else f"{len(raised)} alarms")
    print(last)
    return 0
