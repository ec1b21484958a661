"""Which images are requested: seeds, templates, grids, prompt files in three formats, styles and LoRA tags."""

from collections import Counter
from pathlib import Path

import pytest

from data.errors import InputErrors
from infer import config, prompts
from infer.config import LoraFile
from infer.prompt_files import read_prompt_file
from infer.prompts import ImageRequest, PromptLine, Style
from tests.errors import error_of


def test_each_prompt_has_the_same_seeds() -> None:
    requests = prompts.expand_prompts(["a", "b"], 42, 2)
    assert [(r.index, r.prompt, r.seed) for r in requests] == [(0, "a", 42), (1, "a", 43), (2, "b", 42), (3, "b", 43)]
    assert [request.file_name for request in requests[:2]] == ["00000-42.png", "00001-43.png"]
    listed = prompts.requested_images(config.read_options(["--prompt", "a", "--prompt", "b", "--seeds", "7,3"]))
    assert [(request.prompt, request.seed) for request in listed] == [("a", 7), ("a", 3), ("b", 7), ("b", 3)]


def test_a_template_chooses_by_the_seed_of_each_image() -> None:
    requests = prompts.expand_prompts(["a {red|blue|green} cat"], 42, 8)
    assert len({request.prompt for request in requests}) > 1
    (alone,) = prompts.expand_prompts(["a {red|blue|green} cat"], 45, 1)
    assert (alone.prompt, alone.seed, alone.template) == (requests[3].prompt, 45, "a {red|blue|green} cat")


def test_a_grid_is_expanded_prompt_by_prompt_with_the_same_seeds() -> None:
    axes = {"type": ["water"], "object": ["fridge", "car"]}
    requests = prompts.expand_prompts(["a {type} {object}", "plain"], 1, 2, axes)
    assert [(request.prompt, request.seed) for request in requests] == [
        *[("a water fridge", 1), ("a water fridge", 2), ("a water car", 1), ("a water car", 2)],
        *[("plain", 1), ("plain", 2)],
    ]
    assert [request.index for request in requests] == list(range(6))
    assert [bool(request.template) for request in requests] == [True, True, True, True, False, False]


def test_a_prompt_that_only_some_seeds_choose_is_for_those() -> None:
    requests = prompts.expand_prompts(["{a|{e$$b|c}}"], 0, 20)
    by_seed = {seed: tuple(r.prompt for r in requests if r.seed == seed) for seed in range(20)}
    assert set(by_seed.values()) == {("a",), ("b", "c")}


