"""evaluate.py from options to files: find the run, generate what is missing, measure, write, and print the findings."""

import sys
from hashlib import sha256
from typing import Any

from data.errors import EXIT_INTERRUPTED, printable
from infer.comparison.image_cache import ImageCache, Machine
from infer.config import EvaluateOptions
from infer.evaluation import adherence, composition, diversity, memorization, report, style
from infer.evaluation.collect import TUNED, Collection, build_requests, load_extractors
from infer.evaluation.evidence import Evidence
from infer.evaluation.prompts import build_prompts, counts_of
from infer.evaluation.section import Section
from infer.evaluation.target_run import find_target

SECTIONS = (style.section, adherence.section, composition.section, diversity.section, memorization.section,
            adherence.forgetting)  # fmt: skip


def run(options: EvaluateOptions) -> int:
    """Write the report; returns the exit code. Raises InputError."""
    target = find_target(options)
    print(target.message)
    extractors, counts = load_extractors(options, target), counts_of(options)
    cache = ImageCache(Machine.choose(options.device, options.dtype), options.cells)
    prompts = build_prompts(target, counts, options.seed, options.trigger)
    guidance = options.guidance_scale
    guidance = cache.recommended(target.base).guidance_scale if guidance is None else guidance
    requests = build_requests(target, prompts, counts, guidance)
    folder = options.outdir or target.run.path / ("evaluation-quick" if options.quick else "evaluation")
    report.check_folder(folder)
    cache.check(list(requests.values()))
    kinds = {"training captions": prompts.captions, "prompts without style": prompts.plain, "mixes": prompts.mixes,
             "types on objects": prompts.grid, "seeds of a prompt": prompts.variety}  # fmt: skip
    plan = ", ".join(f"{len(some)} {name}" for name, some in kinds.items() if some)
    print(f"{len(requests)} images of base and tuned, steps {counts.steps}: {plan}; cached images are reused")
    try:
        images = cache.get(list(requests.values()))
    except KeyboardInterrupt:
        print("\nstopped: finished images are kept, and the same command continues from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    generated = {key: images[request] for key, request in requests.items()}
    found = Collection(target, prompts, generated, extractors, counts, cache, options.seed)
    sections = compute_sections(found.evidence, options.seed)
    page = report.write_report(found, sections, folder, provenance(found, guidance))
    alarms = [alarm for section in sections for alarm in section.alarms]  # findings, not failures of the command
    for alarm in alarms:
        print(f"{alarm.kind}: {alarm.said}")
    print(f"{len(alarms)} alarms" if alarms else "no alarm")
    new = report.image_count(found, only_new=True)
    print(f"{report.image_count(found)} images, {new} newly generated: {printable(page)}")
    return 0


def compute_sections(evidence: Evidence, seed: int = 0) -> list[Section]:
    return [section(evidence, seed).with_holm() for section in SECTIONS]


def provenance(found: Collection, guidance: float) -> dict[str, Any]:
    """Section 0 of the report."""
    recipe = next(iter(found.generated.values())).recipe
    tuned = found.generated[TUNED, found.prompts.captions[0]].recipe
    texts = [prompt.text for prompt in found.prompts.paired]
    loras = ", ".join(f"{lora.name} {lora.sha256[:16]} at {lora.weight:g}" for lora in tuned.loras)
    return {
        "run": found.target.run.path.name,
        "base": f"{recipe.model.name}, {recipe.model.fingerprint[:16]}",
        "tuned": loras or tuned.model.fingerprint[:16],
        "scheduler": recipe.sampler, "steps": recipe.steps, "guidance": guidance,
        "size": f"{recipe.width} x {recipe.height}", "dtype": recipe.dtype, "device": recipe.device,
        "seed": found.seed, "prompts": f"{len(texts)}, {sha256(chr(10).join(texts).encode()).hexdigest()[:16]}",
        "training / held-out pictures": f"{len(found.train)} / {len(found.held_out)}",
        "pictures of training captions, a side": len(found.prompts.captions),
        **{f"features of {side}": text for side, text in found.extractors.versions.items()},
        "prompts longer than the scorer reads": found.extractors.truncated(list(dict.fromkeys(texts))),
        "the scorer conditions the model": found.extractors.conditions_sd,
        "resize": "training: Lanczos, centre square; descriptors: bicubic to 128 x 128 pixels; encoders: their own",
    }  # fmt: skip
