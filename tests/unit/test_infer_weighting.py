"""Weights in prompts: A1111's grammar sign by sign, its rule in closed form, and long prompts read to their end."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from data.errors import InputError
from infer import pipeline, text_encoding
from infer.pipeline import SamplingSettings
from infer.prompts import ImageRequest
from infer.text_encoding import PromptEncoder, TokenCount, WeightedText
from tests.tiny import tiny_tokenizer
from train import model

# compel 2.5.1 imports what transformers 5 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("((x))", [("x", 1.1**2)]),
        ("[x]", [("x", 1 / 1.1)]),
        ("(x:1.3)", [("x", 1.3)]),
        ("(x:.5) y", [("x", 0.5), (" y", 1.0)]),
        ("smile :)", [("smile :)", 1.0)]),
        ("a: b", [("a: b", 1.0)]),
        ("(x:1.3", [("x:1.3", 1.1)]),
        ("back\\slash", [("back\\slash", 1.0)]),
        ("日本 (猫:1.2)", [("日本 ", 1.0), ("猫", 1.2)]),
        ("", [("", 1.0)]),
    ],
)
def test_a1111s_grammar(prompt: str, expected: list[tuple[str, float]]) -> None:
    """The first five are the examples of A1111's own docstring of parse_prompt_attention."""
    found = [(each.text, each.weight) for each in text_encoding.parse_emphasis(prompt)]
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


def test_its_longest_example() -> None:
    """Also of A1111's docstring."""
    found = text_encoding.parse_emphasis("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).")
    texts = ["a ", "house", " ", "on", " a ", "hill", ", sun, ", "sky", "."]
    weights = [1.0, 1.5730000000000004, 1.1, 1.0, 1.1, 0.55, 1.1, 1.4641000000000006, 1.1]
    assert [each.text for each in found] == texts
    assert [each.weight for each in found] == pytest.approx(weights)


def test_break_begins_a_chunk() -> None:
    found = text_encoding.parse_emphasis("a BREAK (b BREAK c:2) BREAKER")
    assert found == [
        WeightedText("a"),
        WeightedText("", ends=True),
        WeightedText("b", 2.0),
        WeightedText("c", 2.0, ends=True),
        WeightedText(" BREAKER"),
    ]


def test_rows_end_at_a_comma_among_the_last_twenty_tokens(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)  # "water" and "," are one token each

    def lengths(prompt: str) -> list[int]:
        return [len(row) for row in text_encoding.split_rows(text_encoding.parse_emphasis(prompt), tokenizer, 75)]

    assert lengths("water " * 75) == [75]
    assert lengths("water " * 76) == [75, 1]
    assert lengths("water " * 60 + ", " + "water " * 20) == [61, 20]
    assert lengths("water " * 50 + ", " + "water " * 30) == [75, 6], "a comma too far back"
    assert lengths("water " * 75 + ", water") == [75, 2], "the next token is the comma"
    assert lengths("water BREAK water water") == [1, 2]
    assert lengths("") == [0]


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> StableDiffusionPipeline:
    return pipeline.build_pipeline(model.load_model(str(tiny_model)), None, torch.device("cpu"))


@pytest.mark.parametrize("prompt", ["a water type fridge", "", "water " * 75])
def test_a_prompt_without_weights_has_the_states_that_diffusers_gives_it(
    pipe: StableDiffusionPipeline, prompt: str
) -> None:
    assert torch.equal(PromptEncoder(pipe, "a1111")([prompt]), PromptEncoder(pipe)([prompt]))


def test_weights_multiply_the_states_of_their_tokens(pipe: StableDiffusionPipeline) -> None:
    plain, weighted = PromptEncoder(pipe)(["water fire"]), PromptEncoder(pipe, "a1111")(["(water:1.5) fire"])
    by = torch.ones(77)
    by[1] = 1.5
    assert torch.equal(weighted, plain * by[None, :, None])


def test_a_long_prompt_is_chunks_and_the_other_is_padded_with_the_empty_one(pipe: StableDiffusionPipeline) -> None:
    encode = PromptEncoder(pipe, "a1111")
    states, negative = encode.pair(["water " * 80], "fire")
    assert states.shape == negative.shape == (1, 154, 32)
    assert torch.equal(states[:, :77], encode(["water " * 75]))
    assert torch.equal(states[:, 77:], encode(["water " * 5]))
    assert torch.equal(negative, torch.cat([encode(["fire"]), encode([""])], dim=1))


def test_the_end_of_a_long_prompt_is_drawn(pipe: StableDiffusionPipeline) -> None:
    """Complaint: what is past the 77th token had no effect and nobody was told."""
    settings = SamplingSettings(steps=1, guidance_scale=7.5, width=32, height=32, weighting="a1111")
    long = "water " * 80
    pictures = [ImageRequest(0, long + "fire", 1), ImageRequest(1, long + "type", 1), ImageRequest(2, "water", 1)]
    drawn = [each.image.tobytes() for each in pipeline.generate_images(pipe, pictures, settings)]
    assert len(set(drawn)) == 3
    cut = SamplingSettings(steps=1, guidance_scale=7.5, width=32, height=32)
    assert len({each.image.tobytes() for each in pipeline.generate_images(pipe, pictures[:2], cut)}) == 1


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_neighbours_of_another_length_change_nothing(pipe: StableDiffusionPipeline, micro_batch: int) -> None:
    settings = SamplingSettings(
        steps=1, guidance_scale=7.5, width=32, height=32, weighting="a1111", micro_batch=micro_batch
    )
    pictures = [ImageRequest(0, "water", 1), ImageRequest(1, "water " * 80, 1), ImageRequest(2, "(fire:1.2)", 1)]
    together = [each.image.tobytes() for each in pipeline.generate_images(pipe, pictures, settings)]
    alone = [next(iter(pipeline.generate_images(pipe, [each], settings))).image.tobytes() for each in pictures]
    assert together == alone


def test_tokens_are_counted_without_weights_and_nothing_is_cut(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    long = "(water:1.2) " * 80
    found = text_encoding.measure_prompts(["(water:1.3)", long, "water BREAK fire"], tokenizer, "a1111")
    assert found == {
        "(water:1.3)": TokenCount(1, 75),
        long: TokenCount(80, 75, "", 2),
        "water BREAK fire": TokenCount(2, 75, "", 2),
    }
    assert text_encoding.truncated_prompts(found) == []
    assert text_encoding.measure_prompts(["water++ fire"], tokenizer, "compel") == {"water++ fire": TokenCount(2, 75)}


def test_compels_grammar(pipe: StableDiffusionPipeline) -> None:
    encode = PromptEncoder(pipe, "compel")
    assert torch.allclose(encode(["a water"]), PromptEncoder(pipe)(["a water"]), atol=1e-5)
    assert not torch.allclose(encode(["a water++"]), encode(["a water"]), atol=1e-4)
    blend = encode(['("water", "fire").blend(0.5, 0.5)'])
    assert torch.allclose(blend, (encode(["water"]) + encode(["fire"])) / 2, atol=1e-5)
    assert encode(["water " * 80]).shape == (1, 154, 32)
    with pytest.raises(InputError, match="is not understood by compel"):
        encode(['("water", "fire").blend(0.5)'])


def test_a_weight_that_nobody_means_is_seen() -> None:
    assert text_encoding.has_extreme_weight("(x:1000)")
    assert text_encoding.has_extreme_weight("(" * 60 + "x")
    assert not text_encoding.has_extreme_weight("((x:1.5)) [y] (z:-1)")