def test_a_random_seed_can_be_typed_again() -> None:
    seeds = {prompts.random_seed() for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


# ---- templates: what is chosen, how often, and that the same seed chooses the same

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
    assert error_of(config.parse_grid, text).where == "--grid"


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
    assert words in str(error_of(prompts.expand_template, template, {"type": ("water",)}, wildcards, 0))


def test_a_wildcard_file_that_is_not_text_is_named(wildcards: Path) -> None:
    (wildcards / "bad.txt").write_bytes(b"\xff\xfe\x00")
    assert error_of(one, "__bad__", wildcards=wildcards).where == wildcards / "bad.txt"


# ---- prompt files


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_kohyas_prompt_files(tmp_path: Path) -> None:
    options = "--n blurry, grey --s 30 --l 5.5 --d 7 --w 64 --h 32"
    text = f"\ufeffa water type fridge\n\n# comment\n a fire {options}\nwell--known a -- b\n"
    assert read_prompt_file(written(tmp_path, "p.txt", text)) == [
        PromptLine(prompt="a water type fridge"),
        PromptLine(
            prompt="a fire", negative_prompt="blurry, grey", steps=30, guidance_scale=5.5, seed=7, width=64, height=32
        ),
        PromptLine(prompt="well--known a -- b"),
    ]


def test_a1111s_prompt_files(tmp_path: Path) -> None:
    text = '--prompt "a fire, big" --negative_prompt "grey" --steps 30 --cfg_scale 7 --seed 3 --n_iter 2\n'
    (line,) = read_prompt_file(written(tmp_path, "p.txt", text))
    assert (line.prompt, line.seed, line.num_images) == ("a fire, big", 3, 2)
    assert line.settings == {"negative_prompt": "grey", "steps": 30, "guidance_scale": 7.0}


def test_csv_and_jsonl(tmp_path: Path) -> None:
    table = 'prompt,steps,Negative-Prompt\n"a fire, big",30,\na water,,grey\n'
    expected = [PromptLine(prompt="a fire, big", steps=30), PromptLine(prompt="a water", negative_prompt="grey")]
    assert read_prompt_file(written(tmp_path, "p.csv", table)) == expected
    objects = '{"text": "a fire, big", "num_inference_steps": 30}\n\n{"prompt": "a water", "n": "grey"}\n"a 水"\n'
    assert read_prompt_file(written(tmp_path, "p.jsonl", objects)) == [*expected, PromptLine(prompt="a 水")]


@pytest.mark.parametrize(
    ("name", "text", "line", "words"),
    [
        ("p.txt", "ok\na --steps many", 2, "'many'"),
        ("p.txt", "a --stepz 3", 1, "'steps'"),
        ("p.txt", "a --s 3 --s 4", 1, "--s"),
        ("p.txt", "a --s 3 --steps 4", 1, "steps"),
        ("p.txt", "a --s 0", 1, "steps"),
        ("p.txt", "a --sampler_name euler", 1, "--scheduler"),
        ("p.txt", '--prompt "a', 1, "quotation"),
        ("p.txt", "--prompt a b", 1, "--name value"),
        ("p.txt", "--steps 3", 1, "prompt"),
        ("p.csv", "prompt,steps\na, b, c\n", 2, "header"),
        ("p.csv", "prompd\na\n", 2, "'prompt'"),
        ("p.jsonl", "{", 1, "JSON"),
        ("p.jsonl", "[1]", 1, "object"),
        ("p.jsonl", '{"prompt": 3}', 1, "prompt"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, line: int, words: str) -> None:
    error = error_of(read_prompt_file, written(tmp_path, name, text))
    assert str(error.where) == f"{tmp_path / name}:{line}"
    assert words in str(error)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for path in (written(tmp_path, "p.txt", "# nothing"), tmp_path / "none.txt", tmp_path / "binary.txt"):
        assert error_of(read_prompt_file, path).where == path
    assert error_of(read_prompt_file, written(tmp_path, "p.doc", "a")).allowed == ".txt, .csv, .jsonl"
    with pytest.raises(InputErrors, match=r"(?s)p\.txt:1: .*p\.txt:3: "):  # all problems at once
        read_prompt_file(written(tmp_path, "p.txt", "a --s x\nb\nc --q 1\n"))


# ---- styles


def test_every_shipped_style_has_a_place_for_the_prompt() -> None:
    shipped = prompts.read_styles(prompts.STYLES_FILE)
    assert len(shipped) >= 17
    assert all(style.apply("a {fridge}").count("a {fridge}") == 1 for style in shipped.values())
    assert "origami" in prompts.list_styles(None)


def test_a_style_wraps_the_prompt_and_extends_the_negative_prompt(tmp_path: Path) -> None:
    file = written(tmp_path, "own.yaml", 'ink: "{prompt}, in ink"\nwet:\n  prompt: "wet {prompt}"\n  negative: dry\n')
    wet = prompts.choose_style("wet", file)
    assert wet == Style("wet", "wet {prompt}", "dry")
    assert (wet.extend_negative(""), wet.extend_negative("grey")) == ("dry", "grey, dry")
    own = ImageRequest(0, "a car", 1, own={"negative_prompt": "blurry", "steps": 3})
    (styled,) = prompts.apply_style([own], wet)
    assert (styled.prompt, styled.unstyled) == ("wet a car", "a car")
    assert dict(styled.own) == {"negative_prompt": "blurry, dry", "steps": 3}
    assert prompts.apply_style([own], prompts.choose_style(None, None)) == [own]
    error = error_of(prompts.choose_style, "wett", file)
    assert error.where == "--style" and "'wet'" in str(error)


@pytest.mark.parametrize("text", ["a: no place", "[1]", "a: [", "a: 3", None])
def test_an_invalid_style_file_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "missing.yaml" if text is None else written(tmp_path, "s.yaml", text)
    assert error_of(prompts.read_styles, file).where == f"--styles {file}"


# ---- <lora:...>


@pytest.fixture
def shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in ("loras/ink.safetensors", "runs/0003-style/export/lora.safetensors", "own.safetensors"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    return tmp_path


def test_tags_are_removed_from_prompts(shelves: Path) -> None:
    everywhere = (LoraFile(Path("x.safetensors")),)
    texts = ["a <lora:ink:0.5> car<lora:0003-style>", "<lora:own.safetensors:-1:1>, b", "c  d", "<lora:3:2> e"]
    requests = prompts.apply_lora_tags([ImageRequest(index, text, 1) for index, text in enumerate(texts)], everywhere)
    ink, run = LoraFile(Path("loras/ink.safetensors"), 0.5), Path("runs/0003-style/export/lora.safetensors")
    assert [request.prompt for request in requests] == ["a car", ", b", "c  d", "e"]
    assert [request.loras for request in requests] == [
        (*everywhere, ink, LoraFile(run)),
        (*everywhere, LoraFile(Path("own.safetensors"), -1.0)),
        everywhere,
        (*everywhere, LoraFile(run, 2.0)),
    ]


def test_invalid_tags_are_all_named_at_once(shelves: Path) -> None:
    text = "<lora:inc> <lora:ink:much> <lora:ink:1000>"
    with pytest.raises(InputErrors) as caught:
        prompts.apply_lora_tags([ImageRequest(0, text, 1)], ())
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("<lora:inc>") and "'ink'" in first
    assert "'much'" in second and "100" in third
