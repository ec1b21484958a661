"""Axes as typed, the request at each position of the grid, and clear errors."""

from pathlib import Path

import pytest

from data.cli import parse
from infer.comparison import figures
from infer.comparison.grid import Grid, build_grid, parse_axis, with_trigger
from infer.comparison.weights import WeightsFinder, full_run_name
from infer.config import COMPARE_ALIASES, CompareOptions
from tests.errors import error_of
from tests.tiny import tiny_lora

PROMPTS = ["a {type} fridge"]


def grid_of(*argv: object) -> Grid:
    options = parse(CompareOptions, [str(word) for word in argv], prog="compare.py", aliases=COMPARE_ALIASES)
    return build_grid(options, WeightsFinder(options))


@pytest.mark.parametrize(
    ("text", "name", "values", "headings"),
    [
        ("steps=10,20", "steps", (10, 20), ("steps 10", "steps 20")),
        ("seed=1..3", "seed", (1, 2, 3), ("seed 1", "seed 2", "seed 3")),
        ("cfg=1,7.5", "guidance-scale", (1.0, 7.5), ("guidance 1", "guidance 7.5")),
        ("trigger=off,on", "trigger", (False, True), ("without trigger", "with trigger")),
        ("sampler=DPM++ 2M Karras", "scheduler", ("dpmpp_2m_karras",), ("scheduler dpmpp_2m_karras",)),
        ("prompt=a, b||c", "prompt", ("a, b", "c"), ("a, b", "c")),
        ("type=water,fire", "type", ("water", "fire"), ("type water", "type fire")),
    ],
)
def test_parse_axis(text: str, name: str, values: tuple, headings: tuple[str, ...]) -> None:
    axis = parse_axis(text, "--x", PROMPTS)
    assert axis and (axis.name, axis.values, axis.headings) == (name, values, headings)
    assert parse_axis("  ", "--x", PROMPTS) is None


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("stepz=1", "'steps'"), ("tpe=water", "'type'"), ("steps=", "no values"), ("steps", "no values"),
        ("steps=1,,2", "empty value"), ("steps=0", "1 or more"), ("steps=ten", "a number"), ("seed=9..1", "range"),
        ("guidance-scale=nan", "0 or more"), ("guidance-scale=inf", "0 or more"), ("scheduler=eulr", "'euler'"),
        ("model=pocket,pocket", "twice"), ("trigger=maybe", "on, off"), ("checkpoint=last", "best, final, all"),
        ("replace=fridge", "replacement"), ("lora-weight=1000", "-100 to 100"),
    ],
)  # fmt: skip
def test_invalid_axes(text: str, mentions: str) -> None:
    error = error_of(parse_axis, text, "--x", PROMPTS)
    assert error.where == "--x" and mentions in str(error)


