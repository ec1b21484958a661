"""Which images are requested: seeds, grids, prompt files in three formats, styles and LoRA tags."""

from pathlib import Path

import pytest

from data.errors import InputError, InputErrors
from infer import config, prompts
from infer.config import LoraFile
from infer.prompt_files import read_prompt_file
from infer.prompts import ImageRequest, PromptLine, Style


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
    with pytest.raises(InputError) as caught:
        read_prompt_file(written(tmp_path, name, text))
    assert str(caught.value.where) == f"{tmp_path / name}:{line}"
    assert words in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for path in (written(tmp_path, "p.txt", "# nothing"), tmp_path / "none.txt", tmp_path / "binary.txt"):
        with pytest.raises(InputError) as caught:
            read_prompt_file(path)
        assert caught.value.where == path
    with pytest.raises(InputError) as caught:
        read_prompt_file(written(tmp_path, "p.doc", "a"))
    assert caught.value.allowed == ".txt, .csv, .jsonl"
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
    with pytest.raises(InputError) as caught:
        prompts.choose_style("wett", file)
    assert caught.value.where == "--style" and "'wet'" in str(caught.value)


@pytest.mark.parametrize("text", ["a: no place", "[1]", "a: [", "a: 3", None])
def test_an_invalid_style_file_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "missing.yaml" if text is None else written(tmp_path, "s.yaml", text)
    with pytest.raises(InputError) as caught:
        prompts.read_styles(file)
    assert caught.value.where == f"--styles {file}"


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
