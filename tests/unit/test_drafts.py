"""Drafts: names, files, neighbours, a model, the house style, and which pictures are drafted again."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from annotation.commands import draft as command
from annotation.commands.draft import Options
from annotation.drafts.chain import draft_all
from annotation.drafts.files import FromFiles
from annotation.drafts.model import load
from annotation.drafts.names import FileNames, cleaned
from annotation.drafts.neighbours import Neighbours, captioned
from annotation.drafts.source import Draft, Picture, label
from annotation.drafts.store import add_drafts, read_drafts
from annotation.drafts.style import Style
from annotation.pictures import pictures_in
from annotation.records import write_history
from data.errors import InputError
from data.features import Pixels
from tests.answers import project, record, shown
from tests.blip import tiny_blip


def pictures(*names: str, folder: Path = Path()) -> list[Picture]:
    return [Picture(name, name, folder / name) for name in names]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("IMG_2041-redFox_in snow (2).JPG", "red fox in snow"),
        ("water_type/a-red-fox.final.v2.png", "a red fox"),
        ("DSC00012.png", ""),
        ("2026-11-01 08.00.00.png", ""),
        ("9f86d081884c7d65.png", ""),
        ("cafe.png", "cafe"),  # letters of a hash, and a word
        ("WhatsApp Image 2026-11-01.jpeg", ""),
        ("Ülo's käsi_1024x768.png", "ülo käsi"),
        ("fox3.png", "fox"),
        (".png", ""),
    ],
)
def test_file_names(name: str, words: str) -> None:
    assert cleaned(name) == words


def test_a_name_without_words_gives_no_draft() -> None:
    assert FileNames().draft(pictures("red fox.png", "IMG_1.png")) == [Draft("red fox", "names-1", 0.3), None]


def test_captions_by_content_then_by_longer_and_shorter_names() -> None:
    source = FromFiles({"sha": "content", "b/1.png": "name", "b/2": "stem", "3": "short"}, "sidecars", "f00")
    asked = [Picture("sha", "x.png", Path()), *pictures("b/1.png", "b/2.png", "c/3.png", "c/4.png")]
    assert [draft and draft.text for draft in source.draft(asked)] == ["content", "name", "stem", "short", None]
    assert label(source) == "sidecars-f00"


@pytest.fixture
def colours(tmp_path: Path) -> dict[str, Picture]:
    """Ten pictures from red to blue; their key is their number."""
    for number in range(10):
        Image.new("RGB", (16, 16), (250 - 25 * number, 0, 25 * number)).save(tmp_path / f"{number}.png")
    return {str(number): Picture(str(number), f"{number}.png", tmp_path / f"{number}.png") for number in range(10)}


def test_the_draft_is_the_consensus_of_the_nearest(colours: dict[str, Picture]) -> None:
    captions = {"0": "a red fox", "1": "two cats", "2": "a red fox sits", "9": "a blue whale", "gone": "x"}
    source = Neighbours(captioned(colours, captions), Pixels(), count=3)
    low, high = source.draft([colours["3"], colours["8"]])
    assert low is not None and high is not None
    assert low.text in ("a red fox", "a red fox sits")  # the one that agrees, though `two cats` is nearer than `fox`
    assert high.text == "a blue whale" and 0.5 < high.score <= 1
    assert label(source) == "neighbours-1-pixels-1-32"


def test_a_picture_without_a_neighbour_has_no_draft(colours: dict[str, Picture]) -> None:
    red = captioned(colours, {"0": "a red fox"})
    asked = [colours["1"], colours["9"], colours["0"]]
    drafts = Neighbours(red, Pixels(), threshold=0.5).draft(asked)
    assert [draft and draft.text for draft in drafts] == ["a red fox", None, None]  # not of itself
    assert Neighbours([], Pixels()).draft(asked) == [None] * 3
    assert Neighbours(red, Pixels()).draft([]) == []


def test_drafts_improve_as_people_caption(tmp_path: Path) -> None:
    tones = {
        "red": (200, 0, 0),
        "green": (0, 200, 0),
        "blue": (0, 0, 200),
        "grey": (90, 90, 90),
        "white": (200, 200, 200),
    }
    there: dict[str, Picture] = {}
    for word, (red, green, blue) in tones.items():
        for shade in (0, 3):
            path = tmp_path / f"{word}{shade}.png"
            Image.new("RGB", (16, 16), (red + shade, green + shade, blue + shade)).save(path)
            there[path.name] = Picture(path.name, path.name, path)
    captions = {name: f"a {name.removesuffix('.png')[:-1]} square" for name in there}
    asked = [picture for name, picture in there.items() if name.endswith("3.png")]

    def right(count: int) -> int:
        known = {f"{word}0.png": captions[f"{word}0.png"] for word in list(tones)[:count]}
        drafts = Neighbours(captioned(there, known), Pixels(), threshold=-1, count=1).draft(asked)
        return sum(d is not None and d.text == captions[p.sha256] for d, p in zip(drafts, asked, strict=True))

    assert [right(count) for count in (1, 3, 5)] == [1, 3, 5]


@pytest.mark.parametrize(
    ("style", "text", "expected", "found"),
    [
        (Style(), "a fox", "a fox", []),
        (Style("pkt, "), "a fox", "pkt, a fox", []),
        (Style("pkt, "), "PKT, a fox", "PKT, a fox", []),
        (Style(forbidden=("photo of", "cute")), "a photo of a cute, red fox", "a a, red fox", ["photo of", "cute"]),
        (Style(forbidden=("cute",)), "cute, red fox", "red fox", ["cute"]),
        (Style(forbidden=("cute",)), "a red fox, cute", "a red fox", ["cute"]),
        (Style(forbidden=("cute",)), "acute cuteness", "acute cuteness", []),
        (Style(forbidden=("cute",), remove=False), "cute fox", "cute fox", ["cute"]),
        (Style("pkt, ", forbidden=("cute",)), "Cute", None, ["cute"]),
    ],
)
def test_the_house_style(style: Style, text: str, expected: str | None, found: list[str]) -> None:
    styled, odd = style.apply(Draft(text, "s", 0.5))
    assert (styled.text if styled else None, odd) == (expected, found)


class Fixed:
    """A source that knows some pictures."""

    at_a_time = 2
    version = "1"

    def __init__(self, name: str, *known: str) -> None:
        self.name, self.known, self.asked = name, known, []

    def draft(self, pictures: Sequence[Picture]) -> list[Draft | None]:
        self.asked.append([picture.sha256 for picture in pictures])
        return [Draft(self.name, label(self), 0.5) if p.sha256 in self.known else None for p in pictures]


def test_sources_are_asked_in_turn_and_kept_as_they_come(tmp_path: Path) -> None:
    first, second = Fixed("one", "a", "c"), Fixed("two", "a", "b")
    made, odd = draft_all(
        pictures("a", "b", "c", "d"), [first, second], Style(forbidden=("two",), remove=False), tmp_path
    )
    assert {key: draft.text for key, draft in made.items()} == {"a": "one", "c": "one", "b": "two"}
    assert (first.asked, second.asked) == ([["a", "b"], ["c", "d"]], [["b", "d"]])
    assert odd == {"b": ["two"]} and read_drafts(tmp_path) == made


def test_the_file_of_drafts(tmp_path: Path) -> None:
    a, b = pictures("a.png", "b.png")
    add_drafts(tmp_path, {"b.png": b}, {"b.png": Draft("<b>\u2028", "s-1", 1 / 3)})
    add_drafts(tmp_path, {"a.png": a, "b.png": b}, {"a.png": Draft("x", "s-1", 1.0)})
    lines = (tmp_path / "drafts.jsonl").read_text().split("\n")
    assert json.loads(lines[0]) == {"sha256": "a.png", "file_name": "a.png", "text": "x", "source": "s-1", "score": 1.0}
    assert read_drafts(tmp_path)["b.png"] == Draft("<b>\u2028", "s-1", 0.3333)
    (tmp_path / "drafts.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"drafts.jsonl:1: is not a draft. Take the line out, or draft again"):
        read_drafts(tmp_path)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip(tmp_path_factory.mktemp("blip") / "model")


def test_a_model_drafts_and_says_which_it_was(blip: Path, colours: dict[str, Picture]) -> None:
    model = load(str(blip))
    asked = list(colours.values())[:3]
    drafts = [draft for draft in model.draft(asked) if draft is not None]
    assert len(drafts) == 3
    assert all(draft.text and 0 < draft.score <= 1 for draft in drafts)
    assert drafts[0].source == f"blip-{model.version}" and len(model.version) == 8
    assert load(str(blip)).draft(asked) == drafts
    started = load(str(blip), start="a red").draft(asked[:1])[0]
    assert started is not None and started.text.startswith("a red")


def test_other_weights_are_another_version(blip: Path, tmp_path: Path) -> None:
    assert load(str(tiny_blip(tmp_path / "other", seed=1))).version != load(str(blip)).version


def test_models_that_cannot_be_had(tmp_path: Path, blip: Path) -> None:
    with pytest.raises(InputError) as absent:
        load("Salesforce/blip-image-captioning-base")
    assert str(absent.value) == (
        "--model Salesforce/blip-image-captioning-base: is no folder, and not in the hub's cache on this machine. "
        "Give a local folder, or add --download to fetch it from the hub."
    )
    with pytest.raises(
        InputError, match=r"cannot be loaded as an image-to-text model \(.+\)\. Give a folder with config"
    ):
        load(str(tmp_path))
    shutil.copytree(blip, tmp_path / "no weights")
    (tmp_path / "no weights" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded as an image-to-text model"):
        load(str(tmp_path / "no weights"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = project(tmp_path, count=6)
    answered = [record(1, "a red fox"), record(2, status="skipped"), record(3, screen="name", values={"name": ["x"]})]
    write_history(folder, shown(tmp_path, answered))
    return folder


def test_only_what_nobody_answered_is_drafted(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(Options(threshold=-1, prefix="pkt, ")) == 0
    assert "4 of 4 pictures drafted; 2 answered already and left alone" in capsys.readouterr().out
    assert {draft.text for draft in read_drafts(work).values()} == {"pkt, a red fox"}
    assert command.run(Options(threshold=-1)) == 0
    assert "0 of 0 pictures drafted" in capsys.readouterr().out
    assert command.run(Options(threshold=-1, refresh=True, forbidden=("red",))) == 0
    said = capsys.readouterr().out
    assert "4 of 4 pictures drafted" in said and "forbidden 'red' taken out of 4 drafts" in said
    assert {draft.text for draft in read_drafts(work).values()} == {"a fox"}


def test_a_picture_that_cannot_be_opened_is_named_and_left_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/000.png").write_bytes(b"no picture")
    assert command.run(Options(threshold=-1)) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{Path.cwd()}/pictures/000.png: refused: ")
    assert "3 of 3 pictures drafted" in said


def test_refresh_leaves_what_people_wrote_elsewhere(work: Path) -> None:
    keys = pictures_in(work.parent.parent / "pictures")
    chosen = list(keys)[4]
    add_drafts(work, keys, {chosen: Draft("by a person", "sidecars-1", 1.0)})
    command.run(Options(threshold=-1, refresh=True))
    assert read_drafts(work)[chosen].text == "by a person"
    assert len(read_drafts(work)) == 4


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"source": ("model",)}, "--source: source 'model' needs something to read. Give --model FOLDER."),
        ({"source": ("files",)}, "--source: source 'files' needs something to read. Give --captions PATH."),
        ({"source": ("name",)}, "--source: unknown source 'name', did you mean 'names'?; "
            "allowed: files, model, neighbours, names"),
        ({"name": "sett"}, "--name: unknown project 'sett', did you mean 'set'?; allowed: set"),
        ({"name": "../x"}, "--name: '../x' is no project name; allowed: the name of a folder in captions/"),
        ({"extractor": "pixel"}, "unknown extractor 'pixel', did you mean 'pixels'?; "
            "allowed: pixels, descriptors, clip, dinov2"),
        ({"images": Path("nowhere"), "name": "set"}, "nowhere: no such folder. Check the path."),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(work: Path, flags: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError) as refused:
        command.run(Options.model_validate(flags))
    assert str(refused.value) == expected


def test_where_the_project_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from annotation.place import place

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no project here. Make one: annotate.py push --images FOLDER"):
        place(None)
    assert place(None, tmp_path / "foxes", new=True).folder == Path("captions/foxes")
    folder = project(tmp_path, types=["water"])
    (tmp_path / "captions" / ".server").mkdir()
    assert (place(None).name, place(None).types) == ("set", ("water",))
    (tmp_path / "captions" / "other").mkdir()
    with pytest.raises(InputError, match="--name: several projects could be meant; allowed: other, set"):
        place(None)
    with pytest.raises(InputError, match=r"the picture folder is not known yet. Say --images FOLDER"):
        place("other").picture_folder()
    for text, wrong in (("{", "is not JSON"), ("[]", "is not a project")):
        (folder / "project.json").write_text(text)
        with pytest.raises(InputError, match=f"project.json: {wrong}"):
            place("set")


def test_records_of_one_picture_only_once(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "b.png")
    shutil.copy(folder / "b.png", folder / "a.png")
    (only,) = pictures_in(folder).values()
    assert only.file_name == "a.png" and only == replace(only)