def test_every_combination_in_reading_order() -> None:
    grid = grid_of("--x", "steps=1,2", "--y", "type=water,fire", "--z", "seed=7,8", "--prompt", "a {type} fridge",
                   "--model", "pocket")  # fmt: skip
    assert list(grid.requests) == [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    last = grid.requests[1, 1, 1]
    assert (last.prompt, last.template, last.seed, last.steps) == ("a fire fridge", "a {type} fridge", 8, 2)
    assert grid.place((1, 0, 1)) == {"steps": "steps 2", "type": "type water", "seed": "seed 8"}


def test_default_axes() -> None:
    several = grid_of("--x", "steps=1,2", "--prompt", "a", "--prompt", "b", "--model", "pocket")
    assert [axis.name for axis in several.axes] == ["steps", "prompt", ""]
    plain = grid_of("--model", "pocket")
    assert [axis.name for axis in plain.axes] == ["seed", "prompt", ""]
    assert len(plain.requests) == 2 * 4


def test_replacements_and_triggers() -> None:
    grid = grid_of("--x", "replace=fridge,car", "--y", "trigger=off,on", "--prompt", "a fridge", "--model", "pocket")
    prompts = [request.prompt for request in grid.requests.values()]
    assert prompts == ["a fridge", "a car", "a creature fridge", "a creature car"]


@pytest.mark.parametrize(
    ("prompt", "on", "expected"),
    [
        ("A calculator", True, "A Pokémon calculator"), ("an apple", True, "a Pokémon apple"),
        ("toucans", True, "Pokémon toucans"), ("the {trigger} x", True, "the Pokémon x"),
        ("A pokémon apple", False, "An apple"), ("an apple", False, "an apple"), ("the {trigger} x", False, "the x"),
    ],
)  # fmt: skip
def test_with_trigger(prompt: str, on: bool, expected: str) -> None:
    assert with_trigger(prompt, "Pokémon", on) == expected


@pytest.mark.parametrize(
    ("argv", "where", "mentions"),
    [
        (["--x", "seed=1..30", "--y", "steps=1..20"], "--max-cells", "600"),
        (["--x", "seed=1,2", "--y", "seed=3,4"], "--y", "--x"),
        (["--x", "model=pocket,./data/pocket/base/../base,pocket"], "--x", "twice"),
        (["--x", "model=base,pocket"], "--x", "same weights"),
        (["--x", "model=base,tuned"], "model=tuned", "base model"),
        (["--x", "lora-weight=0,1"], "lora-weight", "--lora FILE"),
        (["--x", "checkpoint=1,2"], "checkpoint of pocket", "not a run"),
        (["--x", "replace=car,cup", "--prompt", "a fridge"], "replace", "'car'"),
        (["--prompt", "{e$$a|b}"], "--prompt", "2 prompts"),
        (["--x", "a=1", "--y", "b=2"], None, "'a'"),
        (["--z", "steps=1", "--y", "seed=1", "--x", "cfg=1", "--prompt", "a", "--prompt", "b"], "--prompt", "no free"),
    ],
)
def test_impossible_grids(argv: list[str], where: str | None, mentions: str) -> None:
    error = error_of(grid_of, "--model", "pocket", *argv)
    assert error.where == where and mentions in str(error)


def test_weights_of_the_axes(tiny_model: Path, tmp_path: Path) -> None:
    lora = tiny_lora(tiny_model, tmp_path / "style.safetensors")
    grid = grid_of("--model", tiny_model, "--lora", lora, "--x", "model=base,tuned", "--y", "lora-weight=0,0.5",
                   "--prompt", "a")  # fmt: skip
    weights = {at[:2]: [(each.path, each.weight) for each in r.weights.loras] for at, r in grid.requests.items()}
    assert weights == {(0, 0): [], (1, 0): [], (0, 1): [], (1, 1): [(lora, 0.5)]}
    grid = grid_of("--model", tiny_model, "--x", f"lora=none,{lora},{lora}:0.5", "--prompt", "a")
    assert [len(request.weights.loras) for request in grid.requests.values()] == [0, 1, 1]


def test_a_lora_tag_applies_to_its_prompt_alone(tiny_model: Path, tmp_path: Path) -> None:
    """As in generate.py: removed from the prompt, not applied to the base; `replace` can change its weight."""
    ink, own = (tiny_lora(tiny_model, tmp_path / f"{name}.safetensors") for name in ("ink", "own"))
    shared = ["--model", tiny_model, "--lora", own, "--prompt", f"a car <lora:{ink}:0.5>"]
    requests = grid_of(*shared, "--x", "model=base,tuned", "--y", "replace=0.5,0.25").requests
    assert {request.prompt for request in requests.values()} == {"a car"}
    assert all(requests[0, row, 0].weights.loras == () for row in range(2))
    assert [[(lora.path, lora.weight) for lora in requests[1, row, 0].weights.loras] for row in range(2)] == [
        [(own, 1.0), (ink, 0.5)],
        [(own, 1.0), (ink, 0.25)],
    ]
    error = error_of(grid_of, "--model", tiny_model, "--prompt", "a car <lora:inc:1>", "--x", "seed=1,2")
    assert error.where == "<lora:inc:1>"


def test_a_run_is_found_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "0003-lora-r16").mkdir()
    assert full_run_name(str(tmp_path / "0003")) == str(tmp_path / "0003-lora-r16")
    assert full_run_name(str(tmp_path / "0004")) == str(tmp_path / "0004")
    (tmp_path / "0003-other").mkdir()
    assert full_run_name(str(tmp_path / "0003")) == str(tmp_path / "0003")


def test_the_thesis_figures_keep_their_spelling() -> None:
    found = figures.load_figures()
    assert [figure.number for figure in found] == [f"3.{number}" for number in range(1, 9)]
    panels = [panel for figure in found for panel in figure.panels]
    prompts = [panel.prompt for panel in panels]
    assert (len(prompts), len(set(prompts))) == (18, 16)
    assert {"A eletric type fridge", "A mix of Feraligatr and MewTwo", "A rainbow colored Bulbassaur"} < set(prompts)
    assert [panel.model for panel in panels] == ["base", *["tuned"] * 17]
    twins = " ".join(panel.wording("twin") for panel in panels)
    assert not any(name in twins for name in ("kémon", "Pikachu", "Rayquaza", "Feraligatr", "MewTwo", "Bulbassaur"))
    one, two = found[6].panels
    assert one.prompt == two.prompt and one.seed != two.seed
