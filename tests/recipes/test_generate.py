"""generate.py as people use it: from the command line to images, sheets and one clear line for each mistake."""

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.errors import InputError, InputErrors
from infer import generation, metadata
from tests.commands import generate, log, pixels, recipes
from tests.errors import error_of
from tests.tiny import tiny_lora

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "infer" / "generate.py")]


def typed(*argv: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, argv)], capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lora(tiny_model, tmp_path_factory.mktemp("lora") / "style.safetensors", strength=0.3)


@pytest.mark.parametrize("entry", ["compare", "evaluate", "gallery", "generate", "studio", "synthesize"])
def test_help_comes_at_once_and_imports_nothing_heavy(entry: str) -> None:
    command = [sys.executable, "-X", "importtime", ROOT / "infer" / f"{entry}.py", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0 and "default:" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "gradio", "fastapi", "uvicorn", "diffusers", "transformers", "PIL.Image"}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_the_command_as_typed(tiny_model: Path, tmp_path: Path) -> None:
    """From another folder than the project's: outputs/ is where the person is."""
    result = typed("--model", tiny_model, "--prompt", "a Pokémon, fridge", "--steps", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"model: {tiny_model}"
    assert "2 steps, guidance 4, PLMS, 64 x 64" in result.stdout.splitlines()[1], "the values in force"
    assert "outputs/0001/00000-42.png" in result.stdout.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert "requires torchvision" not in result.stderr, "the libraries' chatter"
    folder = tmp_path / "outputs" / "0001"
    assert sorted(file.name for file in folder.iterdir()) == ["00000-42.png", "grid.png", "run.jsonl"]
    recipe = metadata.read_metadata(folder / "00000-42.png")
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.scheduler) == ("a Pokémon, fridge", 42, 2, "PNDMScheduler")
    assert (recipe.micro_batch, recipe.dtype, recipe.verdict) == (1, "fp32", "ok")
    assert recipe.model.name == tiny_model.name, "no path of the person's machine"
    (line,) = log(folder)
    assert line.pop("file") == "00000-42.png"
    assert line.pop("seconds") > 0
    assert line == recipe.model_dump(mode="json")


def test_image_three_is_the_same_file_alone_and_in_another_process(tiny_model: Path, tmp_path: Path) -> None:
    shared = ["--model", tiny_model, "--steps", 2, "--scheduler", "euler_a", "--prompt", "a fire"]
    assert generate(*shared, "--num-images", 4, "--outdir", tmp_path / "many") == 0
    assert typed(*shared, "--seed", 45, "--outdir", tmp_path / "one").returncode == 0
    assert pixels(tmp_path / "many" / "00003-45.png") == pixels(tmp_path / "one" / "00000-45.png")
    assert len({pixels(file) for file in (tmp_path / "many").glob("0*.png")}) == 4


def test_a_lora_beside_its_base(
    tiny_model: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["--model", tiny_model, "--steps", 2, "--prompt", "a water", "--prompt", "a fire"]
    assert generate(*plain, "--outdir", tmp_path / "base") == 0
    capsys.readouterr()
    assert generate(*plain, "--lora", f"{lora}:0.5", "--compare-base", "--outdir", tmp_path / "both") == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("LoRA style.safetensors at 0.5: 64 of 64 tensors matched") for line in said)
    assert str(tmp_path / "both" / "compare.png") in said[-1]
    for name in ("00000-42.png", "00001-42.png"):
        base = pixels(tmp_path / "both" / "base" / name)
        assert base == pixels(tmp_path / "base" / name), "the base beside a LoRA is the base without one"
        assert base != pixels(tmp_path / "both" / name)
    used = metadata.read_metadata(tmp_path / "both" / "00000-42.png").loras[0]
    assert (used.name, used.weight, used.matched, len(used.sha256)) == ("style.safetensors", 0.5, 64, 64)
    assert metadata.read_metadata(tmp_path / "both" / "base" / "00000-42.png").loras == ()
    with Image.open(tmp_path / "both" / "compare.png") as sheet:
        assert sheet.width > 2 * 256 + 3 * 12, "prompts beside the rows"
        lefts = (sheet.width - 2 * (256 + 12), sheet.width - (256 + 12))
        cells = [np.asarray(sheet.convert("RGB"))[100:200, left : left + 256] for left in lefts]
    assert bool((cells[0] != cells[1]).any())


