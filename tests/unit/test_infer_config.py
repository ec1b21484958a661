"""generate.py's command line: what is accepted, and one clear error for each thing that is not."""

from pathlib import Path

import pytest

from data.errors import InputError
from infer import config
from infer.config import LoraFile, parse_lora


def error_of(*argv: str) -> InputError:
    with pytest.raises(InputError) as caught:
        config.read_options(list(argv))
    assert "\n" not in str(caught.value)
    return caught.value


def test_defaults_that_depend_on_the_model_are_left_open() -> None:
    options = config.read_options([])
    assert options.prompt == config.DEFAULT_PROMPTS
    assert (options.seed, options.steps, options.guidance_scale, options.scheduler) == (42, None, None, None)


def test_prompts_repeat_and_other_programs_flags_are_known() -> None:
    argv = ["--prompt", "a, b", "-p", "c", "-n", "blurry", "--cfg", "5", "-H", "64", "--sampler", "Euler a"]
    options = config.read_options(
        [*argv, "--num_images", "3", "--lora", "x.safetensors:0.5", "--lora", "y.safetensors"]
    )
    assert options.prompt == ("a, b", "c")
    assert (options.negative_prompt, options.guidance_scale, options.height) == ("blurry", 5.0, 64)
    assert (options.scheduler, options.num_images) == ("euler_a", 3)
    assert options.loras == (LoraFile(Path("x.safetensors"), 0.5), LoraFile(Path("y.safetensors")))
    others = ["--ddim_steps", "9", "--n_samples", "2", "--n", "grey", "--precision", "bf16", "--batch_size", "8"]
    theirs = config.read_options(others)
    assert (theirs.steps, theirs.num_images, theirs.negative_prompt) == (9, 2, "grey")
    assert (theirs.dtype, theirs.batch_size) == ("bf16", 8)


@pytest.mark.parametrize(
    "prompt", ["a Pokémon", "日本の猫", 'say "hi"', "back\\slash", "a, b", "[x]", "{a|b}", "12", "null"]
)
def test_a_prompt_arrives_as_it_was_typed(prompt: str) -> None:
    assert config.read_options(["--prompt", prompt]).prompt == (prompt,)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0), ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0), ("C:\\style.safetensors", "C:\\style.safetensors", 1.0),
        ("C:\\style.safetensors:.5", "C:\\style.safetensors", 0.5),
        ("runs/a:b/lora.safetensors", "runs/a:b/lora.safetensors", 1.0), (":2", ":2", 1.0),
    ],
)  # fmt: skip
def test_only_a_number_after_the_last_colon_is_a_weight(text: str, path: str, weight: float) -> None:
    assert parse_lora(text) == LoraFile(Path(path), weight)


@pytest.mark.parametrize(
    ("text", "value"), [("3:2", 1.5), ("3x2", 1.5), ("1.5", 1.5), ("16/9", 16 / 9), ("2 : 3", 2 / 3)]
)
def test_aspect_ratios(text: str, value: float) -> None:
    assert config.parse_aspect(config.read_options(["--aspect", text]).aspect) == pytest.approx(value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--promt", "a"), ("--prompt", " "), ("--steps", "0"), ("--steps", "many"), ("--seed", "-2"),
        ("--seed", str(2**63)), ("--num-images", "0"), ("--guidance-scale", "nan"), ("--guidance-rescale", "2"),
        ("--guidance-stop", "0"), ("--strength", "0"), ("--dtype", "fp8"), ("--weighting", "comfy"),
        ("--scheduler", "ddimm"), ("--lora", "a.safetensors:1000"), ("--lora", "a.safetensors:nan"), ("--width", "0"),
        ("--grid", "type"), ("--aspect", "wide"), ("--aspect", "3:0"), ("--aspect", "9:1"), ("--seeds", "1,x"),
        ("--seeds", "1,1"), ("--fast", "true"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_flag(flag: str, value: str) -> None:
    assert str(error_of(flag, value).where) == flag


def test_errors_suggest_and_list_what_is_allowed() -> None:
    assert "'--prompt'" in str(error_of("--promt", "a"))
    assert "'ddim'" in str(error_of("--scheduler", "ddimm"))
    assert config.FAST_FLAGS in str(error_of("--fast").fix)


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        (["--aspect", "3:2", "--width", "64"], "--width"),
        (["--seeds", "1,2", "--seed", "3"], "--seed"),
        (["--mask", "m.png"], "--init-image"),
        (["--controlnet", "c"], "--scribble"),
        (["--scribble", "a.png", "--init-image", "b.png"], "--controlnet"),
        (["--hide-flagged"], "--safety-checker"),
        (["--seed", str(2**63 - 1), "--num-images", "2"], "seed"),
    ],
)
def test_flags_that_need_or_exclude_others_name_them(argv: list[str], missing: str) -> None:
    assert missing in str(error_of(*argv))
