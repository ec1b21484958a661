"""--strip and --gif: how pictures come out of noise, base and tuned in lockstep: same prompt, seed, noise and calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from data.errors import InputError, show
from data.files import replaced_file
from infer import schedulers
from infer.comparing import axes, paper, recording, result, wishes
from infer.comparing.cells import Store
from infer.comparing.options import CompareOptions
from infer.comparing.paper import Sheet
from infer.comparing.recording import Frame
from infer.comparing.weights import BASE, TUNED, Finder
from infer.comparing.wishes import Wish

MOMENTS = 8  # of a strip
FRAMES = 50  # of a moving picture, at most
FRAME_MS, LAST_MS = 110, 2500
NOISY, EXPECTED = "as it is", "expected"


def run(options: CompareOptions, finder: Finder, store: Store) -> int:
    """A strip and a moving picture for each prompt; returns the exit code. Raises InputError."""
    models = asked_models(options, finder)
    prompts = options.prompt if "prompt" in options.model_fields_set else options.prompt[:1]
    rows = [(name, wish_of(options, finder, name, prompt)) for prompt in prompts for name in models]
    store.check([wish for _, wish in rows])
    folder = result.folder_for(options.outdir)
    drawn = watch(store, [wish for _, wish in rows], FRAMES if options.gif else MOMENTS)
    for number, prompt in enumerate(prompts):
        own = {name: (wish, drawn[wish]) for name, wish in rows if wish.template == prompt}
        for path in write(folder, options, number, prompt, own):
            print(show(path))
    result.mark(folder, options)
    return 0


def asked_models(options: CompareOptions, finder: Finder) -> list[str]:
    """The models in lockstep: those of a model axis, else base and tuned, else the one there is."""
    given = [axes.read(text, flag, options.prompt) for text, flag in axis_texts(options)]
    found = [axis for axis in given if axis]
    if any(axis.name != "model" for axis in found) or len(found) > 1:
        fix = 'Write --y "model=base,tuned", or none.'
        raise InputError("a strip has no axis but the model's", where="--strip", allowed="model", fix=fix)
    if found:
        return list(found[0].values)
    return [BASE, TUNED] if finder.chosen.is_tuned else [BASE]


def axis_texts(options: CompareOptions) -> list[tuple[str, str]]:
    return [
        (text, flag) for text, flag in zip((options.x_axis, options.y_axis, options.z_axis), wishes.FLAGS, strict=True)
    ]


def wish_of(options: CompareOptions, finder: Finder, model: str, prompt: str) -> Wish:
    found = wishes.wish(options, finder, {"model": model, "prompt": prompt}, [])
    return replace(found, template=prompt)


def watch(store: Store, asked: Sequence[Wish], most: int) -> dict[Wish, list[Frame]]:
    """The frames of every wish, model by model."""
    found: dict[Wish, list[Frame]] = {}
    for weights in dict.fromkeys(wish.weights for wish in asked):
        with store.pipe(weights) as (pipe, _):
            for wish in (wish for wish in asked if wish.weights == weights):
                pipe.scheduler = schedulers.build(wish.scheduler, store.model(weights).scheduler_config)
                found[wish] = recording.frames(pipe, wish.prompt, wish.seed, store.settings(wish), most)
        store.forget(weights.model)
    return found


def write(
    folder: Path, options: CompareOptions, number: int, prompt: str, own: Mapping[str, tuple[Wish, list[Frame]]]
) -> list[Path]:
    """strip-00.png, and with --gif walk-00.gif, for one prompt."""
    wish = next(iter(own.values()))[0]
    title = f"{prompt}  (seed {wish.seed})"
    foot = f"{wish.steps} steps, guidance {wish.guidance_scale:g}; {NOISY}: x_t; {EXPECTED}: x_0 by the prediction"
    rows = {
        f"{name}, {look}" if len(own) > 1 else look: [picture(frame, look) for frame in frames]
        for name, (_, frames) in own.items()
        for look in (NOISY, EXPECTED)
    }
    times = [frame.t for frame in next(iter(own.values()))[1]]
    paths = [folder / f"strip-{number:02d}.png"]
    result.save(paper.draw(strip(rows, times, title, foot)), paths[0])
    if options.gif:
        paths.append(folder / f"walk-{number:02d}.gif")
        animate(rows, times, title, paths[1])
    return paths


def picture(frame: Frame, look: str) -> Image.Image:
    return frame.noisy if look == NOISY else frame.expected


def strip(rows: Mapping[str, Sequence[Image.Image]], times: Sequence[int], title: str, foot: str) -> Sheet:
    """A column for each moment, a row for each model and look."""
    kept = recording.evenly(len(times), MOMENTS)
    heads = [f"t = {times[index]}" if index + 1 < len(times) else "finished" for index in kept]
    cells = {
        (column, row): pictures[index]
        for row, pictures in enumerate(rows.values())
        for column, index in enumerate(kept)
    }
    return Sheet(heads, list(rows), cells, title, foot)


def animate(rows: Mapping[str, Sequence[Image.Image]], times: Sequence[int], title: str, path: Path) -> None:
    """A moving picture: all rows side by side, call by call."""
    pages: list[Image.Image] = []
    for index, t in enumerate(times):
        cells = {(column, 0): pictures[index] for column, pictures in enumerate(rows.values())}
        said = f"t = {t}" if index + 1 < len(times) else "finished"
        pages.append(paper.draw(Sheet(list(rows), [""], cells, title, said)))
    height = max(page.height for page in pages)
    shown = [page.crop((0, 0, page.width, height)).quantize(128, dither=Image.Dither.NONE) for page in pages]
    lasts = [FRAME_MS] * (len(shown) - 1) + [LAST_MS]
    with replaced_file(path) as beside:
        shown[0].save(beside, "GIF", save_all=True, append_images=shown[1:], duration=lasts, loop=0, optimize=True)
