"""The commands and flags that the guides name exist."""

import re
from pathlib import Path

import pytest

from annotation.cli import COMMANDS
from data.cli import find_flags, flag_of

ROOT = Path(__file__).parents[2]
USE = re.compile(r"annotate\.py ([a-z]+)((?: +(?:--[a-z-]+|[A-Z_]+|[a-z0-9_,]+))*)")


@pytest.mark.parametrize("guide", ["docs/captioning.md", "README.md", "CONTRIBUTING.md"])
def test_every_command_and_flag_that_a_guide_names_exists(guide: str) -> None:
    uses = USE.findall((ROOT / guide).read_text(encoding="utf-8"))
    assert uses or guide != "docs/captioning.md"
    for command, rest in uses:
        assert command in COMMANDS, f"{guide}: annotate.py {command}"
        known = {flag_of(path) for path in find_flags(COMMANDS[command][1])} | {"--json", "--help"}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"{guide}: annotate.py {command}{rest}"
