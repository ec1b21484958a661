"""Prompt files: what people's fingers write in three formats, and one line for each thing that cannot be read."""

from pathlib import Path

import pytest

from data.errors import InputError, InputErrors
from infer import prompts
from infer.prompts import PromptLine


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_prompt_a_line_with_options_as_kohya_has_them(tmp_path: Path) -> None:
    options = "--n blurry, grey --s 30 --l 5.5 --d 7 --w 64 --h 32"
    text = f"\ufeffa water type fridge\n\n# comment\n a fire {options}\nwell--known a -- b\n"
    assert prompts.read_prompt_file(written(tmp_path, "p.txt", text)) == [
        PromptLine(prompt="a water type fridge"),
        PromptLine(
            prompt="a fire", negative_prompt="blurry, grey", steps=30, guidance_scale=5.5, seed=7, width=64, height=32
        ),
        PromptLine(prompt="well--known a -- b"),
    ]


def test_a_line_as_a1111_has_it(tmp_path: Path) -> None:
    text = '--prompt "a fire, big" --negative_prompt "grey" --steps 30 --cfg_scale 7 --seed 3 --n_iter 2\n'
    (line,) = prompts.read_prompt_file(written(tmp_path, "p.txt", text))
    assert line == PromptLine(
        prompt="a fire, big", negative_prompt="grey", steps=30, guidance_scale=7, seed=3, num_images=2
    )
    assert line.settings == {"negative_prompt": "grey", "steps": 30, "guidance_scale": 7.0}


def test_a_table_and_objects(tmp_path: Path) -> None:
    table = 'prompt,steps,Negative-Prompt\n"a fire, big",30,\na water,,grey\n'
    expected = [PromptLine(prompt="a fire, big", steps=30), PromptLine(prompt="a water", negative_prompt="grey")]
    assert prompts.read_prompt_file(written(tmp_path, "p.csv", table)) == expected
    objects = '{"text": "a fire, big", "num_inference_steps": 30}\n\n{"prompt": "a water", "n": "grey"}\n"a 水"\n'
    assert prompts.read_prompt_file(written(tmp_path, "p.jsonl", objects)) == [*expected, PromptLine(prompt="a 水")]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "ok\na --steps many", r"p\.txt:2: steps 'many'"),
        ("p.txt", "a --stepz 3", r"p\.txt:1: unknown setting 'stepz', did you mean 'steps'"),
        ("p.txt", "a --s 3 --s 4", "--s is said twice"),
        ("p.txt", "a --s 3 --steps 4", "steps is said twice"),
        ("p.txt", "a --s 0", r"steps '0': .*greater than or equal to 1"),
        ("p.txt", "a --sampler_name euler", "is for all prompts. Give it as --scheduler"),
        ("p.txt", '--prompt "a', "quotation mark is missing"),
        ("p.txt", "--prompt a b", "not a row of --name value pairs"),
        ("p.txt", "--steps 3", "has no prompt"),
        ("p.txt", "# nothing", "has no prompts"),
        ("p.csv", "prompt,steps\na, b, c\n", "p.csv:2: has more cells than the header"),
        ("p.csv", "prompd\na\n", "unknown setting 'prompd', did you mean 'prompt'"),
        ("p.jsonl", "{", r"p\.jsonl:1: is not JSON"),
        ("p.jsonl", "[1]", "neither object nor text"),
        ("p.jsonl", '{"prompt": 3}', "prompt 3|has no prompt"),
        ("p.doc", "a", r"\.doc is no prompt file; allowed: \.txt, \.csv, \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        prompts.read_prompt_file(written(tmp_path, name, text))


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputErrors, match=r"(?s)p\.txt:1: .*p\.txt:3: "):
        prompts.read_prompt_file(written(tmp_path, "p.txt", "a --s x\nb\nc --q 1\n"))


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read \\(No such file"):
        prompts.read_prompt_file(tmp_path / "none.txt")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        prompts.read_prompt_file(tmp_path / "p.txt")
