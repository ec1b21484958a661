"""The checked list of docs/ddpm.md: each line leads to a link, a command, a test, a figure or a name of the code that
covers it, and each of those is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from train.ddpm import figures  # an entry, by its names
from train.ddpm.runs.config import CompareOptions, FitConfig, SampleOptions, ScoreOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ddpm.md").read_text(encoding="utf-8")
OPTIONS: tuple[type[BaseModel], ...] = (FitConfig, SampleOptions, ScoreOptions, CompareOptions)
LEFT_OUT = ("Tour of four web tools", "Epochs against quality against hardware", "Text to video, text to picture")


def inventory() -> list[str]:
    """Every line of the list, with the lines that go on from it."""
    text = PAGE[PAGE.index("## What the three sources had") :]
    return [" ".join(item.split()) for item in re.findall(r"^- (.*?)(?=^- |^#|\Z)", text, re.M | re.S)]


CHECKED = [line.removeprefix("[x] ") for line in inventory() if line.startswith("[x] ")]


def listed(words: str, item: str, line: str) -> list[str]:
    """The items behind `words` in a line: `tests 1, 2`, `figures a, b`."""
    found = re.findall(rf"\b{words} ({item}(?:(?:, | to ){item})*)", line)
    return [each for part in found for each in re.findall(r"\w+", part) if each != "to"]


def takes(model: type[BaseModel], flag: str) -> bool:
    """Whether a command whose options are `model` has the flag."""
    *groups, last = flag.removeprefix("--").removeprefix("no-").replace("-", "_").split(".")
    models = [model]
    for group in groups:
        kinds = [each.model_fields[group].annotation for each in models if group in each.model_fields]
        models = [kind for each in kinds for kind in (get_args(each) or (each,)) if isinstance(kind, type)]
    return any(last in each.model_fields for each in models)


@pytest.mark.parametrize("line", CHECKED, ids=lambda line: line[:30])
def test_every_line_leads_to_what_covers_it(line: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", line)
    assert all((ROOT / "docs" / path).exists() for path in links)
    numbers = listed("tests?", r"\d+", line)
    assert all(1 <= int(number) <= 24 for number in numbers)
    named = listed("figures?", r"`[a-z]+`", line)
    assert set(named) <= set(figures.NAMES)
    flags = re.findall(r"`(--[a-z0-9.-]+)", line)
    assert all(any(takes(model, flag) for model in OPTIONS) for flag in flags), flags
    names = re.findall(r"`([a-z]+)\.([A-Za-z_]+)\b", line)
    for module, name in names:
        if importlib.util.find_spec(f"train.ddpm.{module}"):
            assert hasattr(importlib.import_module(f"train.ddpm.{module}"), name), f"{module}.{name}"
    tests, commands = re.findall(r"`test_\w+`", line), re.findall(r"`python ", line)
    assert [*links, *numbers, *named, *flags, *names, *tests, *commands], "nothing to look it up by"


def test_what_is_left_out_has_no_box() -> None:
    unchecked = [line for line in inventory() if not line.startswith("[x] ")]
    assert len(unchecked) == len(LEFT_OUT) and len(CHECKED) >= 40
    assert all(line.startswith(words) for line, words in zip(unchecked, LEFT_OUT, strict=True))


def test_a_flag_that_is_not_there_is_seen() -> None:
    assert takes(FitConfig, "--network.kind") and takes(FitConfig, "--no-network.full-skip")
    assert not takes(FitConfig, "--network.kinds") and not takes(FitConfig, "--objectives.loss")
