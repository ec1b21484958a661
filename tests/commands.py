"""The commands of infer/ in this process, which has imported torch already, and what they leave behind."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from data.cli import parse
from infer import config, generation, metadata
from infer.comparison import command
from infer.config import COMPARE_ALIASES, CompareOptions
from infer.metadata import ImageMetadata


def generate(*argv: object) -> int:
    return generation.run_generation(config.read_options([str(word) for word in argv]))


def compare(*argv: object) -> int:
    words = [str(word) for word in argv]
    return command.run(parse(CompareOptions, words, prog="compare.py", aliases=COMPARE_ALIASES))


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def recipes(folder: Path) -> list[ImageMetadata]:
    return [metadata.read_metadata(path) for path in sorted(folder.glob("0*.png"))]


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
