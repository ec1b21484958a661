"""Run the same commands in two revisions and compare what they write; exit 1 if anything differs.

python tools/compare_revisions.py 2874934 .                       everything; `.` is this working tree
python tools/compare_revisions.py 2874934 HEAD --only images,full  some groups or cases
python tools/compare_revisions.py 2874934 . --work /tmp/compared   keep inputs, outputs and logs there

Both revisions run on this machine with one thread in fp32, beside each other, on inputs that are made once: the base
model, scorer and a finished run of OLD, and images of the sample set. A case is a row of CASES.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # tools is not installed

THREE_TIMES = 3.0  # NEW's weights may differ from OLD's by this many times what a second thread changes in OLD
TENSOR_TOLERANCE, NUMBER_TOLERANCE = 1e-6, 1e-5  # relative
VOLATILE = {"seconds", "created", "date", "time", "cells", "file", "path", "folder"}  # JSON keys that are not compared
KILL = "kill: "  # before a command: SIGKILL when its first checkpoint is there

TRAIN = (
    "train/finetune.py --config {repo}/train/configs/pocket.yaml --model {inputs}/base --data {inputs}/captioned "
    "--max-steps 20 --pictures.held-out 0.3 --batch-size 4 --accumulate 2 --ema.decay 0.9 --preserve.share 0.4 "
    "--validation.every 10 --validation.pictures 4 --validation.timesteps 2 --checkpoints.every 5 --previews.every 0 "
    "--no-probe --threads 1"
)
FULL = f"{TRAIN} --adapter.kind full --learning-rate 1e-4"
GENERATE = (
    "infer/generate.py --model {inputs}/base --device cpu --dtype fp32 --seed 3 --num-images 2 --steps 6 "
    "--guidance-scale 4 --outdir out"
)
PHOTO = "--init-image {inputs}/photo.png --strength 0.6"
LORA_FILE = "{inputs}/runs/0001-lora-r16/export/lora.safetensors"
FIT = "train/ddpm/fit.py --max-steps 20 --checkpoints.every 5 --looks.every 10 --drawings.every 20 --threads 1"


@dataclass(frozen=True)
class Case:
    """Commands, run one after the other in a folder of the case, and what is compared: (comparison, files)."""

    group: str
    name: str
    commands: tuple[str, ...]
    compare: tuple[tuple[str, str], ...]
    start: str = "empty"  # folder of the inputs whose copy the case runs in


def resumed(command: str) -> tuple[str, ...]:
    """A run to its end; the same run killed after a checkpoint; and that one again, to its end."""
    return f"{command} --runs whole", f"{KILL}{command} --runs parts", f"{command} --runs parts"


def images(name: str, *flags: str) -> Case:
    return Case("images", name, (" ".join((GENERATE, *flags)),), (("pixels", "out/0*.png"),))


WEIGHTS = (("weights", "whole/*/export/**/*.safetensors"), ("resume", "whole/*/export/**/*.safetensors"))
CASES = (
    Case("training", "lora", resumed(TRAIN), WEIGHTS),
    Case("training", "full", resumed(FULL), WEIGHTS),
    Case("training", "ddpm", resumed(FIT), (("weights", "whole/*/export/*.safetensors"), WEIGHTS[1])),
    images("weighted-ddim", "--prompt 'a (red:1.3) cat, [grey]' --negative-prompt blue --scheduler ddim"),
    images("pndm-grid", "--prompt 'a {{type}} type {{object}}' --grid 'type=water;object=car,fish' --scheduler pndm"),
    images("guidance-stop", "--prompt 'a fish' --scheduler dpmpp_2m_karras --guidance-stop 0.5"),
    images("img2img-rescale", PHOTO, "--prompt 'a cake' --scheduler euler_a --guidance-rescale 0.7"),
    images("inpaint", PHOTO, "--mask {inputs}/mask.png --prompt 'a cat' --scheduler euler_a"),
    images("scribble", "--scribble {inputs}/scribble.png --prompt 'a tree' --scheduler ddim"),
    images("controlnet", "--scribble {inputs}/scribble.png --controlnet {inputs}/controlnet --prompt 'a tree'"),
    images("lora-weight", f"--lora {LORA_FILE}:0.8 --prompt 'a fire type fridge' --batch-size 2"),
    images("prompt-file", "--from-file {inputs}/prompts.csv --style creature --aspect 2:1"),
    Case(
        "images", "replay",
        ("infer/generate.py --params-from {inputs}/images/00000-7.png --model {inputs}/base --outdir out",),
        (("pixels", "out/0*.png"),),
    ),
    Case(
        "images", "table",
        ("infer/compare.py --model {inputs}/runs/0001-lora-r16 --x steps=4,6 --prompt 'a red car' --guidance-scale 4 "
         "--outdir out",),
        (("pixels", "out/cells/*.png"),),
    ),
    Case(
        "exports", "lora-files", ("train/export.py {inputs}/runs/0001-lora-r16 --output out",),
        (("tensors", "out/**/*.safetensors"),),
    ),
    Case(
        "exports", "merged",
        ("train/export.py {inputs}/runs/0001-lora-r16 --merge --single-file --precision fp16 --output out",),
        (("tensors", "out/**/*.safetensors"),),
    ),
    Case("data", "prepare", ("data/prepare.py {inputs}/captioned --size 64 --json",), (("json", "0.out"),)),
    Case("data", "prepare-broken", ("data/prepare.py {inputs}/broken --size 64 --json",), (("json", "0.out"),)),
    Case(
        "data", "label-studio",
        ("data/prepare.py {inputs}/label-studio.json --pictures {inputs}/captioned --into new --json",),
        (("json", "0.out"), ("bytes", "new/*")),
    ),
    Case(
        "data", "label-studio-release", ("annotation/annotate.py export --into out",),
        tuple(("bytes", f"out/{files}") for files in ("dataset.lock", "metadata.jsonl", "*.csv", "*.txt", "*.png")),
        start="project",
    ),
    Case(
        "evaluate", "quick",
        ("infer/evaluate.py {inputs}/runs/0001-lora-r16 --quick --captions 10 --prompts 4 --steps 4 --outdir out "
         "--scorer {inputs}/scorer",),
        (("json", "out/report.json"),),
    ),
)  # fmt: skip


# ---- running


@dataclass(frozen=True)
class Side:
    """One revision: its checkout, and the folder in which its cases run."""

    name: str
    repo: Path
    folder: Path
    threads: int = 1

    def run(self, case: Case, inputs: Path) -> tuple[list[int], float]:
        """Exit codes of the commands and the seconds they took together. Output goes to N.out and N.err."""
        folder, began, codes = self.folder / case.name, time.monotonic(), []
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(inputs / case.start, folder)
        for number, command in enumerate(case.commands):
            words = shlex.split(command.removeprefix(KILL).format(repo=self.repo, inputs=inputs))
            if "--threads" in words:
                words[words.index("--threads") + 1] = str(self.threads)
            codes.append(self.execute(words, folder, str(number), kill=command.startswith(KILL)))
        return codes, time.monotonic() - began

    def execute(self, words: list[str], folder: Path, log: str, *, kill: bool = False) -> int:
        """Run one command; with `kill`, end it when a checkpoint is there."""
        with open(folder / f"{log}.out", "w") as out, open(folder / f"{log}.err", "w") as err:
            process = subprocess.Popen(
                [sys.executable, self.repo / words[0], *words[1:]],
                cwd=folder, env=self.environment(), stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
            try:
                while kill and process.poll() is None and not any(folder.glob("*/*/checkpoints/[0-9]*")):
                    time.sleep(0.02)
                return process.wait(0 if kill and process.poll() is None else None)
            except subprocess.TimeoutExpired:
                return -signal.SIGKILL
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def environment(self) -> dict[str, str]:
        cache, threads = self.folder / "cache", str(self.threads)
        return os.environ | {
            "PYTHONPATH": str(self.repo), "ATELIER_CACHE": str(cache), "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads, "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip


def checkout(revision: str, work: Path, name: str) -> Path:
    """A worktree of the revision; the working tree itself for `.`."""
    if revision == ".":
        return ROOT
    tree = work / f"{name}-tree"
    commit = subprocess.check_output(["git", "-C", ROOT, "rev-parse", revision], text=True).strip()
    if tree.is_dir():
        subprocess.run(["git", "-C", tree, "checkout", "-q", "--detach", commit], check=True)
    else:
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--force", "--detach", tree, commit], check=True)
    return tree


# ---- inputs


def make_inputs(folder: Path, old: Side) -> None:
    """Images, a base model, a ControlNet, a run and an image with metadata: what the commands start from."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "empty").mkdir(parents=True)
    shutil.copytree(ROOT / "tests" / "fixtures" / "v1" / "project", folder / "project")
    shutil.rmtree(folder / "project" / "release")
    for part in ("base", "scorer"):
        shutil.copytree(old.repo / "data" / "pocket" / part, folder / part)
    captioned_folders(folder)
    pictures(folder)
    control_network(folder / "base", folder / "controlnet")
    (folder / "prompts.csv").write_text("prompt,seed,steps\na green apple,5,4\na yellow car,6,7\n")
    tuned = f"{TRAIN} --max-steps 4 --runs {folder}/runs"
    sample = GENERATE.replace("--num-images 2", "--num-images 1").replace("--seed 3", "--seed 7")
    for number, command in enumerate((tuned, f"{sample} --prompt 'a (blue:1.2) bird' --scheduler euler")):
        words = shlex.split(command.format(repo=old.repo, inputs=folder))
        if old.execute(words, folder, str(number)):
            raise SystemExit((folder / f"{number}.err").read_text()[-2000:])
    (folder / "out").rename(folder / "images")


