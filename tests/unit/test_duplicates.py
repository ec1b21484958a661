"""Near-duplicates are found, other poses are not; the split moves nobody and cuts no group."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data import sample_set
from data.duplicates import Pair, duplicate_groups, near_duplicates, sample_held_out, split_held_out
from data.errors import InputError

Edit = Callable[[Image.Image], Image.Image]
SPECIES, POSES = 4, 4
FLIP = Image.Transpose.FLIP_LEFT_RIGHT


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(io.BytesIO(content.getvalue()))


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    box = left * width, top * height, (1 - right) * width, (1 - bottom) * height
    return image.crop(tuple(map(round, box)))


COPIES: dict[str, Edit] = {
    "JPEG at quality 50": lambda image: jpeg(image, 50),
    "JPEG at quality 10": lambda image: jpeg(image, 10),
    "half the size": lambda image: image.resize((80, 80), Image.Resampling.BICUBIC),
    "enlarged": lambda image: image.resize((240, 240), Image.Resampling.LANCZOS),
    "stretched": lambda image: image.resize((200, 160)),
    "mirrored": lambda image: image.transpose(FLIP),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "all sides cropped": lambda image: crop(image, 0.04, 0.04, 0.04, 0.04),
    "one side cropped": lambda image: crop(image, 0.06, 0, 0, 0),
    "a corner cropped": lambda image: crop(image, 0.05, 0.05, 0, 0),
    "mirrored, cropped, JPEG": lambda image: jpeg(crop(image, 0.03, 0.02, 0.03, 0.04).transpose(FLIP), 60),
}


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    """Four poses each of four species: image i shows species i % 4."""
    count = 100  # species
    return [sample_set.sample_image(kin * 7 + pose * count, 160) for pose in range(POSES) for kin in range(SPECIES)]


def test_poses_of_one_species_are_different_images(drawn: list[Image.Image]) -> None:
    assert near_duplicates(drawn, cache=False) == []
    assert duplicate_groups(drawn, cache=False) == list(range(SPECIES * POSES))


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(kind: str, drawn: list[Image.Image]) -> None:
    some = drawn[:12]
    pairs = near_duplicates([*some, *(COPIES[kind](image) for image in some)], cache=False)
    assert [(pair.first, pair.second) for pair in pairs] == [(index, index + 12) for index in range(12)]


def test_photographs_with_texture_everywhere_are_found_too() -> None:
    """Smooth random fields, the spectrum of a photograph: each image is full, none has white paper."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(160), np.fft.fftfreq(160)))[..., None] + 1 / 160
    photographs = []
    for _ in range(8):
        field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(160, 160, 3)), axes=(0, 1)) / frequency, axes=(0, 1)).real
        field = (field - field.mean()) / field.std()
        photographs.append(Image.fromarray(np.clip(128 + 50 * field, 0, 255).astype(np.uint8)))
    for kind, edit in COPIES.items():
        pairs = near_duplicates([*photographs, *map(edit, photographs)], cache=False)
        assert [(pair.first, pair.second) for pair in pairs] == [(index, index + 8) for index in range(8)], kind


def test_another_hue_is_another_image(drawn: list[Image.Image]) -> None:
    red, green, blue = drawn[0].split()
    assert near_duplicates([drawn[0], Image.merge("RGB", (blue, red, green))], cache=False) == []


def test_flat_images_are_compared_by_colour() -> None:
    kinds = (((9, 9), "white"), ((50, 20), "white"), ((9, 9), "red"), ((1, 1), (254, 254, 254)))
    assert duplicate_groups([Image.new("RGB", *kind) for kind in kinds], cache=False) == [0, 0, 1, 0]


def test_groups_are_joined_through_a_third_image(drawn: list[Image.Image]) -> None:
    left, right = crop(drawn[0], 0.09, 0, 0, 0), crop(drawn[0], 0, 0, 0.09, 0)
    assert duplicate_groups([left, drawn[1], right, drawn[0]], cache=False) == [0, 1, 0, 0]


def test_nothing_and_one_image(drawn: list[Image.Image]) -> None:
    assert duplicate_groups([], cache=False) == []
    assert duplicate_groups(drawn[:1], cache=False) == [0]


