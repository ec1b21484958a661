"""Prompt weights: A1111's syntax sign by sign, its rule in closed form, and long prompts encoded to their end."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infer import pipeline, text_encoding
from infer.prompts import ImageRequest
from infer.sampling_loop import SamplingSettings
from infer.text_encoding import PromptEncoder, TokenCount, WeightedText
from tests.errors import error_of
from tests.tiny import tiny_tokenizer
from train.model import load_model

# compel 2.5.1 imports what transformers 5 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SETTINGS = {"steps": 1, "guidance_scale": 7.5, "width": 32, "height": 32}


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
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *[("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55)],
                *[(", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
            ],
        ),
    ],
)
def test_a1111s_syntax(prompt: str, expected: list[tuple[str, float]]) -> None:
    """The first five and the last are the examples of A1111's own docstring of parse_prompt_attention."""
    pieces = text_encoding.parse_emphasis(prompt)
    assert [piece.text for piece in pieces] == [text for text, _ in expected]
    assert [piece.weight for piece in pieces] == pytest.approx([weight for _, weight in expected])


def test_break_starts_a_chunk() -> None:
    assert text_encoding.parse_emphasis("a BREAK (b BREAK c:2) BREAKER") == [
        WeightedText("a"),
        WeightedText("", starts_chunk=True),
        WeightedText("b", 2.0),
        WeightedText("c", 2.0, starts_chunk=True),
        WeightedText(" BREAKER"),
    ]


def test_chunks_end_at_a_comma_among_the_last_twenty_tokens(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)  # "water" and "," are one token each

    def lengths(prompt: str) -> list[int]:
        return [len(chunk) for chunk in text_encoding.tokenize_chunks(prompt, tokenizer)]

    assert lengths("water " * 75) == [75]
    assert lengths("water " * 76) == [75, 1]
    assert lengths("water " * 60 + ", " + "water " * 20) == [61, 20]
    assert lengths("water " * 50 + ", " + "water " * 30) == [75, 6], "a comma too far back"
    assert lengths("water " * 75 + ", water") == [75, 2], "the next token is the comma"
    assert lengths("water BREAK water water") == [1, 2]
    assert lengths("") == [0]


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Any:
    return pipeline.build_pipeline(load_model(str(tiny_model)), None, torch.device("cpu"))


@pytest.mark.parametrize("prompt", ["a water type fridge", "", "water " * 75])
def test_without_weights_the_embeddings_are_diffusers_own(pipe: Any, prompt: str) -> None:
    assert torch.equal(PromptEncoder(pipe, "a1111")([prompt]), PromptEncoder(pipe)([prompt]))


def test_weights_multiply_the_embeddings_of_their_tokens(pipe: Any) -> None:
    plain, weighted = PromptEncoder(pipe)(["water fire"]), PromptEncoder(pipe, "a1111")(["(water:1.5) fire"])
    weights = torch.ones(77)
    weights[1] = 1.5
    assert torch.equal(weighted, plain * weights[None, :, None])


def test_a_long_prompt_is_chunks_and_the_other_is_padded_with_the_empty_one(pipe: Any) -> None:
    encode = PromptEncoder(pipe, "a1111")
    embeds, negative = encode.pair(["water " * 80], "fire")
    assert embeds.shape == negative.shape == (1, 154, 32)
    assert torch.equal(embeds[:, :77], encode(["water " * 75]))
    assert torch.equal(embeds[:, 77:], encode(["water " * 5]))
    assert torch.equal(negative, torch.cat([encode(["fire"]), encode([""])], dim=1))


def test_the_end_of_a_long_prompt_has_an_effect(pipe: Any) -> None:
    """Complaint: what is past the 77th token had no effect and nobody was told."""
    long = "water " * 80
    requests = [ImageRequest(index, prompt, 1) for index, prompt in enumerate((long + "fire", long + "type", "water"))]

    def distinct(weighting: str) -> int:
        settings = SamplingSettings(**SETTINGS, weighting=weighting)
        return len({each.image.tobytes() for each in pipeline.generate_images(pipe, requests, settings)})

    assert (distinct("a1111"), distinct("none")) == (3, 2)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_neighbours_of_another_length_change_nothing(pipe: Any, micro_batch: int) -> None:
    settings = SamplingSettings(**SETTINGS, weighting="a1111", micro_batch=micro_batch)
    requests = [ImageRequest(index, prompt, 1) for index, prompt in enumerate(("water", "water " * 80, "(fire:1.2)"))]
    together = [each.image.tobytes() for each in pipeline.generate_images(pipe, requests, settings)]
    alone = [next(iter(pipeline.generate_images(pipe, [each], settings))).image.tobytes() for each in requests]
    assert together == alone


def test_tokens_are_counted_without_weights(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)  # "water" is one token, the space before "last" none
    long = "(water:1.2) " * 80
    found = text_encoding.measure_prompts(["(water:1.3)", long, "water BREAK fire"], tokenizer, "a1111")
    assert list(found.values()) == [TokenCount(1, 75), TokenCount(80, 75, "", 2), TokenCount(2, 75, "", 2)]
    assert text_encoding.truncated_prompts(found) == []
    assert text_encoding.measure_prompts(["water++ fire"], tokenizer, "compel") == {"water++ fire": TokenCount(2, 75)}
    long = "water " * 75 + "last words"
    plain = text_encoding.measure_prompts(["water", long, "water"], tokenizer)
    assert plain == {"water": TokenCount(1, 75), long: TokenCount(75 + 4 + 5, 75, "last words")}
    (problem,) = text_encoding.truncated_prompts(plain)
    assert problem.where == "--prompt" and "'last words'" in str(problem)


def test_compels_syntax(pipe: Any) -> None:
    encode = PromptEncoder(pipe, "compel")
    assert torch.allclose(encode(["a water"]), PromptEncoder(pipe)(["a water"]), atol=1e-5)
    assert not torch.allclose(encode(["a water++"]), encode(["a water"]), atol=1e-4)
    blend = encode(['("water", "fire").blend(0.5, 0.5)'])
    assert torch.allclose(blend, (encode(["water"]) + encode(["fire"])) / 2, atol=1e-5)
    assert encode(["water " * 80]).shape == (1, 154, 32)
    error = error_of(encode, ['("water", "fire").blend(0.5)'])
    assert error.where == "--prompt" and error.fix


def test_a_weight_that_nobody_means_is_an_error() -> None:
    prompts = ["(x:1000)", "(" * 60 + "x", "((x:1.5)) [y] (z:-1)"]
    assert len(text_encoding.check_grammar(prompts, "a1111")) == 2
    assert text_encoding.check_grammar(prompts, "none") == []
