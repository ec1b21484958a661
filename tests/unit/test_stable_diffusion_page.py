"""docs/stable-diffusion.md says what is so: its table, its numbers, its commands, links and figures."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from data.cli import parse
from data.errors import InputError
from docs.scripts import figures, plots
from docs.scripts import stable_diffusion as sd
from docs.scripts.stable_diffusion import Anatomy
from infer.comparison.grid import parse_axis
from infer.config import COMPARE_ALIASES, CompareOptions
from train.model import POCKET_FOLDER, SD_V1_CONFIGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "stable-diffusion.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_configs_say() -> None:
    assert sd.between(PAGE, "shapes") == sd.shapes_table()


def test_shapes_and_counts_of_sd_v14() -> None:
    """The published parameter counts, and the thesis' ratio put right."""
    found = Anatomy(SD_V1_CONFIGS)
    assert found.parameters == {"vae": 83_653_863, "text_encoder": 123_060_480, "unet": 859_520_964}
    assert (found.image, found.latents, found.ratio, found.factor) == ((3, 512, 512), (4, 64, 64), 48, 8)
    assert "**(4, 64, 64)**" in PAGE and "**48 times fewer**" in PAGE
    assert f"{3 * 512 * 512:,}" in PAGE and f"{4 * 64 * 64:,}" in PAGE


def test_levels_are_those_that_the_network_walks() -> None:
    """The embedded base's U-Net, called once: what leaves each down block's last layers."""
    found = Anatomy(POCKET_FOLDER)
    unet = UNet2DConditionModel.from_pretrained(POCKET_FOLDER, subfolder="unet", use_safetensors=True)
    assert isinstance(unet, UNet2DConditionModel)
    seen: list[tuple[int, ...]] = []
    for block in unet.down_blocks:
        last: Any = block.resnets
        last[-1].register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    with torch.no_grad():
        out = unet(torch.zeros(1, *found.latents), 1, torch.zeros(1, *found.text_states), return_dict=False)[0]
    assert seen == [level.shape for level in found.levels]
    assert tuple(out.shape[1:]) == found.latents
    assert [level.attends for level in found.levels] == [hasattr(block, "attentions") for block in unet.down_blocks]


def test_every_command_of_the_page_is_understood() -> None:
    commands = re.findall(r"`python ((?:infer|docs/scripts)/\S+\.py)( [^`]*)?`", PAGE)
    assert len(commands) >= 12
    for script, flags in commands:
        words = shlex.split(flags or "")
        assert (ROOT / script).is_file()
        if script == "infer/compare.py":
            asked = parse(CompareOptions, words, prog="compare.py", aliases=COMPARE_ALIASES)
            for text, flag in ((asked.x_axis, "--x"), (asked.y_axis, "--y"), (asked.z_axis, "--z")):
                parse_axis(text, flag, asked.prompt)
        elif words[0] == "sd":
            assert set(words[1:]) <= set(figures.SD), words


def test_links_and_figures_are_there_and_light() -> None:
    for path in re.findall(r"\]\((?!https)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
    drawn = [name for name in figures.SD if name != "shapes"]
    assert set(drawn) == {*sd.PLOTS, *sd.SHEETS}
    for name in drawn:
        path = figures.DOCS / "figures" / f"sd-{name}.png"
        assert f"](figures/{path.name})" in PAGE and f"figures.py sd {name}" in PAGE
        assert path.stat().st_size <= plots.LIMIT


def test_figures_are_made_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stable-diffusion.md").write_text("a\n<!-- shapes -->\nold\n<!-- /shapes -->\nz\n", encoding="utf-8")
    names = ["shapes", "vae", "guidance"]
    monkeypatch.setattr(sd, "GUIDANCE", (1.0, 4.0))
    monkeypatch.setattr(sys, "argv", ["figures.py", "sd", *names, "--out", str(tmp_path), "--steps", "1"])
    assert figures.main() == 0
    text = (tmp_path / "stable-diffusion.md").read_text()
    assert sd.between(text, "shapes") == sd.shapes_table() and text.startswith("a\n") and text.endswith("z\n")
    with Image.open(tmp_path / "figures" / "sd-vae.png") as picture:
        assert picture.width == 1000
    monkeypatch.setattr(sys, "argv", ["figures.py", "sd", "shape"])
    with pytest.raises(InputError, match="unknown figure 'shape', did you mean 'shapes'"):
        figures.main()


def test_near_phrases_lie_near() -> None:
    cosines = sd.phrase_cosines()
    names = list(sd.PHRASES)
    near = cosines[names.index("a red car"), names.index("a red automobile")]
    assert near > cosines[names.index("a red car"), names.index("a cat")] + 0.5