def captioned_folders(folder: Path) -> None:
    """`captioned`: 24 images, some wide or tall. `broken`: the same with faults. And a Label Studio export."""
    from data import sample_set

    good, rows, tasks = folder / "captioned", [], []
    good.mkdir()
    for index in range(24):
        name, note = f"{index:05d}.png", sample_set.sample_annotation(index * 7)
        box = {0: (0, 0, 96, 64), 1: (0, 0, 64, 96)}.get(index % 6, (0, 0, 96, 96))
        sample_set.sample_image(index * 7, 96).crop(box).save(good / name)
        rows.append({"file_name": name, "text": note.text, "type": note.type, "name": note.name})
        answer = {"from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": [note.text]}}
        annotation = {"id": index + 1, "result": [answer], "created_at": "2026-01-01T00:00:00Z"}
        tasks.append(
            {"id": index + 1, "data": {"image": f"/data/{name}", "file_name": name}, "annotations": [annotation]}
        )
    (good / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "label-studio.json").write_text(json.dumps(tasks[:20]))
    bad = shutil.copytree(good, folder / "broken")
    (bad / "00003.png").write_bytes(b"")
    shutil.copyfile(bad / "00000.png", bad / "twin.png")
    rows += [{"file_name": "twin.png", "text": rows[0]["text"]}, {"file_name": "absent.png", "text": "nothing"}]
    rows[5]["text"] = ""
    (bad / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def pictures(folder: Path) -> None:
    """A photo, a mask and a drawing of lines."""
    from PIL import Image, ImageDraw

    from data import sample_set

    sample_set.sample_image(11).save(folder / "photo.png")
    mask, lines = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(mask).rectangle((16, 16, 48, 48), fill="white")
    ImageDraw.Draw(lines).line((8, 56, 32, 8, 56, 56), fill="black", width=3)
    mask.save(folder / "mask.png")
    lines.save(folder / "scribble.png")


def control_network(base: Path, target: Path) -> None:
    """A ControlNet of random weights, so that it has an effect."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    levels = len(json.loads((base / "vae" / "config.json").read_text())["block_out_channels"])
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16, 32)[:levels])
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    network.save_pretrained(target)


# ---- comparing: each yields (whether it is as it should be, what was found)

Found = Iterator[tuple[bool, str]]


def pairs(old: Path, new: Path, files: str) -> list[tuple[str, Path, Path]]:
    """Files of both sides by relative name. Raises AssertionError if there are none, or other ones."""
    names = [sorted(str(file.relative_to(side)) for file in side.glob(files) if file.is_file()) for side in (old, new)]
    assert names[0], f"OLD wrote no {files}"
    assert names[0] == names[1], f"other files: {sorted(set(names[0]) ^ set(names[1]))[:4]}"
    return [(name, old / name, new / name) for name in names[0]]


def pixels(old: Path, new: Path, files: str, _: Path) -> Found:
    import numpy as np
    from PIL import Image

    for name, one, other in pairs(old, new, files):
        a, b = (np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in (one, other))
        far = abs(a - b).max() if a.shape == b.shape else f"{a.shape} and {b.shape}"
        yield far == 0, f"{name}: largest difference {far}"


def weights(old: Path, new: Path, files: str, two_threads: Path) -> Found:
    for name, one, other in pairs(old, new, files):
        far, noise = distance(one, other), distance(one, two_threads / name)
        yield far <= THREE_TIMES * noise, f"{name}: {far:.2e} apart, two threads {noise:.2e}"


def tensors(old: Path, new: Path, files: str, _: Path) -> Found:
    for name, one, other in pairs(old, new, files):
        far = distance(one, other)
        yield far <= TENSOR_TOLERANCE, f"{name}: {far:.2e} apart"


def distance(one: Path, other: Path) -> float:
    """The L2 norm of the difference of all tensors, relative to that of the first file's; inf for other names."""
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(other)
    if {key: (t.shape, t.dtype) for key, t in a.items()} != {key: (t.shape, t.dtype) for key, t in b.items()}:
        return float("inf")
    total = sum(float(tensor.double().square().sum()) for tensor in a.values())
    return (sum(float((a[key].double() - b[key].double()).square().sum()) for key in a) / max(total, 1e-30)) ** 0.5


def resume(old: Path, new: Path, files: str, _: Path) -> Found:
    """Of each side: the tensors of the killed and resumed run are those of the uninterrupted one, bit for bit."""
    from safetensors.torch import load_file

    for side in (old, new):
        for file in sorted(side.glob(files)):
            name = str(file.relative_to(side))
            a, b = (
                {key: tensor.numpy().tobytes() for key, tensor in load_file(path).items()}
                for path in (file, side / f"parts{name.removeprefix('whole')}")
            )
            yield a == b, f"{side.parent.name}: {name} after kill and resume, bit for bit"


def same_bytes(old: Path, new: Path, files: str, _: Path) -> Found:
    for name, one, other in pairs(old, new, files):
        yield one.read_bytes() == other.read_bytes(), name


def same_numbers(old: Path, new: Path, files: str, _: Path) -> Found:
    """Keys, numbers and single words of JSON; sentences may be worded in another way."""
    for name, one, other in pairs(old, new, files):
        differences = list(unlike(json.loads(one.read_text()), json.loads(other.read_text())))
        yield not differences, f"{name}: {'; '.join(differences[:4]) or 'equal'}"


def unlike(a: Any, b: Any, path: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        yield from (f"{path}.{key} is missing" for key in a.keys() - b.keys() - VOLATILE)
        for key in (a.keys() & b.keys()) - VOLATILE:
            yield from unlike(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from unlike(one, other, f"{path}[{index}]")
    elif isinstance(a, str) and isinstance(b, str):
        if a != b and not {" ", "/"} & set(a):
            yield f"{path}: {a!r}, {b!r}"
    elif isinstance(a, int | float) and isinstance(b, int | float):
        if abs(a - b) > NUMBER_TOLERANCE * max(abs(a), abs(b), 1e-2):
            yield f"{path}: {a}, {b}"
    elif a != b:
        yield f"{path}: {str(a)[:40]}, {str(b)[:40]}"


COMPARISONS: dict[str, Callable[[Path, Path, str, Path], Found]] = {
    "pixels": pixels, "weights": weights, "tensors": tensors, "resume": resume,
    "bytes": same_bytes, "json": same_numbers,
}  # fmt: skip


def compare(case: Case, old: Side, new: Side, two: Side, inputs: Path) -> bool:
    """Run the case in both revisions, print a line for each comparison, and say whether all is equal."""
    first = replace(case, commands=case.commands[:1])
    with ThreadPoolExecutor(2) as threads:
        ran = list(threads.map(lambda side: side.run(case, inputs), (old, new)))
    if any(how == "weights" for how, _ in case.compare):
        two.run(first, inputs)
    (codes, old_seconds), (new_codes, new_seconds) = ran
    print(f"{case.group:9} {case.name:20} {old_seconds:5.0f} s {new_seconds:5.0f} s", flush=True)
    results = [(codes == new_codes, f"exit codes {codes}, {new_codes}")]
    for how, files in case.compare:
        try:
            found = COMPARISONS[how](old.folder / case.name, new.folder / case.name, files, two.folder / case.name)
            results += [(good, f"{how}: {words}") for good, words in found]
        except (AssertionError, OSError, ValueError) as error:
            results.append((False, f"{how}: {error}"))
    for good, words in results:
        if not good or words.startswith("weights"):
            print(f"    {'ok  ' if good else 'DIFF'} {words}", flush=True)
    good = sum(good for good, _ in results)
    print(f"    {good} of {len(results)} as they should be", flush=True)
    return good == len(results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD", help="a commit")
    parser.add_argument("new", metavar="NEW", help="a commit, or . for the working tree")
    parser.add_argument("--only", default="", help="groups or cases, divided by commas: " + ", ".join(
        dict.fromkeys(name for case in CASES for name in (case.group, case.name))))  # fmt: skip
    parser.add_argument("--work", type=Path, help="folder to work in, kept; inputs that are there are used again")
    options = parser.parse_args()
    chosen = [case for case in CASES if not options.only or {case.group, case.name} & set(options.only.split(","))]
    work = (options.work or Path(tempfile.mkdtemp(prefix="compare-"))).resolve()
    trees = [checkout(options.old, work, "old"), checkout(options.new, work, "new")]
    old, new = (Side(name, tree, work / name) for name, tree in zip(("old", "new"), trees, strict=True))
    two = Side("two", old.repo, work / "old-two-threads", threads=2)
    began = time.monotonic()
    if not (work / "inputs" / "images").is_dir():
        make_inputs(work / "inputs", old)
    print(f"inputs {time.monotonic() - began:.0f} s; {len(chosen)} cases in {work}", flush=True)
    different = [case.name for case in chosen if not compare(case, old, new, two, work / "inputs")]
    print(f"{len(chosen) - len(different)} of {len(chosen)} cases equal, {time.monotonic() - began:.0f} s")
    print(f"different: {', '.join(different)}" if different else "no differences")
    for tree in (tree for tree in trees if options.work is None and tree != ROOT):
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
