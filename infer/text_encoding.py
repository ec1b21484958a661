"""Prompts as embeddings: A1111's weights, prompts longer than the text encoder's context, and compel's syntax.

    (x)  1.1 times   ((x))  1.21 times   (x:1.3)  1.3 times   [x]  1 / 1.1 times   \\( \\) \\[ \\]  literal
    BREAK  ends a chunk; otherwise a chunk ends after 75 tokens, or at a comma among the last 20 of them

A chunk's embeddings are multiplied by the weights of their tokens (start, end and padding have weight 1), as A1111's
"Emphasis: No norm" does. Its default then multiplies by the ratio of the means before and after; where the mean is all
but zero, as in the embedded base (0.001 at a spread of 1), that ratio is noise and may invert the prompt.
Source: AUTOMATIC1111, modules/prompt_parser.py (parse_prompt_attention), sd_hijack_clip.py (tokenize_line) and
sd_emphasis.py.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from data.captions import chunk_ids, count_tokens, split_chunks
from data.errors import InputError
from data.shapes import TextStates
from infer.prompts import shorten

BRACKET_FACTOR = 1.1
MAX_EMPHASIS = 100.0  # more is a typo
EMPHASIS_TOKEN = re.compile(
    r"\\[()\[\]\\]|\\|[(\[]|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[)\]]|[^\\()\[\]:]+|:", flags=re.DOTALL
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")
WeightedToken = tuple[int, float]  # a token's id and its weight


@dataclass(frozen=True)
class WeightedText:
    """Text of one weight. starts_chunk: BREAK stands before it."""

    text: str
    weight: float = 1.0
    starts_chunk: bool = False


def parse_emphasis(prompt: str) -> list[WeightedText]:
    """A prompt in pieces of one weight. Of unbalanced brackets, a closing one is text, an opening one never closes."""
    pieces: list[WeightedText] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        pieces[start:] = [replace(piece, weight=piece.weight * factor) for piece in pieces[start:]]

    for token in EMPHASIS_TOKEN.finditer(prompt):
        text, weight = token.group(), token["weight"]
        if text in opened:
            opened[text].append(len(pieces))
        elif (weight is not None or text == ")") and opened["("]:
            multiply(opened["("].pop(), BRACKET_FACTOR if weight is None else float(weight))
        elif text == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / BRACKET_FACTOR)
        elif text.startswith("\\"):
            pieces.append(WeightedText(text[1:] or text))
        else:
            pieces += [WeightedText(part, 1.0, number > 0) for number, part in enumerate(BREAK.split(text))]
    for start in opened["("]:
        multiply(start, BRACKET_FACTOR)
    for start in opened["["]:
        multiply(start, 1 / BRACKET_FACTOR)
    return merge_pieces(pieces) or [WeightedText("")]


def merge_pieces(pieces: Sequence[WeightedText]) -> list[WeightedText]:
    """Neighbours of one weight become one piece."""
    merged: list[WeightedText] = []
    for piece in pieces:
        if merged and not piece.starts_chunk and merged[-1].weight == piece.weight:
            merged[-1] = replace(merged[-1], text=merged[-1].text + piece.text)
        else:
            merged.append(piece)
    return merged


def is_weighted(prompt: str) -> bool:
    return any(piece.weight != 1 for piece in parse_emphasis(prompt))


def tokenize_chunks(prompt: str, tokenizer: Any) -> Iterator[list[WeightedToken]]:
    """The tokens of a prompt in chunks of at most 75 for CLIP, without start, end and padding."""
    sections: list[list[WeightedToken]] = [[]]  # what BREAK divides
    for piece in parse_emphasis(prompt):
        sections += [[]] if piece.starts_chunk else []
        ids = tokenizer(piece.text, add_special_tokens=False, verbose=False).input_ids
        sections[-1] += [(token, piece.weight) for token in ids]
    for section in sections:
        yield from split_chunks(section, tokenizer, lambda token: token[0])


class PromptEncoder:
    """Embeddings (1, L, D) of prompts, each encoded alone and once; L is 77 for each chunk.

    grammar: none (as diffusers reads a prompt, cut at 77), a1111 (above) or compel (damian0815/compel).
    """

    def __init__(self, pipe: Any, grammar: str = "none") -> None:
        self.pipe = pipe
        self.read = {"none": self.plain, "a1111": self.a1111, "compel": self.compel}[grammar]
        self.encoded: dict[str, TextStates] = {}

    def __call__(self, prompts: Sequence[str]) -> TextStates:
        """(B, L, D); shorter ones are padded with chunks of the empty prompt."""
        embeds = [self.encode(prompt) for prompt in prompts]
        longest = max(each.shape[1] for each in embeds)
        return torch.cat([
            torch.cat([each, *[self.empty] * ((longest - each.shape[1]) // self.empty.shape[1])], dim=1)
            for each in embeds
        ])  # fmt: skip

    def pair(self, prompts: Sequence[str], negative: str) -> tuple[TextStates, TextStates]:
        """The prompts' embeddings and as many of the negative prompt, of one length."""
        both = self([*prompts, negative])
        return both[:-1], both[-1:].repeat(len(prompts), 1, 1)

    def length(self, prompt: str, negative: str) -> int:
        """L of a pair; images in one micro-batch have the same, so that none depends on its neighbours."""
        return max(self.encode(prompt).shape[1], self.encode(negative).shape[1])

    @cached_property
    def empty(self) -> TextStates:
        return self.plain("")

    @torch.no_grad()
    def encode(self, prompt: str) -> TextStates:
        if prompt not in self.encoded:
            self.encoded[prompt] = self.read(prompt)
        return self.encoded[prompt]

    @torch.no_grad()
    def plain(self, prompt: str) -> TextStates:
        return self.pipe.encode_prompt(prompt, self.pipe.device, 1, False)[0]

    def a1111(self, prompt: str) -> TextStates:
        return torch.cat([self.encode_chunk(chunk) for chunk in tokenize_chunks(prompt, self.pipe.tokenizer)], dim=1)

    def encode_chunk(self, chunk: Sequence[WeightedToken]) -> TextStates:
        """(1, 77, D): the embeddings times the weights."""
        ids = torch.tensor([chunk_ids([token for token, _ in chunk], self.pipe.tokenizer)])
        weights = torch.ones(*ids.shape, 1)
        weights[0, 1 : 1 + len(chunk), 0] = torch.tensor([weight for _, weight in chunk])
        embeds: TextStates = self.pipe.text_encoder(ids.to(self.pipe.device))[0]
        return embeds if (weights == 1).all() else embeds * weights.to(embeds)

    def compel(self, prompt: str) -> TextStates:
        from compel import Compel

        networks = {"tokenizer": self.pipe.tokenizer, "text_encoder": self.pipe.text_encoder}
        dtype = self.pipe.text_encoder.dtype
        try:
            encode: Any = Compel(**networks, truncate_long_prompts=False, dtype_for_device_getter=lambda device: dtype)
            return encode(prompt)
        except Exception as error:  # its grammar raises the parser errors of several libraries
            raise compel_error(prompt, error) from error


