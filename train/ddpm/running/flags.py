"""The flag behind a mistake that was found deeper in, where flags are not known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from data.errors import InputError


@contextmanager
def about(flag: str) -> Iterator[None]:
    """What is raised inside is a mistake in this flag, unless it says where it is."""
    try:
        yield
    except InputError as error:
        where = flag if error.where is None else error.where
        raise InputError(error.what, where=where, allowed=error.allowed, fix=error.fix) from None
