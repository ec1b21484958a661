"""Options of studio.py."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from data.cli import Options

LOOPBACK = "127.0.0.1"
OUTPUTS = Path("outputs")  # as in infer/output.py, which imports torch
SHAPES = {"Square": "1:1", "Landscape": "3:2", "Portrait": "2:3", "Wide": "16:9", "Tall": "9:16"}


class StudioOptions(Options):
    """Options of studio.py."""

    host: str = LOOPBACK
    """address to listen on; any address other than this machine's own requires a password"""
    port: int = Field(default=7860, ge=0, le=65535)
    """port to listen on; 0 picks a free one and prints it"""
    password: str = ""
    """password for browsers and API clients, with any user name; other users of this machine can see it in the process
    list, so --password-file is safer"""
    password_file: Path | None = None
    """file with the password in its first line; only its owner may be able to read it"""
    model: str | None = None
    """model selected at the start: pocket, a hub id, a folder, a .safetensors file or a run; default: the newest
    finished run, else pocket"""
    tokenizer: str | None = None
    """hub id or folder of the tokenizer, for a single file that does not include one"""
    judge: Path | None = None
    """folder of the CLIP model that searches the gallery; default: the embedded scorer"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """precision; default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; default: a GPU if there is one"""
    open: bool = False
    """open the page in the browser"""

    @model_validator(mode="after")
    def one_password(self) -> StudioOptions:
        if self.password and self.password_file:
            raise ValueError("--password and --password-file cannot be combined")
        return self

    @property
    def is_private(self) -> bool:
        """Whether only programs on this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
