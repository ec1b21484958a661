"""What people bring: an archive trains like its folder, and no mixture of files ends in a traceback."""

import json
import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from data import captions
from data.config import FolderOptions
from data.errors import InputError
from data.sources import read_source
from infer import pipeline
from infer.text_encoding import PromptEncoder
from tests.captioned import COMPOSED, draw
from tests.recipes.conftest import Finetune
from tests.recipes.test_finetune import exported
from train.model import load_model
from train.run_folder import all_runs
from train.training_set import encode_text

FUZZ_SECONDS, MIXTURES = 60, 200
TAGS = ("--pictures.shuffle-tags", "--pictures.caption", "creature, {text}, a, b", "--pictures.keep-tags", "1")


def test_a_zip_trains_as_its_folder_and_tags_follow_the_seed(
    finetune: Finetune, tiny_data: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in tiny_data.iterdir():
            opened.write(path, f"set/{path.name}")
    assert finetune(*TAGS) == 0
    assert finetune(*TAGS, "--new", data=archive) == 0
    assert finetune(*TAGS, "--new", "--pictures.tag-variants", "2") == 0
    first, second, third = (exported(run.path) for run in all_runs(Path("runs")))
    assert all(bool((first[name] == second[name]).all()) for name in first)
    assert any(bool((first[name] != third[name]).any()) for name in first)


def test_long_captions_are_trained_in_full(
    finetune: Finetune, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--pictures.caption-chunks", "4", "--preserve.share", "0.3", "--strict")
    assert finetune(*flags, "--previews.every", "0", steps=2) == 0
    assert ", 0 truncated" in capsys.readouterr().out
    model = load_model(str(tiny_model))
    text, cpu = "water " * 60 + ", " + "water " * 20, torch.device("cpu")
    states = encode_text(model, text, cpu, 3)
    pipe = pipeline.build_pipeline(model, None, cpu)
    generated = PromptEncoder(pipe, "a1111")([text, "water " * 200])[:1]
    assert torch.equal(states[None], generated), "as generation reads it, padding included"


def test_one_prompt_for_images_without_captions(
    finetune: Finetune, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_data, tmp_path / "bare", ignore=shutil.ignore_patterns("metadata.jsonl"))
    with pytest.raises(InputError):
        finetune(data=tmp_path / "bare", steps=1)
    assert finetune("--instance-prompt", "a sks creature", data=tmp_path / "bare", steps=1) == 0
    assert "'a sks creature' is its prompt" in capsys.readouterr().out


# ---- a fuzz of folders

NAMES = (
    "a",
    "b c",
    "caf\u00e9",
    "cafe\u0301",
    "A",
    "10_x/a",
    "3_y/b",
    "sub/deep/c",
    ".hidden/d",
    "x" * 200,
    "\u732b",
    "'q\"",
)


def add_image(folder: Path, chosen: random.Random) -> None:
    name = chosen.choice(NAMES) + chosen.choice((".png", ".PNG", ".jpg", ".webp", ".heic", ".gif"))
    draw(folder, name, size=(chosen.choice((8, 32, 64, 700)), 32))
    if chosen.random() < 0.2:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: chosen.randrange(len(whole))])


TEXTS = ("a fox", "a fox,\nred", "One. \n Two!", "", "{x}", "\0", f"{COMPOSED} \u732b", "a " * 3000, "\U0001f98a")


def add_caption(folder: Path, chosen: random.Random) -> None:
    text = chosen.choice(TEXTS)
    path = folder / (chosen.choice(NAMES) + chosen.choice((".txt", ".caption")))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(chosen.choice(("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"))))


def add_table(folder: Path, chosen: random.Random) -> None:
    values = ("text", None, 7, ["a", "b"], [None], {"a": 1}, "", True, 1e400, "x" * 500)
    keys = ("text", "texts", "caption", "image", "file", "file_name", "type", "quality", "n", "skip_reason")
    rows = [{"file_name": chosen.choice(NAMES) + ".png", "text": "x"} for _ in range(3)]
    rows += [{chosen.choice(keys): chosen.choice(values) for _ in range(3)} for _ in range(3)]
    text = "\n".join(map(json.dumps, rows)) if chosen.random() < 0.5 else json.dumps(rows)
    text = chosen.choice(
        (text, text[: len(text) // 2], "file_name,text\na.png,x\nb c.png", '{"a.png": "x"}', "[]", "7")
    )
    name = chosen.choice(("metadata", "captions")) + chosen.choice((".jsonl", ".csv", ".json", ".parquet"))
    (folder / name).write_bytes(text.encode(chosen.choice(("utf-8", "utf-16", "utf-16-le", "latin-1")), "replace"))


def add_link(folder: Path, chosen: random.Random) -> None:
    target = chosen.choice(("..", ".", "a.png", "sub", "/etc", "/etc/passwd", "gone", ".hidden", "link.png"))
    with suppress(FileExistsError):
        (folder / chosen.choice(("link.png", "link", "link.txt", "metadata.jsonl"))).symlink_to(target)


def add_odd_file(folder: Path, chosen: random.Random) -> None:
    name = chosen.choice(
        ("state.json", "dataset_dict.json", "x.parquet", "x.tar", "x.zip", "notes.md", "a.png", "p.png")
    )
    if name == "p.png" and not (folder / name).exists():
        os.mkfifo(folder / name)
    elif not (folder / name).is_fifo() and not (folder / name).is_symlink():
        (folder / name).write_bytes(chosen.randbytes(chosen.choice((0, 10, 3000))))


def test_no_mixture_of_files_ends_in_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    kinds: list[Callable[[Path, random.Random], None]] = [add_image, add_caption, add_table, add_link, add_odd_file]
    started, used = time.monotonic(), 0
    for number in range(MIXTURES):
        if time.monotonic() - started > FUZZ_SECONDS:
            break
        chosen = random.Random(number)
        folder = tmp_path / f"set {number}"
        folder.mkdir()
        for _ in range(chosen.randrange(1, 14)):
            chosen.choices(kinds, (6, 4, 1, 1, 1))[0](folder, chosen)
        source = folder
        if chosen.random() < 0.3:
            kind = chosen.choice(("zip", "tar", "gztar"))
            with suppress(OSError):  # what cannot be packed, such as a link to nowhere
                source = Path(shutil.make_archive(str(folder), kind, folder))
        options = FolderOptions(
            captions_per_line=chosen.random() < 0.2,
            caption_column=chosen.choice((None, None, "caption")),
            prompt=chosen.choice((None, "a sks", "filename")),
        )
        try:
            listing = read_source(source, options)
        except InputError:
            continue
        used += bool(listing.samples)
        fields = captions.known_fields(sample.annotation for sample in listing.samples)
        assert all(sample.captions for sample in listing.samples)
        for sample in listing.samples:
            captions.render_prompts(sample.annotation, fields=fields)
        assert "".join(map(str, listing.problems)).isprintable()
        shutil.rmtree(folder)
    assert used > MIXTURES // 8
