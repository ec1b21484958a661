"""Weights in prompts as A1111 writes them, and prompts longer than the text encoder reads at once, in chunks.

    (x)  1.1 times   ((x))  1.21 times   (x:1.3)  1.3 times   [x]  1 / 1.1 times   \\( \\) \\[ \\]  the signs themselves
    BREAK  ends a chunk; otherwise a chunk ends after 75 tokens, or at a comma among the last 20 of them

The rule: a chunk's text states are multiplied by the weights of their tokens (start, end and padding have weight 1), as
A1111's "Emphasis: No norm" does. Its default then multiplies by the ratio of the means before and after; where the mean
is all but zero, as in the embedded base (0.001 at a spread of 1), that ratio is noise and may turn the prompt around.
Source: AUTOMATIC1111, modules/prompt_parser.py (parse_prompt_attention), sd_hijack_clip.py (tokenize_line) and
sd_emphasis.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP = 1.1  # of each pair of brackets
BACK = 20  # tokens that a chunk is shortened by at most, to end at a comma
HIGHEST = 100.0  # of a weight; more is a slip of the decimal point
TOKEN = re.compile(
    r"\\[()\[\]\\]|\\|[(\[]|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[)\]]|[^\\()\[\]:]+|:", flags=re.DOTALL
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Fragment:
    """Words of one weight. ends: a chunk ends before them (BREAK)."""

    text: str
    weight: float = 1.0
    ends: bool = False


@dataclass(frozen=True)
class Chunk:
    """Token ids as the text encoder takes them, start, end and padding included, and the weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1 for weight in self.weights)


def fragments(prompt: str) -> list[Fragment]:
    """A prompt taken apart; neighbours of one weight are one fragment. Brackets that do not pair do as A1111 has it:
    a closing one is text, an opening one holds to the end.
    """
    found: list[Fragment] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for token in TOKEN.finditer(prompt):
        text, weight = token.group(), token["weight"]
        if text in opened:
            opened[text].append(len(found))
        elif weight is not None and opened["("]:
            multiply(found, opened["("].pop(), float(weight))
        elif text == ")" and opened["("]:
            multiply(found, opened["("].pop(), STEP)
        elif text == "]" and opened["["]:
            multiply(found, opened["["].pop(), 1 / STEP)
        elif text.startswith("\\"):
            found.append(Fragment(text[1:] or text))
        else:
            found += [Fragment(part, ends=number > 0) for number, part in enumerate(BREAK.split(text))]
    for start in opened["("]:
        multiply(found, start, STEP)
    for start in opened["["]:
        multiply(found, start, 1 / STEP)
    return merged(found)


def multiply(found: list[Fragment], start: int, factor: float) -> None:
    """Give the fragments from `start` on another weight."""
    found[start:] = [Fragment(each.text, each.weight * factor, each.ends) for each in found[start:]]


def merged(found: Sequence[Fragment]) -> list[Fragment]:
    joined: list[Fragment] = []
    for each in found:
        if joined and not each.ends and joined[-1].weight == each.weight:
            joined[-1] = Fragment(joined[-1].text + each.text, each.weight, joined[-1].ends)
        else:
            joined.append(each)
    return joined or [Fragment("")]


def is_weighted(prompt: str) -> bool:
    """Whether any of its words weighs more or less than the others."""
    return any(each.weight != 1 for each in fragments(prompt))


def too_heavy(prompt: str) -> bool:
    """Whether a weight is not a number that anyone means."""
    return not all(math.isfinite(each.weight) and abs(each.weight) <= HIGHEST for each in fragments(prompt))


def chunks(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[Chunk]:
    """A prompt as rows of model_max_length tokens; a short prompt without weights is one, as the tokenizer pads it."""
    limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    return [padded(row, tokenizer, limit) for row in rows(fragments(prompt), tokenizer, limit)]


Weighted = tuple[int, float]  # a token's id and its weight


def rows(found: Sequence[Fragment], tokenizer: Any, limit: int) -> Iterator[list[Weighted]]:
    """Tokens in rows of at most `limit`."""
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1]
    row: list[Weighted] = []
    for each in found:
        if each.ends:
            yield row
            row = []
        for token in tokenizer(each.text, add_special_tokens=False, verbose=False).input_ids:
            if len(row) == limit:
                end = end_of(row, comma, token)
                yield row[:end]
                row = row[end:]
            row.append((token, each.weight))
    yield row


def end_of(row: Sequence[Weighted], comma: int, token: int) -> int:
    """Where a full row is cut: after its last comma, if that is among its last tokens and no comma comes next."""
    last = max((number for number, (own, _) in enumerate(row) if own == comma), default=-1)
    return last + 1 if token != comma and last >= 0 and len(row) - last <= BACK else len(row)


def padded(row: Sequence[Weighted], tokenizer: Any, limit: int) -> Chunk:
    """With start, end and padding, which have weight 1."""
    rest = [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (limit - len(row))
    ids = (tokenizer.bos_token_id, *(token for token, _ in row), *rest)
    return Chunk(ids, (1.0, *(weight for _, weight in row), *[1.0] * len(rest)))
