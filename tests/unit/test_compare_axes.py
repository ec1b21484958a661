"""Axes as they are typed, what stands in each place, and one clear line for each mistake."""

from pathlib import Path

import pytest

from data.errors import InputError
from infer.comparing import axes, options, thesis, wishes
from infer.comparing.options import CompareOptions
from infer.comparing.weights import Finder
from tests.tiny import tiny_lora


def table(*argv: object) -> wishes.Table:
    asked = options.read([str(word) for word in argv])
    return wishes.table(asked, Finder(asked))


def test_values_are_read_as_what_they_are() -> None:
    read = lambda text: axes.read(text, "--x", ["a {type} fridge"])  # noqa: E731
    texts = ("steps=10,20", "seed=1..3", "cfg=1,7.5", "trigger=off,on")
    assert [axis.values for text in texts if (axis := read(text))] == [
        (10, 20),
        (1, 2, 3),
        (1.0, 7.5),
        (False, True),
    ]  # fmt: skip
    sampler, prompt, slot = read("sampler=DPM++ 2M Karras"), read("prompt=a, b||c"), read("type=water,fire")
    assert sampler and sampler.name == "scheduler" and sampler.values == ("dpmpp_2m_karras",)
    assert prompt and prompt.values == ("a, b", "c") == prompt.shown
    assert slot and slot.name == "type" and slot.shown == ("type water", "type fire")
    assert read("  ") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz=1", "--x: unknown axis 'stepz', did you mean 'steps'?; allowed: model, lora, "),
        ("tpe=water", "did you mean 'type'?"),
        ("steps=", "--x: the axis 'steps' has no values"),
        ("steps", "--x: the axis 'steps' has no values"),
        ("steps=1,,2", "--x: the axis 'steps' has an empty value"),
        ("steps=0", "--x: steps '0' is not allowed; allowed: a whole number from 1 on"),
        ("steps=ten", "--x: steps 'ten' is not allowed; allowed: a number"),
        ("seed=9..1", "--x: '9..1' is no range"),
        ("guidance-scale=nan", "a number from 0 on"),
        ("scheduler=eulr", "unknown scheduler 'eulr', did you mean 'euler'?"),
        ("model=pocket,pocket", "--x: the model 'pocket' is named twice. Name each once."),
        ("trigger=maybe", "allowed: on, off"),
        ("checkpoint=last", "a number of optimiser steps (0 is the base), best, final, all"),
        ("replace=fridge", "nothing to replace it with"),
        ("lora-weight=1000", "a number from -100 to 100"),
    ],
)
def test_an_axis_that_makes_no_sense_is_one_clear_line(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        axes.read(text, "--x", ["a {type} fridge"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_axes_make_every_combination_in_reading_order(tmp_path: Path) -> None:
    found = table("--x", "steps=1,2", "--y", "type=water,fire", "--z", "seed=7,8", "--prompt", "a {type} fridge",
                  "--model", "pocket")  # fmt: skip
    assert list(found.wishes) == [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    last = found.wishes[1, 1, 1]
    assert (last.prompt, last.template, last.seed, last.steps) == ("a fire fridge", "a {type} fridge", 8, 2)
    assert found.place((1, 0, 1)).shown == ("steps 2", "type water", "seed 8")


def test_several_prompts_take_the_free_rows_and_nothing_asked_shows_seeds(tmp_path: Path) -> None:
    several = table("--x", "steps=1,2", "--prompt", "a", "--prompt", "b", "--model", "pocket")
    assert [axis.name for axis in several.axes] == ["steps", "prompt", ""]
    plain = table("--model", "pocket")
    assert [axis.name for axis in plain.axes] == ["seed", "prompt", ""]
    assert len(plain.wishes) == 2 * 4


def test_words_are_replaced_and_triggers_put_where_they_belong() -> None:
    found = table("--x", "replace=fridge,car", "--y", "trigger=off,on", "--prompt", "a fridge", "--model", "pocket")
    assert [wish.prompt for wish in found.wishes.values()] == [
        "a fridge",
        "a car",
        "a creature fridge",
        "a creature car",
    ]
    on = [
        wishes.triggered(text, "Pokémon", True) for text in ("A calculator", "an apple", "toucans", "the {trigger} x")
    ]
    assert on == ["A Pokémon calculator", "a Pokémon apple", "Pokémon toucans", "the Pokémon x"]
    off = [wishes.triggered(text, "Pokémon", False) for text in ("A pokémon apple", "an apple", "the {trigger} x")]
    assert off == ["An apple", "an apple", "the x"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--x", "seed=1..30", "--y", "steps=1..20"], "30 (seed) x 20 (steps) = 600 cells; allowed: 400"),
        (["--x", "seed=1,2", "--y", "seed=3,4"], "--y: the axis 'seed' is on --x already"),
        (["--x", "model=pocket,./data/pocket/base/../base,pocket"], "is named twice"),
        (["--x", "model=base,pocket"], "--x: 'base' and 'pocket' are the same weights. Name each once."),
        (["--x", "model=base,tuned"], "model=tuned: pocket is itself a base: nothing is tuned"),
        (["--x", "lora-weight=0,1"], "lora-weight: there is no LoRA to weigh"),
        (["--x", "checkpoint=1,2"], "checkpoint of pocket: not a run"),
        (["--x", "replace=car,cup", "--prompt", "a fridge"], "replace: 'car' is not in the prompt 'a fridge'"),
        (["--prompt", "{e$$a|b}"], "stands for 2 prompts, and a cell shows one"),
        (["--x", "a=1", "--y", "b=2"], "--x: unknown axis 'a'"),
        (["--z", "steps=1", "--y", "seed=1", "--x", "cfg=1", "--prompt", "a", "--prompt", "b"], "no axis is left"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        table("--model", "pocket", *argv)
    assert said in str(caught.value)


def test_weights_are_found_by_the_words_of_the_axes(tiny_model: Path, tmp_path: Path) -> None:
    lora = tiny_lora(tiny_model, tmp_path / "style.safetensors")
    found = table("--model", tiny_model, "--lora", lora, "--x", "model=base,tuned", "--y", "lora-weight=0,0.5",
                  "--prompt", "a")  # fmt: skip
    weights = {at[:2]: [(each.path, each.weight) for each in wish.weights.loras] for at, wish in found.wishes.items()}
    assert weights == {(0, 0): [], (1, 0): [], (0, 1): [], (1, 1): [(lora, 0.5)]}
    axis = table("--model", tiny_model, "--x", f"lora=none,{lora},{lora}:0.5", "--prompt", "a")
    assert [len(wish.weights.loras) for wish in axis.wishes.values()] == [0, 1, 1]


def test_a_run_is_found_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "0003-lora-r16").mkdir()
    finder = Finder(CompareOptions())
    assert finder.run_name(str(tmp_path / "0003")) == str(tmp_path / "0003-lora-r16")
    assert finder.run_name(str(tmp_path / "0004")) == str(tmp_path / "0004")
    (tmp_path / "0003-other").mkdir()
    assert finder.run_name(str(tmp_path / "0003")) == str(tmp_path / "0003")


def test_all_eighteen_panels_of_the_thesis_are_shipped_as_they_are_spelled() -> None:
    found = thesis.figures()
    assert [figure.number for figure in found] == [f"3.{number}" for number in range(1, 9)]
    panels = [panel for figure in found for panel in figure.panels]
    prompts = [panel.prompt for panel in panels]
    assert (len(prompts), len(set(prompts))) == (18, 16)
    assert {"A eletric type fridge", "A mix of Feraligatr and MewTwo", "A rainbow colored Bulbassaur"} < set(prompts)
    assert sum("Pokémon" in prompt for prompt in prompts) == 2
    assert sum("pokémon" in prompt for prompt in prompts) == 3
    assert [panel.model for panel in panels] == ["base", *["tuned"] * 17]
    twins = " ".join(panel.words("twin") for panel in panels)
    assert not any(name in twins for name in ("kémon", "Pikachu", "Rayquaza", "Feraligatr", "MewTwo", "Bulbassaur"))
    one, two = found[6].panels
    assert one.prompt == two.prompt and one.seed != two.seed


def test_a_lora_in_a_prompt_is_that_prompts_own(tiny_model: Path, tmp_path: Path) -> None:
    """As generate.py reads it: out of the words, over every model but the base; `replace` turns its weight."""
    ink, own = (tiny_lora(tiny_model, tmp_path / f"{name}.safetensors") for name in ("ink", "own"))
    shared = ["--model", tiny_model, "--lora", own, "--prompt", f"a car <lora:{ink}:0.5>"]
    found = table(*shared, "--x", "model=base,tuned", "--y", "replace=0.5,0.25").wishes
    assert {wish.prompt for wish in found.values()} == {"a car"}
    assert all(found[0, row, 0].weights.loras == () for row in range(2))
    assert [[(lora.path, lora.weight) for lora in found[1, row, 0].weights.loras] for row in range(2)] == [
        [(own, 1.0), (ink, 0.5)],
        [(own, 1.0), (ink, 0.25)],
    ]
    with pytest.raises(InputError, match=r"^<lora:inc:1>: there is no LoRA 'inc'"):
        table("--model", tiny_model, "--prompt", "a car <lora:inc:1>", "--x", "seed=1,2")