def test_equal_bytes_need_no_look(tmp_path: Path, drawn: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    for name, image in (("a.png", drawn[0]), ("b.png", drawn[1]), ("c.png", drawn[0])):
        image.save(tmp_path / name)
    assert near_duplicates([tmp_path / name for name in ("a.png", "b.png", "c.png")]) == [Pair(0, 2, 0.0)]


HASHES = [f"{number:064x}" for number in range(1000)]
ALONE = list(range(1000))


def test_split_holds_out_its_share_and_covers_all() -> None:
    parts = split_held_out(HASHES, ALONE, share=0.1, seed=0)
    assert len(parts.held_out) == 100
    assert sorted(parts.train + parts.held_out) == ALONE
    assert parts == split_held_out(HASHES, ALONE, share=0.1, seed=0)
    assert parts != split_held_out(HASHES, ALONE, share=0.1, seed=1)


def test_more_images_move_few_and_the_order_none() -> None:
    few, many = (split_held_out(HASHES[:count], ALONE[:count], share=0.1, seed=3) for count in (990, 1000))
    assert len(set(few.held_out) ^ {index for index in many.held_out if index < 990}) <= 3
    shuffled = HASHES[::-1]
    held = {shuffled[index] for index in split_held_out(shuffled, ALONE, share=0.1, seed=3).held_out}
    assert held == {HASHES[index] for index in many.held_out}


def test_a_sampled_split_moves_nobody() -> None:
    few, many = (sample_held_out(HASHES[:count], ALONE[:count], share=0.1, seed=3) for count in (400, 1000))
    assert few.held_out == [index for index in many.held_out if index < 400]
    assert abs(len(many.held_out) - 100) < 4 * 9.5  # binomial sd 9.5
    exact = split_held_out(HASHES, ALONE, share=len(many.held_out) / 1000, seed=3)
    assert exact == many  # where the sampled split has the share, it is the exact one


def test_the_share_is_exact_over_random_groups() -> None:
    """Against brute force: the number of images is the largest that whole groups can make, up to the share."""
    random = np.random.default_rng(0)
    for seed in range(300):
        count = int(random.integers(2, 25))
        groups = random.integers(0, count, count).tolist()
        share = float(random.choice([0.01, 0.1, 0.2, 1 / 3, 0.5, 0.8]))
        parts = split_held_out(HASHES[:count], groups, share=share, seed=seed)
        assert sorted(parts.train + parts.held_out) == list(range(count))
        assert not {groups[index] for index in parts.train} & {groups[index] for index in parts.held_out}
        sizes = [groups.count(group) for group in set(groups)]
        sums = {0}
        for size in sizes:
            sums |= {known + size for known in sums}
        wanted = max(1, min(round(share * count), count // 3 if share <= 1 / 3 else count - 1))
        best = max(total for total in sums if total <= wanted) if len(sizes) > 1 else 0
        assert len(parts.held_out) == best
        assert bool(parts.note) == (best != wanted)


def test_a_large_group_is_trained_on() -> None:
    groups = [*range(20), *[20] * 20]
    parts = split_held_out(HASHES[:40], groups, share=0.1, seed=0)
    assert len(parts.held_out) == 4
    assert max(parts.held_out) < 20
    assert [len(split_held_out(HASHES[:5], ALONE[:5], share=0.1, seed=seed).held_out) for seed in range(20)] == [1] * 20


def test_two_large_groups_hold_nothing_out_and_say_so() -> None:
    parts = split_held_out(HASHES[:40], [index // 20 for index in range(40)], share=0.1, seed=0)
    assert parts.held_out == []
    assert "instead of 4" in parts.note


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
def test_neither_side_is_empty_from_two_groups_on(share: float) -> None:
    for split in (split_held_out, sample_held_out):
        for seed in range(20):
            parts = split(HASHES[:3], [0, 0, 1], share=share, seed=seed)
            assert parts.train
            assert parts.held_out
        single = split(HASHES[:2], [0, 0], share=share, seed=0)
        assert (single.train, single.held_out) == ([0, 1], [])


def test_a_share_of_zero_holds_nothing_out_and_a_whole_is_refused() -> None:
    assert split_held_out(HASHES, ALONE, share=0, seed=0).held_out == []
    for share in (-0.1, 1.0, 2.0):
        with pytest.raises(InputError, match=f"held-out share {share:g}; allowed: 0"):
            split_held_out(HASHES, ALONE, share=share, seed=0)
