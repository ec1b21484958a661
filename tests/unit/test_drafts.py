"""Drafts: from names, files, neighbours and a model; house style; and which images are drafted again."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from annotation.cli import run_draft, run_import
from annotation.config import DraftOptions, ImportOptions
from annotation.drafts import (
    Draft,
    Source,
    Suggestion,
    add_drafts,
    add_short_names,
    apply_style,
    clean_file_name,
    draft_all,
    find_caption,
    from_file_names,
    from_files,
    from_model,
    from_neighbours,
    read_captions,
    read_drafts,
)
from annotation.history import write_history
from annotation.images import ImageFile, images_by_sha256
from data.atomic_io import file_sha256
from data.errors import InputError, Problem
from data.features import PixelFeatures
from tests.answers import project, record, shown
from tests.blip import tiny_blip


def images(*names: str) -> list[ImageFile]:
    return [ImageFile(name, name, Path(name)) for name in names]


def texts(source: Source, images: Sequence[ImageFile]) -> list[str | None]:
    return [suggestion and suggestion[0] for suggestion in source.suggest(images)]


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
    assert clean_file_name(name) == words
    assert texts(from_file_names(), images(name)) == [words or None]


def test_captions_by_content_then_by_longer_and_shorter_names() -> None:
    captions = {"sha": "content", "b/1.png": "name", "b/2": "stem", "3": "short"}
    wanted = [ImageFile("sha", "x.png", Path()), *images("b/1.png", "b/2.png", "c/3.png", "c/4.png")]
    assert [find_caption(captions, image) for image in wanted] == ["content", "name", "stem", "short", ""]


@pytest.fixture
def colours(tmp_path: Path) -> dict[str, ImageFile]:
    """Ten images from red to blue; their key is their number."""
    for number in range(10):
        Image.new("RGB", (16, 16), (250 - 25 * number, 0, 25 * number)).save(tmp_path / f"{number}.png")
    return {str(number): ImageFile(str(number), f"{number}.png", tmp_path / f"{number}.png") for number in range(10)}


def test_the_draft_is_the_consensus_of_the_nearest(colours: dict[str, ImageFile]) -> None:
    captions = {"0": "a red fox", "1": "two cats", "2": "a red fox sits", "9": "a blue whale"}
    captioned = [(colours[key], text) for key, text in captions.items()]
    low, high = from_neighbours(captioned, PixelFeatures(), count=3).suggest([colours["3"], colours["8"]])
    assert low is not None and high is not None
    assert low[0] in ("a red fox", "a red fox sits")  # the one that agrees, though `two cats` is nearer than `fox`
    assert high[0] == "a blue whale" and 0.5 < high[1] <= 1


def test_an_image_without_neighbours_has_no_draft(colours: dict[str, ImageFile]) -> None:
    red = [(colours["0"], "a red fox")]
    wanted = [colours["1"], colours["9"], colours["0"]]
    found = texts(from_neighbours(red, PixelFeatures(), threshold=0.5), wanted)
    assert found == ["a red fox", None, None]  # not of itself
    assert texts(from_neighbours([], PixelFeatures()), wanted) == [None] * 3
    assert texts(from_neighbours(red, PixelFeatures()), []) == []


def test_drafts_improve_with_more_captions(tmp_path: Path) -> None:
    tones = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "grey": (90, 90, 90)}
    files: dict[str, ImageFile] = {}
    for word, tone in tones.items():
        for shade in (0, 3):
            path = tmp_path / f"{word}{shade}.png"
            Image.new("RGB", (16, 16), tuple(value + shade for value in tone)).save(path)
            files[path.name] = ImageFile(path.name, path.name, path)
    wanted = [files[f"{word}3.png"] for word in tones]

    def correct(count: int) -> int:
        known = [(files[f"{word}0.png"], word) for word in list(tones)[:count]]
        found = texts(from_neighbours(known, PixelFeatures(), threshold=-1, count=1), wanted)
        return sum(text == word for text, word in zip(found, tones, strict=True))

    assert [correct(count) for count in (1, 3, 4)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("options", "text", "expected", "found"),
    [
        ({}, "a fox", "a fox", []),
        ({"prefix": "pkt, "}, "a fox", "pkt, a fox", []),
        ({"prefix": "pkt, "}, "PKT, a fox", "PKT, a fox", []),
        ({"forbidden": ("photo of", "cute")}, "a photo of a cute, red fox", "a a, red fox", ["photo of", "cute"]),
        ({"forbidden": ("cute",)}, "cute, red fox", "red fox", ["cute"]),
        ({"forbidden": ("cute",)}, "a red fox, cute", "a red fox", ["cute"]),
        ({"forbidden": ("cute",)}, "acute cuteness", "acute cuteness", []),
        ({"forbidden": ("cute",), "report": True}, "cute fox", "cute fox", ["cute"]),
        ({"prefix": "pkt, ", "forbidden": ("cute",)}, "Cute", "", ["cute"]),
    ],
)
def test_the_house_style(options: dict[str, object], text: str, expected: str, found: list[str]) -> None:
    assert apply_style(text, DraftOptions.model_validate(options)) == (expected, found)


def test_sources_are_asked_in_turn_and_drafts_written_as_they_come(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def source(label: str, *known: str) -> Source:
        def suggest(images: Sequence[ImageFile]) -> list[Suggestion]:
            asked.append([image.sha256 for image in images])
            return [(label, 0.5) if image.sha256 in known else None for image in images]

        return Source(label, suggest, batch=2)

    sources = [source("one", "a", "c"), source("two", "a", "b")]
    options = DraftOptions(forbidden=("two",), report=True)
    drafts, forbidden = draft_all(images("a", "b", "c", "d"), sources, options, tmp_path)
    assert {key: draft.text for key, draft in drafts.items()} == {"a": "one", "c": "one", "b": "two"}
    assert asked == [["a", "b"], ["c", "d"], ["b", "d"]]
    assert forbidden == {"b": ["two"]} and read_drafts(tmp_path) == drafts


def test_the_drafts_file(tmp_path: Path) -> None:
    a, b = images("a.png", "b.png")
    add_drafts(tmp_path, [b], {"b.png": Draft("<b>\u2028", "s-1", 1 / 3)})
    add_drafts(tmp_path, [a], {"a.png": Draft("x", "s-1", 1.0)})
    lines = (tmp_path / "drafts.jsonl").read_text().split("\n")
    assert lines[0] == '{"sha256": "a.png", "file_name": "a.png", "text": "x", "source": "s-1", "score": 1.0}'
    assert json.loads(lines[1])["score"] == 0.3333
    assert read_drafts(tmp_path)["b.png"] == Draft("<b>\u2028", "s-1", 0.3333)
    (tmp_path / "drafts.jsonl").write_text("{}\n")
    with pytest.raises(InputError) as error:
        read_drafts(tmp_path)
    assert error.value.where == f"{tmp_path}/drafts.jsonl:1" and error.value.fix


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip(tmp_path_factory.mktemp("blip") / "model")


def test_a_model_drafts(blip: Path, colours: dict[str, ImageFile], tmp_path: Path) -> None:
    source = from_model(str(blip))
    wanted = list(colours.values())[:3]
    suggestions = source.suggest(wanted)
    assert all(suggestion and suggestion[0] and 0 < suggestion[1] <= 1 for suggestion in suggestions)
    again = from_model(str(blip))
    assert again.label == source.label and again.suggest(wanted) == suggestions
    assert str(texts(from_model(str(blip), start="a red"), wanted[:1])[0]).startswith("a red")
    other = from_model(str(tiny_blip(tmp_path / "other", seed=1))).label
    assert other != source.label and other.startswith("blip-")


def test_models_that_cannot_be_loaded(tmp_path: Path, blip: Path) -> None:
    shutil.copytree(blip, tmp_path / "no weights")
    (tmp_path / "no weights" / "model.safetensors").unlink()
    for model, fix in (
        ("Salesforce/blip-image-captioning-base", "--download"),
        (str(tmp_path), "config.json"),
        (str(tmp_path / "no weights"), "config.json"),
    ):
        with pytest.raises(InputError) as error:
            from_model(model)
        assert error.value.where == f"--model {model}" and fix in str(error.value.fix)


# ---- the command


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = project(tmp_path, count=6)
    answered = [record(1, "a red fox"), record(2, status="skipped"), record(3, screen="name", values={"name": ["x"]})]
    write_history(folder, shown(tmp_path, answered))
    return folder


def run(**options: object) -> None:
    assert run_draft(DraftOptions.model_validate({"threshold": -1} | options)) == 0


def test_only_unanswered_images_are_drafted(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(prefix="pkt, ")
    assert "drafted 4 of 4 images; 2 already" in capsys.readouterr().out
    assert {draft.text for draft in read_drafts(work).values()} == {"pkt, a red fox"}
    run()
    assert "drafted 0 of 0 images" in capsys.readouterr().out
    run(refresh=True, forbidden=("red",))
    output = capsys.readouterr().out
    assert "drafted 4 of 4 images" in output and "forbidden 'red' removed from 4 drafts" in output
    assert {draft.text for draft in read_drafts(work).values()} == {"a fox"}


def test_an_unreadable_image_is_named_and_left_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/000.png").write_bytes(b"not an image")
    run()
    output = capsys.readouterr().out
    assert output.startswith(f"{Path.cwd()}/pictures/000.png: ")
    assert "drafted 3 of 3 images" in output


def test_refresh_keeps_drafts_by_people(work: Path) -> None:
    files = images_by_sha256(work.parent.parent / "pictures")
    chosen = list(files)[4]
    add_drafts(work, [files[chosen]], {chosen: Draft("by a person", "sidecars-1", 1.0)})
    run(refresh=True)
    assert read_drafts(work)[chosen].text == "by a person"
    assert len(read_drafts(work)) == 4


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    ("flags", "where", "words"),
    [
        ({"source": ("model",)}, "--source", "--model"),
        ({"source": ("files",)}, "--source", "--captions"),
        ({"source": ("name",)}, "--source", "'names'"),
        ({"name": "sett"}, "--name", "'set'"),
        ({"name": "../x"}, "--name", "'../x'"),
        ({"extractor": "pixel"}, None, "'pixels'"),
        ({"images": Path("nowhere"), "name": "set"}, "nowhere", "folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(flags: dict[str, object], where: str | None, words: str) -> None:
    with pytest.raises(InputError) as error:
        run(**flags)
    assert (None if error.value.where is None else str(error.value.where)) == where and words in str(error.value)


# ---- captions written elsewhere: every supported form, its typical mistakes


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return project(tmp_path, count=3)


def drafted(fresh: Path, source: Path) -> dict[str, str]:
    """File name -> draft, after an import."""
    assert run_import(ImportOptions(source=source)) == 0
    names = {image.sha256: image.file_name for image in images_by_sha256(Path("pictures")).values()}
    return {names[key]: draft.text for key, draft in read_drafts(fresh).items()}


def test_a_folder_of_taggui_or_kohya(fresh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "10_foxes"
    (folder / "sub").mkdir(parents=True)
    for number, suffix in ((0, ".txt"), (1, ".caption")):  # under other names: the content counts
        (folder / f"copy{number}.png").write_bytes((tmp_path / "pictures" / f"00{number}.png").read_bytes())
        (folder / f"copy{number}{suffix}").write_text("red fox,\n1girl\n")
    (folder / "sub" / "002.txt").write_text("a caption without its image")
    (folder / "readme.txt").write_text("not a caption")
    assert drafted(fresh, folder) == {
        "000.png": "red fox, 1girl", "001.png": "red fox, 1girl", "002.png": "a caption without its image"
    }  # fmt: skip


def test_caption_files_alone(fresh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "001.txt").write_text("\ufeffa fox\r\n", encoding="utf-8")
    (folder / "009.txt").write_text("of no image here")
    assert drafted(fresh, folder) == {"001.png": "a fox"}


def test_kohyas_json(fresh: Path, tmp_path: Path) -> None:
    file = tmp_path / "meta.json"
    entries = {
        "C:\\train\\10_x\\000": {"caption": " a  fox ", "tags": "fox"},
        "/train/001.png": {"tags": "cat, blue"},
        "002": {"train_resolution": [512, 512]},
    }
    file.write_text(json.dumps(entries))
    assert drafted(fresh, file) == {"000.png": "a fox", "001.png": "cat, blue"}


def test_tables(fresh: Path, tmp_path: Path) -> None:
    digest = file_sha256(tmp_path / "pictures" / "002.png")
    (tmp_path / "t.csv").write_text(f"file_name,text,sha256\nelsewhere.png,by content,{digest}\n001.png,by name,\n")
    assert drafted(fresh, tmp_path / "t.csv") == {"002.png": "by content", "001.png": "by name"}
    (tmp_path / "only a table").mkdir()
    (tmp_path / "only a table" / "metadata.jsonl").write_text('{"file_name": "x/000.png", "text": "a table"}\n')
    assert drafted(fresh, tmp_path / "only a table")["000.png"] == "a table"


def test_a_label_studio_export(fresh: Path, tmp_path: Path) -> None:
    result = [{"from_name": "text", "type": "textarea", "value": {"text": ["a fox"]}}]
    task = {"id": 1, "data": {"image": "/data/local-files/?d=x/000.png"}, "annotations": [{"id": 1, "result": result}]}
    (tmp_path / "pictures" / "export.json").write_text(json.dumps([task]))
    assert drafted(fresh, tmp_path / "pictures" / "export.json") == {"000.png": "a fox"}


def test_further_captions_are_counted(fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = [
        {"file_name": "000.png", "text": "one", "texts": ["two", "three", "one"]},
        {"file_name": "001.png", "text": "four", "texts": ["five"]},
        {"file_name": "001.png", "text": "six"},
        {"file_name": "002.png", "skip_reason": "blurred"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    assert drafted(fresh, tmp_path / "t.jsonl") == {"000.png": "one", "001.png": "four"}
    assert "t.jsonl: warning: 4 further captions of 2 images" in capsys.readouterr().out
    (tmp_path / "k.json").write_text(json.dumps({"000": {"caption": "a fox", "tags": "fox"}}))
    drafted(fresh, tmp_path / "k.json")
    assert "k.json: warning: 1 further caption of 1 image left out" in capsys.readouterr().out


def test_names_that_two_folders_share_are_not_shortened(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.txt").write_text(f"in {folder}")
    problems: list[Problem] = []
    captions = {key: text for key, (text,) in read_captions(tmp_path, problems)[1]}
    assert dict(add_short_names(captions, problems)) == {"a/1": "in a", "b/1": "in b"}
    assert [(problem.refused, problem.where) for problem in problems] == [(False, "a/1"), (False, "b/1")]


def test_climbing_and_hostile_names_are_names_only(fresh: Path, tmp_path: Path) -> None:
    entries = {"../../../etc/passwd": {"caption": "x"}, "..\\000": {"caption": "<script>"}, "\x00": {"caption": "y"}}
    (tmp_path / "k.json").write_text(json.dumps(entries))
    assert drafted(fresh, tmp_path / "k.json") == {"000.png": "<script>"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", "{", "JSON"),
        ("x.json", "3", "kohya"),
        ("x.json", '{"a": 1}', "kohya"),
        ("x.json", '{"a": {}}', "no usable caption"),
        ("x.json", "[1]", "list of tasks"),
        ("x.csv", "a,b\n1,2\n", "no usable caption; first: "),
        ("x.parquet", "no parquet", "Parquet"),
        ("x.xml", "<x/>", ".xml"),
        ("x", "", "suffix"),
        (None, "", "no such file"),
        ("", "", "neither"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str | None, content: str, words: str) -> None:
    path = tmp_path / "nowhere" if name is None else tmp_path / "source" / name
    (tmp_path / "source").mkdir()
    if name:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        from_files(path, [])
    assert str(error.value.where) == str(path) and words in str(error.value)


def test_a_parquet_file_with_other_columns(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"image": ["x"], "text": ["y"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="file_name") as error:
        from_files(tmp_path / "x.parquet", [])
    assert "image, text" in str(error.value.allowed)
