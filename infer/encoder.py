"""Text states of prompts, each encoded once and alone, in the grammar that the job was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from data.errors import InputError
from infer import weighting
from infer.prompts import shorten
from infer.weighting import Chunk

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor

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
