"""Text states of prompts, each encoded once and alone, in the grammar that the job was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from data.captions import count_tokens
from data.errors import InputError
from infer import weighting
from infer.prompts import shorten
from infer.weighting import Chunk

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from data.shapes import TextStates


class Encoder:
    """Text states (1, L, D) of a prompt; L is 77 for each chunk. What it has encoded it remembers.

    grammar: none (as diffusers reads a prompt, cut at 77), a1111 (infer/weighting.py) or compel (damian0815/compel).
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
        return torch.cat([self.chunk(row) for row in weighting.chunks(prompt, tokenizer)], dim=1)

    def chunk(self, row: Chunk) -> TextStates:
        """(1, 77, D): the states times the weights, see infer/weighting.py."""
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
class Tokens:
    """How much of a prompt is read: tokens without start and end, how many of them the text encoder reads at once, the
    words that are not read, and how many times it reads.
    """

    count: int
    limit: int
    lost: str = ""
    chunks: int = 1


def measure(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, grammar: str = "none") -> dict[str, Tokens]:
    """The Tokens of every prompt, as its grammar reads it (see infer/encoder.py): only `none` leaves words out."""
    texts = list(dict.fromkeys(prompts))
    if grammar != "none":
        limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
        return {text: Tokens(*counted(text, tokenizer, grammar, limit)) for text in texts}
    report = count_tokens(texts, tokenizer)
    lost = {texts[int(cut.where.rpartition(" ")[2]) - 1]: cut.lost_text for cut in report.cut}
    counts = zip(texts, report.counts, strict=True)
    return {text: Tokens(count, report.limit, lost.get(text, "")) for text, count in counts}


def counted(text: str, tokenizer: PreTrainedTokenizerBase, grammar: str, limit: int) -> tuple[int, int, str, int]:
    """The fields of Tokens for a grammar that reads all of a prompt, weights taken out."""
    if grammar == "compel":
        count = len(tokenizer(compel_text(text), add_special_tokens=False, verbose=False).input_ids)
        return count, limit, "", max(1, -(-count // limit))
    found = weighting.fragments(text)
    rows = list(weighting.rows(found, tokenizer, limit))
    return sum(map(len, rows)), limit, "", len(rows)


def compel_text(prompt: str) -> str:
    """The words of a prompt in compel's grammar, of all its parts."""
    from compel import Compel

    def words(node: Any) -> str:
        below = getattr(node, "prompts", None) or getattr(node, "children", None) or ()
        return getattr(node, "text", "") or " ".join(words(each) for each in below)

    return words(Compel.parse_prompt_string(prompt))


def cut_prompts(tokens: dict[str, Tokens]) -> list[InputError]:
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
