"""Importing Gradio leaves `inspect` as it was."""

import inspect


def test_inspect_is_unchanged_after_the_import() -> None:
    from infer.studios.widgets import gr

    assert inspect.getfile(gr.Blocks).endswith("blocks.py")
