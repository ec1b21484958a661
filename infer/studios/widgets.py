"""Gradio, imported without rewriting its type stubs: `from infer.studios.widgets import gr`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_stubs() -> Iterator[None]:
    """Gradio rewrites a type stub beside each of its components whenever it is imported: 12 of the 20 s that a profiled
    import took (2026-11-21), and files in a folder that may not be ours. A class without a source file has none.
    """
    real = inspect.getfile

    def absent(thing: Any) -> str:
        if inspect.isclass(thing) and thing.__module__.startswith("gradio."):
            raise OSError("no stub is wanted")
        return real(thing)

    inspect.getfile = absent
    try:
        yield
    finally:
        inspect.getfile = real


with without_stubs():
    import gradio as gr

__all__ = ["gr"]
