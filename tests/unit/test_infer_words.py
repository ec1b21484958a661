"""What is laid around and taken out of prompts, and how large pictures are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from data.errors import InputError, InputErrors
from infer import conditioning_images, config, generation, prompts
from infer.config import LoraFile
from infer.prompts import ImageRequest, Style, apply_lora_tags
from train.model import BaseModel


def model_of(side: int, step: int) -> BaseModel:
    return cast(BaseModel, SimpleNamespace(sample_size=side, step=step))


@pytest.mark.parametrize(
    ("ratio", "side", "step", "expected"),
    [(1.0, 64, 8, (64, 64)), (1.5, 512, 64, (576, 384)), (16 / 9, 512, 8, (680, 384)), (0.5, 64, 16, (48, 96))],
)
def test_sides_of_a_ratio_have_the_models_area(ratio: float, side: int, step: int, expected: tuple[int, int]) -> None:
    width, height = conditioning_images.size_for_aspect(ratio, side**2, step)
    assert (width, height) == expected
    assert 0.75 < width * height / side**2 < 1.35


def test_what_is_typed_comes_first_then_the_ratio_then_the_picture_given() -> None:
    model = model_of(64, 8)
    assert conditioning_images.choose_size(config.read_options(["--width", "32"]), model, (100, 50)) == (32, 64)
    assert conditioning_images.choose_size(config.read_options(["--aspect", "2:1"]), model, (100, 300)) == (96, 48)
    assert conditioning_images.choose_size(config.read_options([]), model, (300, 150)) == (96, 48)
    assert conditioning_images.choose_size(config.read_options([]), model, None) == (64, 64)


@pytest.mark.parametrize(
    ("text", "value"), [("3:2", 1.5), ("3x2", 1.5), ("1.5", 1.5), ("16/9", 16 / 9), ("2 : 3", 2 / 3)]
)
def test_ratios_as_people_write_them(text: str, value: float) -> None:
    assert config.read_options(["--aspect", text]).ratio == pytest.approx(value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--aspect", "wide"], "'wide' is no ratio of two sides up to 8 : 1, such as 3:2"),
        (["--aspect", "3:0"], "is no ratio"),
        (["--aspect", "9:1"], "is no ratio"),
        (["--aspect", "3:2", "--width", "64"], "leave out --width and --height"),
        (["--seeds", "1,x"], "is no list of different seeds"),
        (["--seeds", "1,1"], "is no list of different seeds"),
        (["--seeds", "1,2", "--seed", "3"], "--seeds already names every picture"),
        (["--mask", "m.png"], "give the picture with --init-image"),
        (["--controlnet", "c"], "give it with --scribble"),
        (["--scribble", "a.png", "--init-image", "b.png"], "give one, or add --controlnet"),
        (["--hide-flagged"], "hides what --safety-checker finds"),
        (["--strength", "0"], "--strength: '0' is not allowed; allowed: greater than 0"),
        (["--guidance-rescale", "2"], "--guidance-rescale: '2' is not allowed; allowed: less than or equal to 1"),
        (["--guidance-stop", "0"], "--guidance-stop: '0' is not allowed"),
        (["--weighting", "comfy"], "--weighting: 'comfy' is not allowed; allowed: 'a1111', 'compel' or 'none'"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        config.read_options(argv)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_named_seeds_draw_each_prompt_with_each() -> None:
    pictures = generation.requested_images(config.read_options(["--prompt", "a", "--prompt", "b", "--seeds", "7,3"]))
    assert [(picture.prompt, picture.seed) for picture in pictures] == [("a", 7), ("a", 3), ("b", 7), ("b", 3)]


def test_every_shipped_style_has_a_place_for_the_prompt() -> None:
    shipped = prompts.read_styles(prompts.STYLES_FILE)
    assert len(shipped) >= 17
    assert all(each.around("a {fridge}").count("a {fridge}") == 1 for each in shipped.values())
    assert "origami" in prompts.list_styles(None)


def test_a_style_is_laid_around_words_and_put_behind_what_is_not_wanted(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text('ink: "{prompt}, in ink"\nwet:\n  prompt: "wet {prompt}"\n  negative: dry\n', encoding="utf-8")
    wet = prompts.choose_style("wet", file)
    assert wet == Style("wet", "wet {prompt}", "dry")
    assert (wet.behind(""), wet.behind("grey")) == ("dry", "grey, dry")
    own = ImageRequest(0, "a car", 1, own={"negative_prompt": "blurry", "steps": 3})
    (styled,) = generation.apply_style([own], wet)
    assert (styled.prompt, styled.unstyled) == ("wet a car", "a car")
    assert dict(styled.own) == {"negative_prompt": "blurry, dry", "steps": 3}
    assert generation.apply_style([own], prompts.choose_style(None, None)) == [own]
    with pytest.raises(InputError, match="unknown style 'wett', did you mean 'wet'"):
        prompts.choose_style("wett", file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: no place", "'a' has no prompt with"),
        ("[1]", "holds no styles"),
        ("a: [", "read as YAML"),
        ("a: 3", "'a' has"),
    ],
)
def test_a_style_file_that_is_none_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        prompts.read_styles(tmp_path / "s.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        prompts.read_styles(tmp_path / "missing.yaml")


@pytest.fixture
def shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in ("loras/ink.safetensors", "runs/0003-style/export/lora.safetensors", "own.safetensors"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    return tmp_path


def test_tags_are_taken_out_of_the_words(shelves: Path) -> None:
    everywhere = (LoraFile(Path("x.safetensors")),)
    prompts = ["a <lora:ink:0.5> car<lora:0003-style>", "<lora:own.safetensors:-1:1>, b", "c  d", "<lora:3:2> e"]
    dressed = apply_lora_tags([ImageRequest(index, text, 1) for index, text in enumerate(prompts)], everywhere)
    ink, run = LoraFile(Path("loras/ink.safetensors"), 0.5), Path("runs/0003-style/export/lora.safetensors")
    assert [each.prompt for each in dressed] == ["a car", ", b", "c  d", "e"]
    assert [each.loras for each in dressed] == [
        (*everywhere, ink, LoraFile(run)),
        (*everywhere, LoraFile(Path("own.safetensors"), -1.0)),
        everywhere,
        (*everywhere, LoraFile(run, 2.0)),
    ]


def test_tags_that_name_nothing_are_all_named_at_once(shelves: Path) -> None:
    text = "<lora:inc> <lora:ink:much> <lora:ink:1000>"
    with pytest.raises(InputErrors) as caught:
        prompts.apply_lora_tags([ImageRequest(0, text, 1)], ())
    lines = str(caught.value).splitlines()
    assert lines[0] == "<lora:inc>: there is no LoRA 'inc', did you mean 'ink'?; allowed: ink, 0003-style"
    assert "its weight 'much' is no number" in lines[1]
    assert "not between -100 and 100" in lines[2]


def test_an_unknown_weight_in_a_prompt_is_refused_for_every_prompt() -> None:
    found: list[Any] = generation.check_grammar(["(a:1000)", "b", "(a:1000)"], "a1111")
    assert [str(error) for error in found] == ["--prompt: a weight in '(a:1000)'; allowed: -100 to 100"]
    assert generation.check_grammar(["(a:1000)"], "none") == []
