"""Sets of small images: the digits as they were measured, folders, saved data sets, and every refusal."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from data.cli import parse
from data.errors import InputError
from train.ddpm import image_sets
from train.ddpm.config import HUB_PRESETS, ImageSetOptions
from train.ddpm.image_sets import ImageSet, from_images, load_image_set, make_labels, to_float, to_image, to_uint8
from train.ddpm.runs.config import CONFIGS, FitConfig

SHADES = 12


def some(count: int = SHADES) -> ImageSet:
    pixels = torch.arange(count * 16, dtype=torch.uint8).reshape(count, 1, 4, 4)
    return ImageSet("some", pixels, torch.arange(count) % 3, ("a", "b", "c"))


def picture(shade: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Image.Image:
    """Grey of a shade with a texture of its own, so that no two are near-duplicates."""
    noise = np.random.default_rng(shade).integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray((noise + 10 * shade).astype(np.uint8)).convert(mode)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as the library saves it: images under `img`, classes under `label`, words under `note`."""
    features = datasets.Features(
        {
            "note": datasets.Value("string"),
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=["plane", "automobile", "bird"]),
        }
    )
    rows = {
        "note": [f"row {i}" for i in range(SHADES)],
        "img": [picture(i) for i in range(SHADES)],
        "label": [i % 2 for i in range(SHADES)],
    }
    folder = tmp_path_factory.mktemp("hub") / "set"
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table, "test": table.select(range(4))}).save_to_disk(str(folder))
    return folder


def options(**given: Any) -> ImageSetOptions:
    return ImageSetOptions(**given)


# ---- the tensor


def test_levels_survive_the_way_there_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert to_float(pixels).min() == -1
    assert to_float(pixels).max() == 1
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    assert to_uint8(torch.full((1, 1, 1, 1), 254.9 / 127.5 - 1)).item() == 255  # a cast would make it 254
    assert to_uint8(torch.tensor([[[[-7.0, 7.0]]]])).flatten().tolist() == [0, 255]
    with pytest.raises(InputError, match="NaN"):
        to_uint8(torch.full((1, 1, 1, 1), float("nan")))


def test_images_become_a_tensor_and_back() -> None:
    for mode in ("L", "RGB"):
        images = [picture(i, mode=mode) for i in range(3)]
        tensor = from_images(images)
        assert tensor.shape == (3, 1 if mode == "L" else 3, 16, 20)
        assert [to_image(row).tobytes() for row in tensor] == [image.tobytes() for image in images]