# ---- how much of a prompt is read


@dataclass(frozen=True)
class TokenCount:
    """Tokens of a prompt without start and end, how many fit into a chunk, the words that are cut, and the chunks."""

    count: int
    limit: int
    lost: str = ""
    chunks: int = 1


def measure_prompts(prompts: Sequence[str], tokenizer: Any, grammar: str = "none") -> dict[str, TokenCount]:
    """The TokenCount of every prompt; only the grammar `none` cuts words off."""
    texts = list(dict.fromkeys(prompts))
    limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    if grammar == "a1111":
        chunks = {text: [len(chunk) for chunk in tokenize_chunks(text, tokenizer)] for text in texts}
        return {text: TokenCount(sum(lengths), limit, "", len(lengths)) for text, lengths in chunks.items()}
    if grammar == "compel":
        words = [tokenizer(compel_text(text), add_special_tokens=False, verbose=False) for text in texts]
        counts = [len(each.input_ids) for each in words]
        return {text: TokenCount(n, limit, "", max(1, -(-n // limit))) for text, n in zip(texts, counts, strict=True)}
    report = count_tokens(texts, tokenizer)
    cut = iter(report.cut)  # in order, those over the limit
    lost = [next(cut).lost_text if count > limit else "" for count in report.counts]
    return {text: TokenCount(n, limit, end) for text, n, end in zip(texts, report.counts, lost, strict=True)}


def truncated_prompts(tokens: dict[str, TokenCount]) -> list[InputError]:
    """An InputError naming the words that are lost, for each prompt that is longer than the text encoder's context."""
    return [
        InputError(
            f"{shorten(prompt)!r} has {found.count} tokens, only {found.limit} are used; lost: {found.lost!r}",
            where="--prompt",
            fix="Shorten it, or use --weighting a1111, which reads prompts of any length.",
        )
        for prompt, found in tokens.items()
        if found.count > found.limit and found.chunks == 1
    ]


def check_grammar(texts: Sequence[str], grammar: str) -> list[InputError]:
    """An InputError for each prompt with a weight that nobody means, or that compel cannot parse."""
    errors: list[InputError] = []
    for text in dict.fromkeys(texts):
        if grammar == "a1111" and not all(abs(piece.weight) <= MAX_EMPHASIS for piece in parse_emphasis(text)):
            allowed = f"-{MAX_EMPHASIS:g} to {MAX_EMPHASIS:g}"
            errors.append(InputError(f"a weight in {shorten(text)!r}", where="--prompt", allowed=allowed))
        elif grammar == "compel":
            try:
                compel_text(text)
            except Exception as error:  # its grammar raises the parser errors of several libraries
                errors.append(compel_error(text, error))
    return errors


def compel_text(prompt: str) -> str:
    """The words of a prompt in compel's grammar."""
    from compel import Compel

    def words(node: Any) -> str:
        below = getattr(node, "prompts", None) or getattr(node, "children", None) or ()
        return getattr(node, "text", "") or " ".join(words(each) for each in below)

    return words(Compel.parse_prompt_string(prompt))


def compel_error(prompt: str, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    what = f"compel cannot parse {shorten(prompt)!r} ({reason})"
    return InputError(what, where="--prompt", fix="Fix it, or use --weighting none.")
