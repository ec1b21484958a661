"""Templates, picks by position, dropout and the token report."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from data import rng
from data.captions import (
    caption_chunks,
    chunk_ids,
    count_tokens,
    is_dropped,
    known_fields,
    render_prompts,
    tag_variants,
)
from data.errors import InputError
from data.schema import Annotation, Sample


def annotation(**fields: object) -> Annotation:
    return Annotation.model_validate({"file_name": "a.png", **fields})


def sample(**fields: object) -> Sample:
    return Sample(Path("a.png"), annotation(**fields), "metadata.jsonl:7", "0" * 64, 64, 64)


FULL = annotation(
    text="a blue cat", texts=["a cat", "a blue cat"], type="water", mood="happy", level=3, tags=["wet", "new"]
)


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("{text}", ["a blue cat", "a cat"]),
        ("{text}, {type} type", ["a blue cat, water type", "a cat, water type"]),
        ("a {type} creature", ["a water creature"]),
        ("{text} {mood} {level} {tags}", ["a blue cat happy 3 wet, new", "a cat happy 3 wet, new"]),
        ("{{{type}}}", ["{water}"]),
        ("a creature", ["a creature"]),
    ],
)
def test_template(template: str, prompts: list[str]) -> None:
    assert render_prompts(FULL, template) == prompts


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("a {type} fridge", "a fridge"),
        ("{text}, {type}, {name}", "a cat , black"),
        ("{type}, {name}, {text}", "a cat , black"),
        ("{type}: {text}.", ": a cat , black."),
        ("by {name}, {text}", "by, a cat , black"),
        ("{text} ({name})", "a cat , black ( )"),
    ],
)
def test_a_missing_field_leaves_no_double_space_or_orphan_comma(template: str, prompt: str) -> None:
    assert render_prompts(annotation(text="a  cat ,\n black"), template) == [prompt]


def test_a_image_without_caption_has_no_prompt_unless_the_template_gives_it_words() -> None:
    assert render_prompts(annotation()) == []
    assert render_prompts(annotation(type="fire"), "{text} {type}") == ["fire"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{txt}", "unknown field 'txt', did you mean 'text'?"),
        ("{}", "unknown field ''"),
        ("{0}", "unknown field '0'"),
        ("{text.__class__}", "unknown field 'text.__class__'"),
        ("{type[0]}", "unknown field 'type[0]'"),
        ("{text:>1000000000}", "{text} has a format or conversion"),
        ("{text!r}", "{text} has a format or conversion"),
        ("{text:{name}}", "{text} has a format or conversion"),
        ("{text", "expected '}' before end of string"),
        ("text}", "single '}' encountered in format string"),
    ],
)
def test_anything_but_a_known_plain_field_is_refused(template: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        render_prompts(FULL, template)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"template {template!r}: ")


def test_a_key_that_other_images_have_is_empty_here() -> None:
    fields = known_fields([FULL, annotation(text="x")])
    assert {"mood", "level", "tags", "file_name", "quality"} <= fields
    assert render_prompts(annotation(text="x"), "{text} {mood}", fields=fields) == ["x"]
    with pytest.raises(InputError, match="did you mean 'mood'"):
        render_prompts(annotation(text="x"), "{text} {moot}", fields=fields)


def test_a_field_that_holds_no_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"a\.png: field 'box' holds a dict, not text"):
        render_prompts(annotation(text="x", box={"x": 1}), "{text} {box}")


def test_dropout_has_its_probability_and_is_independent_of_the_caption() -> None:
    drops = [is_dropped(0.25, 0, step) for step in range(4000)]
    assert abs(sum(drops) - 1000) < 4 * 27.4
    assert not any(is_dropped(0.0, step) for step in range(100))
    assert all(is_dropped(1.0, step) for step in range(100))
    firsts = [rng.integer(2, "caption", 0, step) == 0 for step in range(4000)]
    assert abs(sum(drop for drop, first in zip(drops, firsts, strict=True) if first) - 500) < 4 * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """Real CLIP byte-level BPE with two merges: "ca" is one token within a word, "cat" one at its end; limit 10."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(code) for code in range(33, 127)]
    words = letters + [f"{letter}</w>" for letter in letters] + ["ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=10, local_files_only=True)


def test_tokens_are_counted_without_start_and_end_and_agree_with_the_tokenizer(tokenizer: CLIPTokenizer) -> None:
    report = count_tokens(["cat", "cat cat", "Cat, cats!"], tokenizer)
    assert report.counts == [1, 2, 6]  # cat , ca t s !
    assert report.counts == [len(tokenizer(text)["input_ids"]) - 2 for text in ["cat", "cat cat", "Cat, cats!"]]
    assert report.limit == 8
    assert report.cut == []
    assert str(report).startswith("3 captions: median 2, longest 6 of 8 tokens, 0 truncated (tokenizer ")


def test_words_past_the_limit_are_named_whole(tokenizer: CLIPTokenizer) -> None:
    fits, over = "cat " * 7 + "cat", "cat " * 7 + "Dog and  cat"
    report = count_tokens([sample(text=fits, texts=[over])], tokenizer)
    assert report.counts == [8, 14]
    (cut,) = report.cut
    assert (cut.file_name, cut.where, cut.count) == ("a.png", "metadata.jsonl:7", 14)
    assert cut.lost_text == "Dog and cat"  # the limit falls inside "Dog": half a word is a word lost


def test_the_template_counts_too_and_nothing_is_nothing(tokenizer: CLIPTokenizer) -> None:
    assert count_tokens([sample(text="cat")], tokenizer, "cat {text} cat").counts == [3]
    assert count_tokens([], tokenizer).counts == []
    assert str(count_tokens([], tokenizer)).startswith("no captions to count")


def test_a_tokenizer_without_a_limit_is_refused(tokenizer: CLIPTokenizer) -> None:
    limit, tokenizer.model_max_length = tokenizer.model_max_length, int(1e30)
    try:
        with pytest.raises(InputError, match="model_max_length"):
            count_tokens(["cat"], tokenizer)
    finally:
        tokenizer.model_max_length = limit


def test_tags_are_shuffled_and_dropped_by_the_seed() -> None:
    tags = "trigger, red, small,  on ice, left"
    settings: dict[str, Any] = {"shuffle": True, "keep": 1, "dropout": 0.0, "count": 8, "seed": 3}
    variants = tag_variants(tags, **settings)
    assert variants == tag_variants(tags, **settings) != tag_variants(tags, **settings | {"seed": 4})
    assert variants[0] == tags and len(variants) > 4
    for text in variants[1:]:
        first, *rest = text.split(", ")
        assert first == "trigger" and sorted(rest) == ["left", "on ice", "red", "small"]
    dropped = tag_variants(tags, **settings | {"shuffle": False, "dropout": 0.5, "count": 64})[1:]
    assert all(text.startswith("trigger") for text in dropped)
    order = ["trigger", "red", "small", "on ice", "left"]
    assert all(text.split(", ") == [tag for tag in order if tag in text.split(", ")] for text in dropped)
    assert len(dropped) > 8
    assert tag_variants("alone", **settings) == ["alone"]
    assert tag_variants(tags, **settings | {"shuffle": False}) == [tags]


def test_dropped_tags_leave_the_share_that_is_asked() -> None:
    tags = ", ".join(map(str, range(1000)))
    (_, varied) = tag_variants(tags, shuffle=False, keep=0, dropout=0.3, count=1, seed=0)
    assert abs(len(varied.split(", ")) - 700) < 60  # sd 14.5


def test_a_long_caption_is_counted_in_chunks(tokenizer: CLIPTokenizer) -> None:
    caption = "cat cat, " + "cat " * 18
    assert [len(chunk) for chunk in caption_chunks(caption, tokenizer)] == [3, 8, 8, 2]
    ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
    assert [token for chunk in caption_chunks(caption, tokenizer) for token in chunk] == ids
    whole = count_tokens([caption, "cat"], tokenizer, chunks=5)
    assert (whole.cut, whole.chunks, whole.limit) == ([], 4, 40)
    part = count_tokens([caption], tokenizer, chunks=2)
    assert (part.chunks, part.cut[0].lost_text) == (2, "cat " * 9 + "cat")
    first, second = caption_chunks("cat", tokenizer)[0], tokenizer("cat", padding="max_length")["input_ids"]
    assert chunk_ids(first, tokenizer) == second
