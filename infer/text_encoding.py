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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from data.captions import count_tokens
from data.errors import InputError
from infer.prompts import shorten

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from data.shapes import TextStates

BRACKET_FACTOR = 1.1  # of each pair of brackets
COMMA_BACKTRACK = 20  # tokens that a chunk is shortened by at most, to end at a comma
MAX_EMPHASIS = 100.0  # of a weight; more is a slip of the decimal point
EMPHASIS_TOKEN = re.compile(
    r"\\[()\[\]\\]|\\|[(\[]|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[)\]]|[^\\()\[\]:]+|:", flags=re.DOTALL
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class WeightedText:
    """Words of one weight. ends: a chunk ends before them (BREAK)."""

    text: str
    weight: float = 1.0
    ends: bool = False


@dataclass(frozen=True)
class TokenChunk:
    """Token ids as the text encoder takes them, start, end and padding included, and the weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1 for weight in self.weights)


def parse_emphasis(prompt: str) -> list[WeightedText]:
    """A prompt taken apart; neighbours of one weight are one fragment. Brackets that do not pair do as A1111 has it:
    a closing one is text, an opening one holds to the end.
    """
    found: list[WeightedText] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for token in EMPHASIS_TOKEN.finditer(prompt):
        text, weight = token.group(), token["weight"]
        if text in opened:
            opened[text].append(len(found))
        elif weight is not None and opened["("]:
            multiply_weights(found, opened["("].pop(), float(weight))
        elif text == ")" and opened["("]:
            multiply_weights(found, opened["("].pop(), BRACKET_FACTOR)
        elif text == "]" and opened["["]:
            multiply_weights(found, opened["["].pop(), 1 / BRACKET_FACTOR)
        elif text.startswith("\\"):
            found.append(WeightedText(text[1:] or text))
        else:
            found += [WeightedText(part, ends=number > 0) for number, part in enumerate(BREAK.split(text))]
    for start in opened["("]:
        multiply_weights(found, start, BRACKET_FACTOR)
    for start in opened["["]:
        multiply_weights(found, start, 1 / BRACKET_FACTOR)
    return merge_neighbours(found)


def multiply_weights(found: list[WeightedText], start: int, factor: float) -> None:
    """Give the fragments from `start` on another weight."""
    found[start:] = [WeightedText(each.text, each.weight * factor, each.ends) for each in found[start:]]


def merge_neighbours(found: Sequence[WeightedText]) -> list[WeightedText]:
    joined: list[WeightedText] = []
    for each in found:
        if joined and not each.ends and joined[-1].weight == each.weight:
            joined[-1] = WeightedText(joined[-1].text + each.text, each.weight, joined[-1].ends)
        else:
            joined.append(each)
    return joined or [WeightedText("")]


def is_weighted(prompt: str) -> bool:
    """Whether any of its words weighs more or less than the others."""
    return any(each.weight != 1 for each in parse_emphasis(prompt))


def has_extreme_weight(prompt: str) -> bool:
    """Whether a weight is not a number that anyone means."""
    return not all(math.isfinite(each.weight) and abs(each.weight) <= MAX_EMPHASIS for each in parse_emphasis(prompt))


def tokenize_chunks(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[TokenChunk]:
    """A prompt as rows of model_max_length tokens; a short prompt without weights is one, as the tokenizer pads it."""
    limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    return [pad_row(row, tokenizer, limit) for row in split_rows(parse_emphasis(prompt), tokenizer, limit)]


WeightedToken = tuple[int, float]  # a token's id and its weight


def split_rows(found: Sequence[WeightedText], tokenizer: Any, limit: int) -> Iterator[list[WeightedToken]]:
    """Tokens in rows of at most `limit`."""
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1]
    row: list[WeightedToken] = []
    for each in found:
        if each.ends:
            yield row
            row = []
        for token in tokenizer(each.text, add_special_tokens=False, verbose=False).input_ids:
            if len(row) == limit:
                end = row_end(row, comma, token)
                yield row[:end]
                row = row[end:]
            row.append((token, each.weight))
    yield row


def row_end(row: Sequence[WeightedToken], comma: int, token: int) -> int:
    """Where a full row is cut: after its last comma, if that is among its last tokens and no comma comes next."""
    last = max((number for number, (own, _) in enumerate(row) if own == comma), default=-1)
    return last + 1 if token != comma and last >= 0 and len(row) - last <= COMMA_BACKTRACK else len(row)


def pad_row(row: Sequence[WeightedToken], tokenizer: Any, limit: int) -> TokenChunk:
    """With start, end and padding, which have weight 1."""
    rest = [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (limit - len(row))
    ids = (tokenizer.bos_token_id, *(token for token, _ in row), *rest)
    return TokenChunk(ids, (1.0, *(weight for _, weight in row), *[1.0] * len(rest)))


class PromptEncoder:
    """Text states (1, L, D) of a prompt; L is 77 for each chunk. What it has encoded it remembers.

    grammar: none (as diffusers reads a prompt, cut at 77), a1111 (infer/text_encoding.py) or compel (damian0815/compel).
    """

    def __init__(self, pipe: StableDiffusionPipeline, grammar: str = "none") -> None:
        self.pipe = pipe
        self.read: Callable[[str], Tensor] = {"none": self.plain, "a1111": self.a1111, "compel": self.compel}[grammar]
        self.known: dict[str, TextStates] = {}

    def __call__(self, prompts: Sequence[str]) -> TextStates:
        """(B, L, D); shorter ones are padded with chunks of the empty prompt."""
        longest = max(self.states(prompt).shape[1] for prompt in prompts)
        return torch.cat([self.lengthened(self.states(prompt), longest) for prompt in prompts])

    def pair(self, prompts: Sequence[str], negative: str) -> tuple[TextStates, TextStates]:
        """The prompts' states and as many of the negative prompt, of one length."""
        both = self([*prompts, negative])
        return both[:-1], both[-1:].repeat(len(prompts), 1, 1)

    def length(self, prompt: str, negative: str) -> int:
        """L of a pair: pictures that are drawn together have the same, whoever their neighbours are."""
        return max(self.states(prompt).shape[1], self.states(negative).shape[1])

    def lengthened(self, states: TextStates, length: int) -> TextStates:
        missing = (length - states.shape[1]) // self.empty.shape[1]
        return torch.cat([states, *[self.empty] * missing], dim=1)

    @cached_property
    def empty(self) -> TextStates:
        return self.plain("")

    @torch.no_grad()
    def states(self, prompt: str) -> TextStates:
        if prompt not in self.known:
            self.known[prompt] = self.read(prompt)
        return self.known[prompt]

    def plain(self, prompt: str) -> TextStates:
        with torch.no_grad():
            return self.pipe.encode_prompt(prompt, self.pipe.device, 1, False)[0]

    def a1111(self, prompt: str) -> TextStates:
        tokenizer: Any = self.pipe.tokenizer
        return torch.cat([self.chunk(row) for row in tokenize_chunks(prompt, tokenizer)], dim=1)

    def chunk(self, row: TokenChunk) -> TextStates:
        """(1, 77, D): the states times the weights, see infer/text_encoding.py."""
        ids = torch.tensor([row.ids], device=self.pipe.device)
        states: TextStates = self.pipe.text_encoder(ids)[0]
        if not row.is_weighted:
            return states
        return states * torch.tensor(row.weights, device=states.device, dtype=states.dtype)[None, :, None]

    @cached_property
    def of_compel(self) -> Any:
        from compel import Compel

        dtype = self.pipe.text_encoder.dtype
        return Compel(
            tokenizer=self.pipe.tokenizer,
            text_encoder=self.pipe.text_encoder,
            truncate_long_prompts=False,
            dtype_for_device_getter=lambda device: dtype,
        )

    def compel(self, prompt: str) -> TextStates:
        """compel's states; an unreadable prompt is an InputError."""
        try:
            return self.of_compel(prompt)
        except Exception as error:  # its grammar raises parser errors of several libraries
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            what = f"{shorten(prompt)!r} is not understood by compel ({reason})"
            raise InputError(what, where="--prompt", fix="Mend it, or take --weighting none.") from error


@dataclass(frozen=True)
class TokenCount:
    """How much of a prompt is read: tokens without start and end, how many of them the text encoder reads at once, the
    words that are not read, and how many times it reads.
    """

    count: int
    limit: int
    lost: str = ""
    chunks: int = 1


def measure_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, grammar: str = "none"
) -> dict[str, TokenCount]:
    """The Tokens of every prompt, as its grammar reads it (see infer/text_encoding.py): only `none` leaves words out."""
    texts = list(dict.fromkeys(prompts))
    if grammar != "none":
        limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
        return {text: TokenCount(*count_all_tokens(text, tokenizer, grammar, limit)) for text in texts}
    report = count_tokens(texts, tokenizer)
    lost = {texts[int(cut.where.rpartition(" ")[2]) - 1]: cut.lost_text for cut in report.cut}
    counts = zip(texts, report.counts, strict=True)
    return {text: TokenCount(count, report.limit, lost.get(text, "")) for text, count in counts}