def test_a_finished_run_is_the_default_and_is_compared_with_its_base(
    tiny_model: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "0001-style"
    (folder / "export").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: {tiny_model}\ntokenizer: null\n")
    (folder / "export" / "lora.safetensors").write_bytes(lora.read_bytes())
    (folder / "done").write_text('{"steps": 1}')
    monkeypatch.chdir(tmp_path)
    assert generate("--compare-base", "--steps", 1, "--prompt", "a") == 0
    said = capsys.readouterr().out.splitlines()
    assert "runs/0001-style" in said[0]
    assert "outputs/0001/compare.png" in said[-1]
    assert metadata.read_metadata(Path("outputs/0001/00000-42.png")).loras[0].name == "0001-style.safetensors"


def test_a_long_prompt_is_encoded_whole_or_reported(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny_model, "--steps", 1, "--prompt", "water " * 75 + "lost words"]
    assert generate(*words, "--strict", "--outdir", tmp_path / "long") == 0, "all of it is read"
    assert "84 tokens" in capsys.readouterr().err
    tokens = metadata.read_metadata(tmp_path / "long" / "00000-42.png").tokens
    assert (tokens.count, tokens.lost, tokens.chunks) == (84, "", 2)
    argv = [*words, "--weighting", "none", "--outdir", tmp_path / "a"]
    assert generate(*argv) == 0
    assert "'lost words'" in capsys.readouterr().err
    tokens = metadata.read_metadata(tmp_path / "a" / "00000-42.png").tokens
    assert (tokens.count, tokens.limit, tokens.lost) == (84, 75, "lost words")
    with pytest.raises(InputError, match="'lost words'"):
        generate(*argv[:-1], tmp_path / "b", "--strict")
    assert not (tmp_path / "b").exists()


def test_grids_and_wildcards_and_both_texts_in_the_metadata(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "object.txt").write_text("fire\n", encoding="utf-8")
    argv = ["--model", tiny_model, "--steps", 1, "--grid", "type=water,fire", "--wildcards", tmp_path / "wild"]
    assert generate(*argv, "--prompt", "a {type} type __object__", "--outdir", tmp_path / "a") == 0
    found = recipes(tmp_path / "a")
    assert [recipe.prompt for recipe in found] == ["a water type fire", "a fire type fire"]
    assert {recipe.template for recipe in found} == {"a {type} type __object__"}
    with pytest.raises(InputError, match="'object'"):
        generate(*argv, "--prompt", "__objekt__", "--outdir", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_prompt_file_with_settings_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    lines = ["a fire --s 2 --d 7 --n grey", "a {water|water} type fridge", "# nothing", "a fire --w 32 --num_images 2"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    argv = ["--model", tiny_model, "--steps", 1, "--from-file", tmp_path / "prompts.txt"]
    assert generate(*argv, "--outdir", tmp_path / "a") == 0
    found = recipes(tmp_path / "a")
    assert [(r.prompt, r.seed, r.steps, r.negative_prompt, r.width) for r in found] == [
        ("a fire", 7, 2, "grey", 64),
        ("a water type fridge", 42, 1, "", 64),
        ("a fire", 42, 1, "", 32),
        ("a fire", 43, 1, "", 32),
    ]
    alone = ["--model", tiny_model, "--steps", 2, "--seed", 7, "-n", "grey", "--prompt", "a fire"]
    assert generate(*alone, "--outdir", tmp_path / "b") == 0
    assert (tmp_path / "a" / "00000-7.png").read_bytes() == (tmp_path / "b" / "00000-7.png").read_bytes()
    (tmp_path / "prompts.txt").write_text("a fire --w 33", encoding="utf-8")
    with pytest.raises(InputError, match="--width"):
        generate(*argv, "--outdir", tmp_path / "c")


def test_broken_numbers_are_reported(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guidance past the range of float32: the latents overflow."""
    how = ["--model", tiny_model, "--steps", 2, "--prompt", "a", "--guidance-scale", "1e38"]
    assert generate(*how, "--outdir", tmp_path / "a") == generation.EXIT_NAN
    assert "NaN" in capsys.readouterr().err
    assert metadata.read_metadata(tmp_path / "a" / "00000-42.png").verdict == "nan"


def test_a_random_seed_is_printed_and_gives_the_same_image(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", tiny_model, "--steps", 1, "--prompt", "a"]
    assert generate(*argv, "--seed", -1, "--outdir", tmp_path / "a") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("seed: "))
    seed = line.removeprefix("seed: ")
    assert generate(*argv, "--seed", seed, "--outdir", tmp_path / "b") == 0
    name = f"00000-{seed}.png"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["--width", "7"], "--width"),
        (["--steps", "1001"], "--steps"),
        (["--lora", "missing.safetensors"], "--lora missing.safetensors"),
        (["--compare-base"], "--compare-base"),
        (["--model", "missing/folder/of/mine"], "--model missing/folder/of/mine"),
    ],
)
def test_what_the_model_does_not_support_is_an_error_before_a_folder_is_made(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(generate, "--model", tiny_model, "--prompt", "a", "--steps", 1, *argv).where == where
    assert list(Path("outputs").glob("*")) == []


def test_all_problems_are_reported_at_once(tiny_model: Path) -> None:
    with pytest.raises(InputErrors, match=r"(?s)--width: 100.*--height: 60"):
        generate("--model", tiny_model, "--prompt", "a", "--width", 100, "--height", 60)


@pytest.mark.parametrize(
    ("argv", "words"), [(["--promt", "x"], "--prompt"), (["--model", "CompVis/stable-diffusion-v1-4"], "v1.4")]
)
def test_a_mistake_is_one_line_and_exit_code_2(argv: list[str], words: str, tmp_path: Path) -> None:
    result = typed(*argv, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and words in line


def test_ctrl_c_is_one_line_and_keeps_what_is_finished(tiny_model: Path, tmp_path: Path) -> None:
    argv = ["--model", tiny_model, "--prompt", "a", "--steps", "5", "--num-images", "5000", "--outdir", tmp_path / "a"]
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where SIGINT is ignored, as under nohup
    process = subprocess.Popen(
        [*COMMAND, *map(str, argv)], stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=listens
    )
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "a").glob("00001-*.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    pictures = sorted(path.name for path in (tmp_path / "a").glob("0*.png"))
    assert f"{len(pictures)} of 5000" in stderr.splitlines()[-1]
    assert f"--outdir {tmp_path}/a" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert [line["file"] for line in log(tmp_path / "a")] == pictures
    assert all(metadata.read_metadata(tmp_path / "a" / name).verdict == "ok" for name in pictures)


def test_an_image_is_repeated_from_itself(
    tiny_model: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    argv = ["--model", tiny_model, "--lora", f"{lora}:0.5", "--steps", 2, "--sampler", "euler_a", "-n", "grey"]
    words = ["--prompt", "a Pokémon \\{x\\}", "--seed", 7, "--width", 32]
    assert generate(*argv, *words, "--outdir", tmp_path / "a") == 0
    picture = tmp_path / "a" / "00000-7.png"
    again = ["--params-from", picture, "--outdir"]
    with pytest.raises(InputError, match=r"style\.safetensors"):
        generate(*again, tmp_path / "b")
    (Path("loras")).mkdir()
    Path("loras/style.safetensors").write_bytes(lora.read_bytes())
    capsys.readouterr()
    assert generate(*again, tmp_path / "b") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the same image, bit for bit"
    assert (tmp_path / "b" / "00000-7.png").read_bytes() == picture.read_bytes()
    assert generate(*again, tmp_path / "c", "--seed", 8) == 0
    assert "changed since: seed" in capsys.readouterr().out.splitlines()[-1]


# ---- more than plain prompts: LoRAs by prompt, styles, aspect ratios, input images, masks, scribbles


@pytest.fixture
def shelf(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a person works in: a LoRA on the shelf, a picture with its mask, a drawing."""
    monkeypatch.chdir(tmp_path)
    Path("loras").mkdir()
    tiny_lora(tiny_model, Path("loras") / "ink.safetensors", strength=0.3)
    scene = Image.radial_gradient("L").resize((96, 48)).convert("RGB")
    scene.save("cat.png")
    mask = Image.new("RGB", (96, 48))
    ImageDraw.Draw(mask).rectangle((30, 10, 70, 40), fill="white")
    mask.save("mask.png")
    drawing_ = Image.new("RGB", (96, 48), "black")
    ImageDraw.Draw(drawing_).line((5, 5, 90, 40), fill="white", width=3)
    drawing_.save("scribble.png")
    return tmp_path


def test_each_prompt_has_its_own_loras_and_the_others_are_the_base(
    tiny_model: Path, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Complaint: after a LoRA is taken off the base is not what it was."""
    how = ["--model", tiny_model, "--steps", 1, "--seeds", "7,3", "--aspect", "2:1"]
    words = ["--prompt", "a fire <lora:ink:0.5>", "--prompt", "a (water:1.3)"]
    assert generate(*how, *words, "--style", "creature", "-n", "grey", "--outdir", "a") == 0
    said = capsys.readouterr().out
    assert "LoRA ink.safetensors at 0.5: 64 of 64 tensors matched" in said
    found = recipes(Path("a"))
    assert [(each.seed, each.unstyled, len(each.loras)) for each in found] == [
        (7, "a fire", 1),
        (3, "a fire", 1),
        (7, "a (water:1.3)", 0),
        (3, "a (water:1.3)", 0),
    ]
    assert found[0].prompt == "a cartoon creature, a fire, white background"
    assert (found[0].style, found[0].negative_prompt, found[0].weighting) == ("creature", "grey, photo", "a1111")
    assert (found[0].width, found[0].height) == (96, 48)
    assert found[0].loras[0].prediction > 0
    assert generate(*how, *words[2:], "--style", "creature", "-n", "grey", "--outdir", "b") == 0
    assert Path("a/00002-7.png").read_bytes() == Path("b/00000-7.png").read_bytes(), "drawn after one with a LoRA"
    # what the recipe says is enough to draw it again
    assert generate("--params-from", "a/00000-7.png", "--model", tiny_model, "--lora", "loras/ink.safetensors:0.5") == 0
    assert pixels(Path("outputs/0001/00000-7.png")) == pixels(Path("a/00000-7.png"))
    # Complaint: pictures cannot be found by what they are of. Each is a line with all of it.
    lines = log(Path("a"))
    with_ink = [line["file"] for line in lines if any("ink" in lora["name"] for lora in line["loras"])]
    assert with_ink == ["00000-7.png", "00001-3.png"]
    assert [line["file"] for line in lines if line["seed"] == 3 and "water" in line["prompt"]] == ["00003-3.png"]


def test_a_tag_that_names_no_lora_is_refused_before_anything_is_loaded_onto_the_networks(
    tiny_model: Path, shelf: Path
) -> None:
    with pytest.raises(InputError, match=r"<lora:inc>.*'ink'"):
        generate("--model", tiny_model, "--prompt", "a <lora:inc>", "--outdir", "a")
    assert not Path("a").exists()


def test_inpainting_and_repeating_it_from_the_image(
    tiny_model: Path, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--model", tiny_model, "--steps", 4, "--prompt", "a fire", "--sampler", "euler_a", "--outdir"]
    given = ["--init-image", "cat.png", "--mask", "mask.png", "--strength", "0.5"]
    assert generate(*how, "a", *given) == 0
    (found,) = recipes(Path("a"))
    assert [(used.role, used.name) for used in found.inputs] == [("init", "cat.png"), ("mask", "mask.png")]
    assert (found.width, found.height, found.strength) == (96, 48, 0.5), "the picture's own ratio"
    assert "Denoising strength: 0.5" in metadata.read_image_texts(Path("a/00000-42.png"))["parameters"]
    with Image.open("a/00000-42.png") as drawn, Image.open("cat.png") as before:
        after, given_ = np.asarray(drawn), np.asarray(before)
    assert np.array_equal(after[:, :30], given_[:, :30]), "outside the mask it is the given picture"
    assert not np.array_equal(after, given_)
    capsys.readouterr()
    assert generate("--params-from", "a/00000-42.png", "--model", tiny_model, "--outdir", "b") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the same image, bit for bit"
    os.replace("cat.png", "away.png")
    with pytest.raises(InputError, match=r"cat\.png.*--init-image"):
        generate("--params-from", "a/00000-42.png", "--model", tiny_model, "--outdir", "c")
    with pytest.raises(InputError, match="--strength"):
        generate(*how, "d", "--init-image", "away.png", "--strength", "0.1")
    assert not Path("d").exists()


def test_a_scribble_on_any_base(tiny_model: Path, shelf: Path) -> None:
    how = ["--model", tiny_model, "--prompt", "a fire", "--scribble", "scribble.png", "--steps", 4, "--outdir"]
    assert generate(*how, "a", "--guidance-stop", 0.5) == 0
    (found,) = recipes(Path("a"))
    assert (found.polarity, found.inputs[0].role) == ("light-on-dark", "scribble")
    assert (found.guidance_stop, found.safety) == (0.5, "off")
    assert generate(*how, "b", "--polarity", "dark-on-light") == 0
    assert recipes(Path("b"))[0].polarity == "dark-on-light"


def test_styles_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--style", "list") == 0
    assert "origami        origami of {prompt}" in capsys.readouterr().out
