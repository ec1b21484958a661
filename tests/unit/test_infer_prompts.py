"""Which pictures are drawn with which seeds, and how much of a prompt is read."""

from pathlib import Path

from infer import prompts, text_encoding
from infer.prompts import ImageRequest
from infer.text_encoding import TokenCount
from tests.tiny import tiny_tokenizer


def test_each_prompt_has_the_same_seeds() -> None:
    planned = prompts.expand_prompts(["a", "b"], 42, 2)
    assert planned == [
        ImageRequest(0, "a", 42),
        ImageRequest(1, "a", 43),
        ImageRequest(2, "b", 42),
        ImageRequest(3, "b", 43),
    ]
    assert [picture.file_name for picture in planned[:2]] == ["00000-42.png", "00001-43.png"]


def test_a_template_chooses_by_the_seed_of_each_picture() -> None:
    planned = prompts.expand_prompts(["a {red|blue|green} cat"], 42, 8)
    assert len({picture.prompt for picture in planned}) > 1
    (alone,) = prompts.expand_prompts(["a {red|blue|green} cat"], 45, 1)
    assert (alone.prompt, alone.seed, alone.template) == (planned[3].prompt, 45, "a {red|blue|green} cat")


def test_a_grid_is_drawn_prompt_by_prompt_with_the_same_seeds() -> None:
    planned = prompts.expand_prompts(
        ["a {type} {object}", "plain"], 1, 2, {"type": ["water"], "object": ["fridge", "car"]}
    )
    assert [(picture.prompt, picture.seed) for picture in planned] == [
        *[("a water fridge", 1), ("a water fridge", 2), ("a water car", 1), ("a water car", 2)],
        *[("plain", 1), ("plain", 2)],
    ]
    assert [picture.index for picture in planned] == list(range(6))
    assert [bool(picture.template) for picture in planned] == [True, True, True, True, False, False]


def test_a_prompt_that_only_some_seeds_choose_is_drawn_for_those() -> None:
    planned = prompts.expand_prompts(["{a|{e$$b|c}}"], 0, 20)
    found = {seed: [p.prompt for p in planned if p.seed == seed] for seed in range(20)}
    assert {tuple(texts) for texts in found.values()} == {("a",), ("b", "c")}


def test_a_random_seed_can_be_typed_again() -> None:
    drawn = {prompts.random_seed() for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_a_long_prompt_is_counted_and_its_lost_words_named(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)  # "water" is one token, the space before "last" none
    long = "water " * 75 + "last words"
    tokens = text_encoding.measure_prompts(["water", long, "water"], tokenizer)
    assert tokens == {"water": TokenCount(1, 75), long: TokenCount(75 + 4 + 5, 75, "last words")}
    (problem,) = text_encoding.truncated_prompts(tokens)
    assert "has 84 tokens, 75 are read; lost: 'last words'" in str(problem)