def test_a_split_keeps_groups_together_and_stands_still() -> None:
    whole = some(40)
    grouped = ImageSet("g", whole.pixels, groups=tuple(i // 2 for i in range(40)))
    train, held_out = grouped.split(0.3, seed=1)
    assert len(train) + len(held_out) == 40
    assert not {*(train.groups or ())} & {*(held_out.groups or ())}
    assert 4 <= len(held_out) <= 22
    again, _ = grouped.select(range(38)).split(0.3, seed=1)
    assert set(again.hashes) <= set(train.hashes)  # nobody moves when others go
    assert [len(side) for side in whole.split(0.0, seed=1)] == [40, 0]
    assert len(whole.select([0, 1]).split(0.01, seed=1)[1]) == 1
    twins = ImageSet("t", torch.zeros(4, 1, 4, 4, dtype=torch.uint8))
    assert [len(side) for side in twins.split(0.5, seed=0)] == [4, 0]  # one image four times: one side


def test_classes_are_numbered_anew() -> None:
    kept = some().only(["c", "a"])
    assert kept.classes == ("c", "a")
    assert kept.labels is not None and kept.labels.tolist() == [1, 0] * 4
    assert kept.fingerprint != some().fingerprint
    with pytest.raises(InputError, match=r"--data.only: unknown class 'd'"):
        some().only(["d"])
    with pytest.raises(InputError, match="have no classes"):
        ImageSet("bare", some().pixels).only(["a"])


def test_names_become_labels() -> None:
    labels, classes = make_labels(["b", None, "a", "b"])
    assert labels is not None
    assert (labels.tolist(), classes) == ([1, -1, 0, 1], ("a", "b"))
    assert make_labels([None, None]) == (None, ())


# ---- digits


def test_the_digits_are_what_was_measured() -> None:
    found = image_sets.load_digit_images(8)
    assert found.pixels.shape == (1797, 1, 8, 8)
    values = load_digits().images  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(found.pixels[:, 0].numpy(), np.rint(values * 255 / 16).astype(np.uint8))
    assert found.classes == tuple("0123456789")
    assert not found.notes


def test_larger_digits_are_enlarged_and_say_so() -> None:
    found = load_image_set(options(size=28), seed=0)
    assert found.pixels.shape == (1797, 1, 28, 28)
    assert not found.pixels[:, :, :2].any()  # 3 x 8 = 24 pixels in the middle of 28
    assert found.pixels[:, :, 2:26, 2:26].float().mean() > 50
    assert "enlarged 3 times" in found.notes[0]
    assert not found.flip
    with pytest.raises(InputError, match=r"--data.size 4: the digits have 8 x 8 pixels"):
        image_sets.load_digit_images(4)


def test_options_cut_a_set() -> None:
    found = load_image_set(options(size=8, only=["3", "8"], most=50, mode="RGB", flip=True), seed=0)
    assert found.pixels.shape == (50, 3, 8, 8)
    assert (found.classes, found.flip) == (("3", "8"), True)
    assert (
        load_image_set(options(size=8, most=50), seed=1).fingerprint
        != load_image_set(options(size=8, most=50), seed=0).fingerprint
    )


# ---- folders


def test_a_folder_with_classes_by_its_sub_folders(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"kind{i % 2}").mkdir(exist_ok=True)
        picture(i).save(tmp_path / f"kind{i % 2}" / f"{i}.png")
    (tmp_path / "kind0" / "torn.png").write_bytes(b"\x89PNG and no more")
    found = load_image_set(options(set=str(tmp_path), size=16), seed=0)
    assert found.pixels.shape == (4, 3, 16, 16)
    assert found.classes == ("kind0", "kind1")
    assert found.labels is not None and found.labels.tolist() == [0, 0, 1, 1]
    assert len(found.notes) == 1 and "torn.png" in found.notes[0]
    assert load_image_set(options(set=str(tmp_path), size=16, mode="L"), seed=0).channels == 1


def test_a_captioned_folder_has_the_types_as_classes(tiny_data: Path) -> None:
    found = load_image_set(options(set=str(tiny_data), size=16), seed=0)
    assert len(found) == 12
    assert set(found.classes) <= {"fire", "water", "grass", "electric"} | set(found.classes)
    assert found.labels is not None and found.labels.min() >= 0


def test_folders_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_image_set(options(set="./nowhere"), seed=0)
    with pytest.raises(InputError, match="holds no image"):
        load_image_set(options(set=str(tmp_path)), seed=0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(InputError, match="none of its 1 images can be used"):
        load_image_set(options(set=str(tmp_path)), seed=0)
    (tmp_path / "a.png").unlink()
    picture(1).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="1 image in"):
        load_image_set(options(set=str(tmp_path)), seed=0)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_every_mode_become_one_tensor(tmp_path: Path, mode: str) -> None:
    for place, stored in enumerate(["L", "LA", "P", "1", "RGBA", "CMYK"]):
        suffix = "tif" if stored == "CMYK" else "png"
        picture(place, mode=stored).save(tmp_path / f"{place}.{suffix}")
    Image.fromarray((np.arange(320).reshape(16, 20) * 200).astype(np.uint16)).save(tmp_path / "deep.png")
    found = load_image_set(options(set=str(tmp_path), size=16, mode=mode), seed=0)
    assert found.pixels.shape == (7, 3 if mode == "RGB" else 1, 16, 16)
    assert not found.notes


def test_pixels_that_are_no_colours_are_refused(tmp_path: Path, saved: Path) -> None:
    Image.fromarray(np.linspace(0, 9, 320, dtype=np.float32).reshape(16, 20)).save(tmp_path / "heights.tif")
    with pytest.raises(InputError, match=r"heights.tif: has pixels of mode F, whose range is not known") as caught:
        load_image_set(options(set=str(tmp_path)), seed=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"--data.mode.*'CMYK'.*L.*RGB") as refused:
        parse(FitConfig, ["--data.mode", "CMYK"], prog="fit.py", preset=CONFIGS / "digits.yaml")
    assert "\n" not in str(refused.value)


# ---- the library


def test_a_saved_data_set_is_found_by_its_types(saved: Path) -> None:
    found = load_image_set(options(set=str(saved), size=16), seed=0)
    assert found.pixels.shape == (SHADES, 3, 16, 16)
    assert found.classes == ("plane", "automobile")
    assert found.labels is not None and found.labels.tolist() == [i % 2 for i in range(SHADES)]
    test = load_image_set(options(set=str(saved), split="test", mode="L", column="img", label_column="note"), seed=0)
    assert test.pixels.shape == (4, 1, 32, 32)
    assert test.classes == ("row 0", "row 1", "row 2", "row 3")


def test_classes_of_a_data_set_are_filtered_before_its_images_are_read(saved: Path) -> None:
    found = load_image_set(options(set=str(saved), only=["automobile"], most=3, size=16), seed=0)
    assert (len(found), found.classes) == (3, ("automobile",))
    with pytest.raises(InputError, match="unknown class 'automobil', did you mean 'automobile'"):
        load_image_set(options(set=str(saved), only=["automobil"]), seed=0)


def test_a_preset_is_a_data_set_cut_its_way(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.load_from_disk(str(saved))
    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: asked.append(given) or table)
    found = load_image_set(options(set="cars"), seed=0)
    assert asked == [("cifar10", None)]
    assert (found.name, found.classes, found.flip, found.pixels.shape[1:]) == (
        "cars",
        ("automobile",),
        True,
        (3, 32, 32),
    )
    assert load_image_set(options(set="mnist", size=16), seed=0).pixels.shape == (SHADES, 1, 16, 16)
    assert len(HUB_PRESETS) == 15


def test_data_sets_that_are_not_what_was_asked(saved: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "words"))
    for where, what, given in (
        ("--data.split", "did you mean 'test'", {"set": str(saved), "split": "tests"}),
        ("--data.column", "'image'", {"set": str(saved), "column": "image"}),
        ("--data.column", "column 'note' of", {"set": str(saved), "column": "note"}),
        ("--data.set", "has no column of images, only text", {"set": str(tmp_path / "words")}),
        ("--data.set someone/thing", "cannot be opened", {"set": "someone/thing"}),
        ("--data.set", "did you mean 'digits'", {"set": "digit"}),
    ):
        with pytest.raises(InputError) as caught:
            load_image_set(options(**given), seed=0)
        assert caught.value.where == where and what in caught.value.what
