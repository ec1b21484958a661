"""Synthetic sets: themes and their prompts, balance, a limited number of retries, resuming, one plan a folder."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from data import captioned_folder, sample_set
from data.errors import InputError
from data.images import open_image
from infer import synthesis
from infer.config import SynthesizeOptions
from infer.synthesis import load_theme
from tests.errors import error_of


class Painter:
    """Paints the seed as a colour; `broken` prompts are black so many times."""

    model, folder, description, fingerprint, guidance_scale = "painter", "painter", "model: painter", "1", None

    def __init__(self, black: int = 0) -> None:
        self.black, self.calls = black, []

    def generate(self, prompts: Sequence[tuple[str, int]]) -> Iterator[tuple[Image.Image, str]]:
        for prompt, seed in prompts:
            yield self.paint(prompt, seed), "ok"

    def paint(self, prompt: str, seed: int) -> Image.Image:
        self.calls.append((prompt, seed))
        black = sum(asked == prompt for asked, _ in self.calls) <= self.black
        return Image.new("RGB", (64, 64), (0, 0, 0) if black else (seed % 200 + 1, 40, 90))


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    found = Painter()
    monkeypatch.setattr(synthesis, "make_generator", lambda name, options: found)
    return found


def options(folder: Path, **given: object) -> SynthesizeOptions:
    return SynthesizeOptions.model_validate({"outdir": folder, "theme": "fruits", "count": 12, **given})


def test_the_thesis_prompts() -> None:
    animals = load_theme(SynthesizeOptions(theme="animals"))
    assert (len(animals.classes), animals.distinct) == (10, 18)
    assert load_theme(SynthesizeOptions(theme="fruits")).distinct == 8
    said = {animals.prompt("dog", number, 0) for number in range(200)}
    assert len(said) == 18
    assert "A close-up picture of a dog, looking from slightly above" not in said
    assert "A close-up picture of a dog, looking from slightly from above" in said, "the thesis' words as they are"
    assert load_theme(SynthesizeOptions()).classes == sample_set.TYPES


def test_a_set_is_balanced_and_read_back(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthesis.run_synthesis(options(tmp_path)) == 0
    folder = tmp_path / "fruits" / "painter"
    samples = captioned_folder.read_folder(folder).samples
    assert len(samples) == 12
    types = [sample.annotation.type for sample in samples]
    assert {types.count(kind) for kind in set(types)} == {2, 3} and len(set(types)) == 5
    assert all(sample.path.parent.name == sample.annotation.type for sample in samples)
    assert "12 images in" in capsys.readouterr().out
    assert synthesis.read_image_facts(samples[0].path)["model"] == "painter"


def test_no_picture_is_drawn_twice_or_over_another(tmp_path: Path, painter: Painter) -> None:
    synthesis.run_synthesis(options(tmp_path, count=7))
    before = {file: file.read_bytes() for file in (tmp_path / "fruits").rglob("*.png")}
    synthesis.run_synthesis(options(tmp_path, count=12))
    assert len(painter.calls) == 12, "a longer plan goes on"
    assert {file: file.read_bytes() for file in before} == before
    (next(iter(before))).unlink()
    synthesis.run_synthesis(options(tmp_path, count=12))
    assert len(painter.calls) == 13
    assert {file: file.read_bytes() for file in before} == before, "the lost one is the same again"


def test_black_pictures_are_drawn_again_and_the_end_is_said(
    tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.black = 2
    one = {"classes": ("apple", "banana"), "count": 2}
    synthesis.run_synthesis(options(tmp_path / "a", **one, redraws=2))
    assert len(painter.calls) == 6 and len({seed for _, seed in painter.calls}) == 6, "other noise each time"
    assert "4 tried again, 0 left out" in capsys.readouterr().out
    painter.black = 99
    synthesis.run_synthesis(options(tmp_path / "b", **one, redraws=2))
    assert "0 images" in capsys.readouterr().out
    assert len(list((tmp_path / "b").rglob("*.left-out"))) == 2
    calls = len(painter.calls)
    synthesis.run_synthesis(options(tmp_path / "b", **one, redraws=2))
    assert len(painter.calls) == calls, "not tried for ever"


def test_two_processes_share_the_plan(tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        synthesis.run_synthesis(options(tmp_path))
    assert len(painter.calls) == 12
    assert len((tmp_path / "fruits" / "painter" / "metadata.jsonl").read_text().splitlines()) == 12


def test_another_plan_in_the_same_folder(tmp_path: Path, painter: Painter) -> None:
    synthesis.run_synthesis(options(tmp_path))
    with pytest.raises(InputError, match="--outdir"):
        synthesis.run_synthesis(options(tmp_path, steps=3))


def test_stopped(tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch,
                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def stop(prompt: str, seed: int) -> Image.Image:
        if len(painter.calls) == 5:
            raise KeyboardInterrupt
        return Painter.paint(painter, prompt, seed)

    monkeypatch.setattr(painter, "paint", stop)
    assert synthesis.run_synthesis(options(tmp_path)) == 130
    assert "resumes" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.png"))) == 5


def test_a_theme_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "tools.yaml"
    file.write_text("classes: [saw, axe]\ntemplates: ['a {colour} {class}']\nslots: {colour: [red, blue]}\n")
    theme = load_theme(SynthesizeOptions(theme=str(file)))
    assert (theme.name, theme.distinct) == ("tools", 2)
    assert {theme.prompt("saw", n, 0) for n in range(20)} == {"a red saw", "a blue saw"}


@pytest.mark.parametrize(
    "content",
    [
        "classes: [a]", "classes: [a]\ntemplates: ['a {size} {class}']", "classes: [a]\ntemplates: [a dog]",
        "classes: [a, a]\ntemplates: ['{class}']", "classes: [",
    ],
)  # fmt: skip
def test_invalid_themes(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(InputError):
        load_theme(SynthesizeOptions(theme=str(tmp_path / "t.yaml")))


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"theme": "animal"}, "--theme"), ({"count": 3}, "--count"), ({"classes": ("../up", "b")}, "--classes"),
        ({"model": ("sd21",)}, "--model"),
    ],
)  # fmt: skip
def test_wrong_options(given: dict[str, object], where: str, tmp_path: Path) -> None:
    assert error_of(synthesis.run_synthesis, options(tmp_path, **given)).where == where


def test_a_real_model(tiny_model: Path, tmp_path: Path) -> None:
    given = options(tmp_path, model=(str(tiny_model),), classes=("a", "b"), count=2, steps=2)
    synthesis.run_synthesis(given)
    files = sorted(tmp_path.rglob("*.png"))
    assert [open_image(file).width for file in files] == [64, 64]
    settings = json.loads(next(tmp_path.rglob("synthesis.json")).read_text())
    assert (len(settings["weights"]), settings["guidance_scale"]) == (64, 4.0)
