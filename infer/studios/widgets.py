"""Gradio, imported in a third of its time: `from infer.studios.widgets import gr`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data.loading import Deferred, defer, loading


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


@contextmanager
def later(module: str) -> Iterator[None]:
    """What is imported inside loads the module when it uses it; everybody else finds it as it is."""
    defer(module)
    try:
        yield
    finally:
        if isinstance(sys.modules.get(module), Deferred):
            del sys.modules[module]


with loading(), without_stubs(), later("pandas"):  # for tables, which the page has none of: 0.7 s
    import gradio as gr

__all__ = ["gr"]