def count_all_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, grammar: str, limit: int
) -> tuple[int, int, str, int]:
    """The fields of Tokens for a grammar that reads all of a prompt, weights taken out."""
    if grammar == "compel":
        count = len(tokenizer(compel_text(text), add_special_tokens=False, verbose=False).input_ids)
        return count, limit, "", max(1, -(-count // limit))
    found = parse_emphasis(text)
    rows = list(split_rows(found, tokenizer, limit))
    return sum(map(len, rows)), limit, "", len(rows)


def compel_text(prompt: str) -> str:
    """The words of a prompt in compel's grammar, of all its parts."""
    from compel import Compel

    def words(node: Any) -> str:
        below = getattr(node, "prompts", None) or getattr(node, "children", None) or ()
        return getattr(node, "text", "") or " ".join(words(each) for each in below)

    return words(Compel.parse_prompt_string(prompt))


def truncated_prompts(tokens: dict[str, TokenCount]) -> list[InputError]:
    """One InputError, naming the words lost, for each prompt that is longer than the text encoder reads."""
    return [
        InputError(
            f"{shorten(prompt)!r} has {found.count} tokens, {found.limit} are read; lost: {found.lost!r}",
            where="--prompt",
            fix="Shorten it, or take --weighting a1111, which reads all of it.",
        )
        for prompt, found in tokens.items()
        if found.count > found.limit and found.chunks == 1
    ]
