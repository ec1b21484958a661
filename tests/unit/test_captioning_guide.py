"""What the guides say of annotate.py is so."""

import importlib
import re
from pathlib import Path

import pytest

from annotation.commands import COMMANDS, module_of
from data.options import field_types, flag_of

ROOT = Path(__file__).parents[2]
USE = re.compile(r"annotate\.py ([a-z]+)((?: +(?:--[a-z-]+|[A-Z_]+|[a-z0-9_,]+))*)")
GUIDES = ["docs/captioning.md", "README.md", "CONTRIBUTING.md"]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_and_flag_that_a_guide_names_exists(guide: str) -> None:
    uses = USE.findall((ROOT / guide).read_text(encoding="utf-8"))
    assert uses or guide != "docs/captioning.md"
    for command, rest in uses:
        assert command in COMMANDS, f"{guide}: annotate.py {command}"
        options = importlib.import_module(f"annotation.commands.{module_of(command)}").Options
        known = {flag_of(path) for path in dict(field_types(options))} | {"--json", "--help"}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"{guide}: annotate.py {command}{rest}"


def test_the_guide_is_one_page() -> None:
    text = (ROOT / "docs/captioning.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1300
    assert len(re.findall(r"^\| [1-8] \| ", text, re.MULTILINE)) == 8
