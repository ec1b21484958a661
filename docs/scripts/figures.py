"""Make the images of README and docs/: python docs/scripts/figures.py WHAT [ARGUMENT ...]

creatures | pairs           fifty sample images; the eight of the captioning guide
demo SHEET | types SHEET    a sheet of generate.py; one of compare.py, at half size
thesis DIR                  all panels of `compare.py --figures thesis` on one sheet
study steps|guidance DIR    the curves of `compare.py --study`
captioning | studio SHOT    a screenshot by `python -m tests.benchmarks.labelling` or `.studio`, `--screenshot SHOT`
evaluation | classifiers SHOT   a screenshot of the report by infer/evaluate.py or train/study/run.py
ddpm [NAME ...]             figures of docs/ddpm.md, which need no trained network; default: all
keep FOLDER NAME            figures and tables of docs/ddpm-runs.md, from the output folder of a DDPM command
sd [NAME ...]               figures and the table of docs/stable-diffusion.md, with the embedded base; default: all
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # docs is not installed

from PIL import Image, ImageDraw, ImageFont

from data import sample_set
from data.errors import InputError, check_choice, run_entry

DOCS = Path(__file__).parents[1]
COLUMNS, ROWS, SIDE = 10, 5, 96
PAIRS = (1, 52, 79, 85, 90, 112, 156, 184)  # the images of docs/captioning.md, in the order of its table
PAIR_SIDE = 176
INK = "#2a1a4a"
DDPM = ("elbo", "collapse", "order", "schedules", "forward", "noise")
SD = ("shapes", "parts", "vae", "text", "scheduler", "guidance")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="figures.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", metavar="WHAT")
    parser.add_argument("given", nargs="*", metavar="ARGUMENT")
    parser.add_argument("--out", type=Path, default=DOCS, help="documentation folder; default: docs")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of generated images; default: 50")
    args = parser.parse_args()
    for path in make([args.what, *args.given], args.out, args.steps):
        print(path)
    return 0


def make(request: list[str], out: Path, steps: int) -> list[Path]:
    """The files written. Raises InputError."""
    names = {"ddpm": DDPM, "sd": SD}.get(request[0], ())
    chosen = [check_choice(name, names, what="figure") for name in request[1:]] if names else []
    from docs.scripts import overview, plots, runs, stable_diffusion  # matplotlib and torch, once the names are valid

    match request:
        case ["ddpm", *_]:
            paths = {name: out / "figures" / f"ddpm-{name}.png" for name in chosen or DDPM}
            for name, path in paths.items():
                plots.save(plots.FIGURES[name](), path)
            return list(paths.values())
        case ["sd", *_]:
            return [stable_diffusion.make(name, out, steps) for name in chosen or SD]
        case ["keep", folder, name]:
            return runs.keep(Path(folder), name, out)
        case ["study", ("steps" | "guidance") as name, folder]:
            path = out / "figures" / f"sd-study-{name}.png"
            plots.save(overview.curves(Path(folder), name), path)
            return [path]
    image, path = make_image(request, out)
    plots.save_image(image, path, 1000 if request[0] == "thesis" else 0)
    return [path]


def make_image(request: list[str], out: Path) -> tuple[Image.Image, Path]:
    from docs.scripts import overview

    match request:
        case ["creatures"]:
            return sample_sheet(), out / "creatures.png"
        case ["pairs"]:
            return numbered(PAIRS), out / "captioning-pairs.png"
        case ["thesis", folder]:
            return overview.panels(Path(folder)), out / "thesis-figures.png"
        case [("demo" | "captioning" | "studio") as name, sheet]:
            files = {"captioning": "captioning-screen"}
            return Image.open(sheet).convert("RGB"), out / f"{files.get(name, name)}.png"
        case [("types" | "evaluation" | "classifiers") as name, sheet]:
            whole = Image.open(sheet).convert("RGB")
            half = whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS)
            return half, (out if name == "types" else out / "figures") / f"{name}.png"
    raise InputError(f"{' '.join(request)!r}", where="docs/scripts/figures.py", allowed="what --help lists")


def sample_sheet() -> Image.Image:
    """Sample images with one column per type."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE), "white")
    for place in range(COLUMNS * ROWS):
        row, column = divmod(place, COLUMNS)
        sheet.paste(sample_set.sample_image(400 + place, SIDE), (column * SIDE, row * SIDE))
    return sheet


def numbered(indices: tuple[int, ...], columns: int = 4) -> Image.Image:
    """Sample images in rows, numbered from 1."""
    sheet = Image.new("RGB", (columns * PAIR_SIDE, -(-len(indices) // columns) * PAIR_SIDE), "white")
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(indices):
        row, column = divmod(place, columns)
        x, y = column * PAIR_SIDE, row * PAIR_SIDE
        sheet.paste(sample_set.sample_image(index, PAIR_SIDE), (x, y))
        middle = (x + 20, y + PAIR_SIDE - 18)
        pen.circle(middle, 14, fill="white", outline=INK, width=2)
        pen.text(middle, str(place + 1), fill=INK, font=ImageFont.load_default(20), anchor="mm")
    return sheet


if __name__ == "__main__":
    run_entry(main)
