"""The options of studio.py. Nothing heavy is imported here."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from data.errors import InputError
from data.options import Options

LOOPBACK = "127.0.0.1"
FEWEST_LETTERS = 8  # of a password: it stands between everybody in the building and this machine


class StudioOptions(Options):
    """What studio.py can be told."""

    host: str = LOOPBACK
    """address to listen on; anything but this machine itself asks for a password"""
    port: int = Field(default=7860, ge=0, le=65535)
    """0 takes any free one and prints it"""
    password: str = ""
    """what browsers and API clients must give, with any user name; others on this machine can see it among the running
    programs, so better:"""
    password_file: Path | None = None
    """a file that nobody else can read, with the password in its first line"""
    model: str | None = None
    """what is drawn with at first: pocket, a hub id, a folder, a .safetensors file or a run; default: the newest
    finished run, else pocket"""
    tokenizer: str | None = None
    """hub id or folder of the tokenizer, for a single file that brings none"""
    judge: Path | None = None
    """folder of a CLIP model that compares words and pictures in the gallery; default: the embedded scorer"""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """default: fp32 on the CPU, fp16 on a GPU"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default: a GPU if there is one"""
    open: bool = False
    """open the page in the browser"""

    @model_validator(mode="after")
    def one_password(self) -> StudioOptions:
        if self.password and self.password_file:
            raise ValueError("--password and --password-file both say the password: give one")
        return self

    @property
    def is_private(self) -> bool:
        """Whether only programs of this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def password_of(options: StudioOptions) -> str:
    """The password, empty if none is wanted. Raises InputError: missing where others can come, too short, or open."""
    found = read(options.password_file) if options.password_file else options.password
    where = "--password-file" if options.password_file else "--password"
    if found and len(found) < FEWEST_LETTERS:
        raise InputError(f"has {len(found)} letters", where=where, allowed=f"{FEWEST_LETTERS} or more")
    if not found and (options.password_file or not options.is_private):
        what = "is empty" if options.password_file else f"others can reach {options.host}, and there is no password"
        raise InputError(what, where=where if options.password_file else "--host", fix="Give --password-file FILE.")
    return found


def read(file: Path) -> str:
    """The first line of a file that only its owner can read. Raises InputError."""
    try:
        if file.stat().st_mode & 0o077:
            fix = f"chmod 600 {file}"
            raise InputError("others can read it", where=f"--password-file {file}", fix=fix)
        return (file.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"cannot be read ({why})", where=f"--password-file {file}") from None
