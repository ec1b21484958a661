"""Gradio is imported fast, and nothing that is imported after it finds anything changed."""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALONE = """
import importlib.util, inspect, sys
from infer.studios.widgets import gr
assert "pandas" not in sys.modules
assert importlib.util.find_spec("pandas").origin.endswith("__init__.py")
assert inspect.getfile(gr.Blocks).endswith("blocks.py")
import pandas
assert pandas.DataFrame({"a": [1, 2]}).a.sum() == 3
assert gr.Dataframe().postprocess(pandas.DataFrame({"a": [1, 2]})).data == [[1], [2]]
"""


def test_what_was_left_out_is_there_when_it_is_asked_for() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, env=env, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()


def test_here_too() -> None:
    from infer.studios.widgets import gr

    assert importlib.util.find_spec("pandas") is not None
    assert inspect.getfile(gr.Blocks).endswith("blocks.py")
