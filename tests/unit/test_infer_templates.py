"""Prompt templates: what is chosen, how often, and that the same seed chooses the same."""

from collections import Counter
from pathlib import Path

import pytest

from data.errors import InputError
from infer import config, prompts

NO_AXES: dict[str, tuple[str, ...]] = {}


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    folder = tmp_path / "wildcards"
    (folder / "animals").mkdir(parents=True)
    (folder / "colour.txt").write_text("# by people\nred\n\n3::blue\n", encoding="utf-8")
    (folder / "animals" / "birds.txt").write_text("a {toucan|parrot}\n", encoding="utf-8")
    (folder / "animals" / "mammals.txt").write_text("a __colour__ capybara\n", encoding="utf-8")
    (folder / "loop.txt").write_text("more __loop__\n", encoding="utf-8")
    (folder / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    return folder


def one(template: str, seed: int = 0, wildcards: Path = Path("wildcards")) -> str:
    (text,) = prompts.expand_template(template, NO_AXES, wildcards, seed)
    return text


def counts(template: str, wildcards: Path = Path("wildcards"), images: int = 3000) -> Counter[str]:
    return Counter(one(template, seed, wildcards) for seed in range(images))


@pytest.mark.parametrize("text", ["a water type fridge", "a  fridge ,two  spaces", "50 % (red:1.2) [x] a_b __", "ü 水"])
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert one(text) == text
    assert one(prompts.escape_template(text)) == text


def test_escaped_characters_stand_for_themselves() -> None:
    assert one(r"a \{b\} c\|d \_\_e__ \\") == "a {b} c|d __e__ \\"


def test_the_first_choices_are_these_for_ever() -> None:
    """A prompt file's images must not change with a release."""
    assert "".join(one("{a|b|c}", seed) for seed in range(9)) == "bbacaacab"


def test_options_are_equally_likely() -> None:
    found = counts("a {red|blue} fridge")
    assert set(found) == {"a red fridge", "a blue fridge"}
    assert 1400 < found["a red fridge"] < 1600  # 3.7 standard deviations


def test_weights() -> None:
    assert 2150 < counts("{3::water|1::fire} fridge")["water fridge"] < 2350
    assert set(counts("{0::never|always}", images=50)) == {"always"}


def test_choices_nest_and_are_independent() -> None:
    found = counts("a {red|{light|dark} blue} {cat|dog}")
    assert len(found) == 6
    assert 650 < found["a red cat"] < 850 and 300 < found["a dark blue dog"] < 450


def test_several_different_options_and_empty_ones() -> None:
    assert set(counts("{2$$a|b}", images=60)) == {"a, b", "b, a"}
    assert set(counts("{2$$ and $$a|b}", images=60)) == {"a and b", "b and a"}
    assert len(counts("{2$$a|b|c}", images=300)) == 6
    assert set(counts("a {big |}fridge", images=60)) == {"a big fridge", "a fridge"}


def test_each_option_in_turn() -> None:
    found = prompts.expand_template("{e$$a|b} and {e$$c|d}", NO_AXES, Path("wildcards"), 0)
    assert found == ["a and c", "a and d", "b and c", "b and d"]


def test_a_wildcard_is_a_line_of_its_file(wildcards: Path) -> None:
    found = counts("a __colour__ fridge", wildcards)
    assert set(found) == {"a red fridge", "a blue fridge"} and 2150 < found["a blue fridge"] < 2350
    many = counts("__animals/*__", wildcards, images=200)
    assert set(many) == {"a toucan", "a parrot", "a red capybara", "a blue capybara"}


def test_the_grid_is_every_combination(wildcards: Path) -> None:
    axes = config.parse_grid("type = water, fire ; object=fridge,car")
    assert axes == {"type": ("water", "fire"), "object": ("fridge", "car")}
    found = prompts.expand_template("a {type} type {object}", axes, wildcards, 0)
    assert found == ["a water type fridge", "a water type car", "a fire type fridge", "a fire type car"]
    assert prompts.expand_template("a {object}, {object}", axes, wildcards, 0) == ["a fridge, fridge", "a car, car"]
    assert prompts.expand_template("no axis", axes, wildcards, 0) == ["no axis"]
    assert config.parse_grid("look=red, big||small") == {"look": ("red, big", "small")}


@pytest.mark.parametrize("text", ["type", "type=", "=a,b", "ty pe=a", "type=a,,b", "a=1;a=2", "a=1,1"])
def test_an_invalid_grid_is_named(text: str) -> None:
    with pytest.raises(InputError) as caught:
        config.parse_grid(text)
    assert caught.value.where == "--grid"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a {type fridge", "not closed"),
        ("a {typ} fridge", "'type'"),
        ("{3$$a|b}", "3 of 2"),
        ("{0::a|0::b}", "weights are 0"),
        ("__color__", "'colour'"),
        ("__loop__", "loop > loop"),
        ("__empty__", "no lines"),
        ("__../secret__", "no wildcard"),
        ("{e$$" + "|".join("abcdefghij") + "}" + "{e$$0|1|2|3|4|5|6|7|8|9}" * 5, "100,000"),
    ],
)
def test_an_invalid_template_is_named(wildcards: Path, template: str, words: str) -> None:
    (wildcards.parent / "secret.txt").write_text("the password", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        prompts.expand_template(template, {"type": ("water",)}, wildcards, 0)
    assert words in str(caught.value)


def test_a_wildcard_file_that_is_not_text_is_named(wildcards: Path) -> None:
    (wildcards / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError) as caught:
        one("__bad__", wildcards=wildcards)
    assert caught.value.where == wildcards / "bad.txt"
