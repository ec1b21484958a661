"""generate.py's command line: what is taken, and one clear line for each thing that is not."""

from pathlib import Path

import pytest

from data.errors import InputError
from infer import config
from infer.config import LoraFile, parse_lora


def test_without_flags_there_is_something_to_draw() -> None:
    options = config.read_options([])
    assert options.prompt == config.DEFAULT_PROMPTS
    assert (options.seed, options.steps, options.guidance_scale) == (42, 50, 7.5)


def test_a_grid_that_cannot_be_read_is_one_line() -> None:
    with pytest.raises(InputError, match=r"--grid.*'type' is not a name with its values"):
        config.read_options(["--grid", "type"])


def test_prompts_repeat_and_fingers_find_their_flags() -> None:
    argv = ["--prompt", "a, b", "-p", "c", "-n", "blurry", "--cfg", "5", "-H", "64", "--sampler", "Euler a"]
    options = config.read_options(
        [*argv, "--num_images", "3", "--lora", "x.safetensors:0.5", "--lora", "y.safetensors"]
    )
    assert options.prompt == ("a, b", "c")
    assert (options.negative_prompt, options.guidance_scale, options.height) == ("blurry", 5.0, 64)
    assert (options.scheduler, options.num_images) == ("euler_a", 3)
    others = ["--ddim_steps", "9", "--n_samples", "2", "--n", "grey", "--precision", "bf16", "--batch_size", "8"]
    theirs = config.read_options(others)
    assert (theirs.steps, theirs.num_images) == (9, 2)
    assert (theirs.negative_prompt, theirs.dtype, theirs.batch_size) == ("grey", "bf16", 8)
    assert options.loras == (LoraFile(Path("x.safetensors"), 0.5), LoraFile(Path("y.safetensors")))


@pytest.mark.parametrize(
    "prompt", ["a Pokémon", "日本の猫", 'say "hi"', "back\\slash", "a, b", "[x]", "{a|b}", "12", "null"]
)
def test_a_prompt_arrives_as_it_was_typed(prompt: str) -> None:
    assert config.read_options(["--prompt", prompt]).prompt == (prompt,)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("C:\\style.safetensors", "C:\\style.safetensors", 1.0),
        ("C:\\style.safetensors:.5", "C:\\style.safetensors", 0.5),
        ("runs/a:b/lora.safetensors", "runs/a:b/lora.safetensors", 1.0),
        (":2", ":2", 1.0),
    ],
)
def test_only_a_number_after_the_last_colon_is_a_weight(text: str, path: str, weight: float) -> None:
    assert parse_lora(text) == LoraFile(Path(path), weight)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--promt", "a"], "--promt: unknown flag, did you mean '--prompt'?"),
        (["--prompt", "a", "--prompt", " "], "--prompt: the prompt is empty"),
        (["--steps", "0"], "--steps: '0' is not allowed; allowed: greater than or equal to 1"),
        (["--steps", "-5"], "--steps: '-5' is not allowed"),
        (["--steps", "many"], "--steps: 'many' is not allowed; allowed: integer"),
        (["--seed", "-2"], "--seed: '-2' is not allowed; allowed: greater than or equal to -1"),
        (["--seed", str(2**63)], "--seed: "),
        (["--seed", str(2**63 - 1), "--num-images", "2"], "is past the highest seed"),
        (["--num-images", "0"], "--num-images: '0' is not allowed"),
        (["--guidance-scale", "nan"], "--guidance-scale: 'nan' is not allowed; allowed: a finite number"),
        (["--dtype", "fp8"], "--dtype: 'fp8' is not allowed; allowed: 'fp32', 'fp16' or 'bf16'"),
        (["--scheduler", "ddimm"], "--scheduler: unknown scheduler 'ddimm', did you mean 'ddim'?; allowed: pndm, ddim"),
        (["--lora", "a.safetensors:1000"], "the weight of 'a.safetensors:1000' is not between -100 and 100"),
        (["--lora", "a.safetensors:nan"], "the weight of 'a.safetensors:nan' is not between"),
        (["--width", "0"], "--width: '0' is not allowed"),
    ],
)
def test_a_wrong_flag_is_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        config.read_options(argv)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
