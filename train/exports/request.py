"""What an export is told: the options, and the facts that go into a file's header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from train.exports.options import Export

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Request:
    """options: which files. facts: kohya's ss_* and Stability's modelspec.* keys that are known of the run."""

    options: Export = field(default_factory=Export)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.options.precision]
