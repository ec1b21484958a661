"""generate.py with more than plain prompts: LoRAs by prompt, styles, aspect ratios, input images, masks, scribbles."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.errors import InputError
from infer import metadata
from tests.commands import generate, log, pixels, recipes
from tests.tiny import tiny_lora


@pytest.fixture
def shelf(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a person works in: a LoRA on the shelf, a picture with its mask, a drawing."""
    monkeypatch.chdir(tmp_path)
    Path("loras").mkdir()
    tiny_lora(tiny_model, Path("loras") / "ink.safetensors", strength=0.3)
    scene = Image.radial_gradient("L").resize((96, 48)).convert("RGB")
    scene.save("cat.png")
    mask = Image.new("RGB", (96, 48))
    ImageDraw.Draw(mask).rectangle((30, 10, 70, 40), fill="white")
    mask.save("mask.png")
    drawing_ = Image.new("RGB", (96, 48), "black")
    ImageDraw.Draw(drawing_).line((5, 5, 90, 40), fill="white", width=3)
    drawing_.save("scribble.png")
    return tmp_path


def test_each_prompt_has_its_own_loras_and_the_others_are_the_base(
    tiny_model: Path, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Complaint: after a LoRA is taken off the base is not what it was."""
    how = ["--model", tiny_model, "--steps", 1, "--seeds", "7,3", "--aspect", "2:1"]
    words = ["--prompt", "a fire <lora:ink:0.5>", "--prompt", "a (water:1.3)"]
    assert generate(*how, *words, "--style", "creature", "-n", "grey", "--outdir", "a") == 0
    said = capsys.readouterr().out
    assert "LoRA ink.safetensors at 0.5: 64 of 64 tensors matched" in said
    found = recipes(Path("a"))
    assert [(each.seed, each.unstyled, len(each.loras)) for each in found] == [
        (7, "a fire", 1),
        (3, "a fire", 1),
        (7, "a (water:1.3)", 0),
        (3, "a (water:1.3)", 0),
    ]
    assert found[0].prompt == "a cartoon creature, a fire, white background"
    assert (found[0].style, found[0].negative_prompt, found[0].weighting) == ("creature", "grey, photo", "a1111")
    assert (found[0].width, found[0].height) == (96, 48)
    assert found[0].loras[0].prediction > 0
    assert generate(*how, *words[2:], "--style", "creature", "-n", "grey", "--outdir", "b") == 0
    assert Path("a/00002-7.png").read_bytes() == Path("b/00000-7.png").read_bytes(), "drawn after one with a LoRA"
    # what the recipe says is enough to draw it again
    assert generate("--params-from", "a/00000-7.png", "--model", tiny_model, "--lora", "loras/ink.safetensors:0.5") == 0
    assert pixels(Path("outputs/0001/00000-7.png")) == pixels(Path("a/00000-7.png"))
    # Complaint: pictures cannot be found by what they are of. Each is a line with all of it.
    lines = log(Path("a"))
    with_ink = [line["file"] for line in lines if any("ink" in lora["name"] for lora in line["loras"])]
    assert with_ink == ["00000-7.png", "00001-3.png"]
    assert [line["file"] for line in lines if line["seed"] == 3 and "water" in line["prompt"]] == ["00003-3.png"]


def test_a_tag_that_names_no_lora_is_refused_before_anything_is_loaded_onto_the_networks(
    tiny_model: Path, shelf: Path
) -> None:
    with pytest.raises(InputError, match=r"<lora:inc>.*'ink'"):
        generate("--model", tiny_model, "--prompt", "a <lora:inc>", "--outdir", "a")
    assert not Path("a").exists()


def test_inpainting_and_repeating_it_from_the_image(
    tiny_model: Path, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--model", tiny_model, "--steps", 4, "--prompt", "a fire", "--sampler", "euler_a", "--outdir"]
    given = ["--init-image", "cat.png", "--mask", "mask.png", "--strength", "0.5"]
    assert generate(*how, "a", *given) == 0
    (found,) = recipes(Path("a"))
    assert [(used.role, used.name) for used in found.inputs] == [("init", "cat.png"), ("mask", "mask.png")]
    assert (found.width, found.height, found.strength) == (96, 48, 0.5), "the picture's own ratio"
    assert "Denoising strength: 0.5" in metadata.read_image_texts(Path("a/00000-42.png"))["parameters"]
    with Image.open("a/00000-42.png") as drawn, Image.open("cat.png") as before:
        after, given_ = np.asarray(drawn), np.asarray(before)
    assert np.array_equal(after[:, :30], given_[:, :30]), "outside the mask it is the given picture"
    assert not np.array_equal(after, given_)
    capsys.readouterr()
    assert generate("--params-from", "a/00000-42.png", "--model", tiny_model, "--outdir", "b") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the same image, bit for bit"
    os.replace("cat.png", "away.png")
    with pytest.raises(InputError, match=r"cat\.png.*--init-image"):
        generate("--params-from", "a/00000-42.png", "--model", tiny_model, "--outdir", "c")
    with pytest.raises(InputError, match="--strength"):
        generate(*how, "d", "--init-image", "away.png", "--strength", "0.1")
    assert not Path("d").exists()


def test_a_scribble_on_any_base(tiny_model: Path, shelf: Path) -> None:
    how = ["--model", tiny_model, "--prompt", "a fire", "--scribble", "scribble.png", "--steps", 4, "--outdir"]
    assert generate(*how, "a", "--guidance-stop", 0.5) == 0
    (found,) = recipes(Path("a"))
    assert (found.polarity, found.inputs[0].role) == ("light-on-dark", "scribble")
    assert (found.guidance_stop, found.safety) == (0.5, "off")
    assert generate(*how, "b", "--polarity", "dark-on-light") == 0
    assert recipes(Path("b"))[0].polarity == "dark-on-light"


def test_styles_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--style", "list") == 0
    assert "origami        origami of {prompt}" in capsys.readouterr().out
