"""Libraries load when they are used; what looks absent is there for whoever imports it afterwards."""

import gc
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.loading import Deferred, defer, loading, unseen

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that says when it is loaded."""
    name = "package_of_a_test"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("import builtins\nbuiltins.loaded_by_a_test = True\nanswer = 42\n")
    (tmp_path / name / "inner.py").write_text("half = 21\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in (name, f"{name}.inner"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    yield name
    for module in (name, f"{name}.inner"):
        sys.modules.pop(module, None)


def test_a_deferred_module_is_loaded_by_its_first_use(package: str) -> None:
    import builtins

    builtins.__dict__.pop("loaded_by_a_test", None)
    defer(package)
    stand_in = __import__(package)
    assert isinstance(stand_in, Deferred) and not hasattr(stand_in, "__file__")
    assert importlib.import_module(package) is stand_in, "importing it again is no use of it"
    assert not hasattr(builtins, "loaded_by_a_test")
    assert stand_in.answer == 42 and hasattr(builtins, "loaded_by_a_test")
    assert not isinstance(sys.modules[package], Deferred)
    assert stand_in.answer == 42, "whoever holds the stand-in is served by the module"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = stand_in.nothing_of_the_kind
    del builtins.__dict__["loaded_by_a_test"]


def test_an_inner_module_of_a_deferred_package_loads(package: str) -> None:
    defer(package)
    assert importlib.import_module(f"{package}.inner").half == 21
    defer(package)
    assert not isinstance(sys.modules[package], Deferred), "what is loaded stays"


def test_an_unseen_package_is_back_afterwards(package: str) -> None:
    with unseen(package, "json"):
        assert importlib.util.find_spec(package) is None
        with pytest.raises(ImportError):
            importlib.import_module(package)
        assert importlib.util.find_spec("json") is None
    assert importlib.import_module(package).answer == 42
    assert importlib.import_module("json") is json


def test_the_collector_rests_while_libraries_load() -> None:
    assert gc.isenabled()
    with loading():
        assert not gc.isenabled()
        with loading():
            pass
        assert not gc.isenabled(), "as it was"
    assert gc.isenabled() and gc.get_freeze_count() > 0


SCRIPT = """
import sys
from infer import drawing
print(sorted({'diffusers', 'peft', 'transformers'} & sys.modules.keys()))
from infer import previews
from train import job, sweep
from train.adapters.lora import Lora
from tests.tiny import tiny_unet
Lora().attach(tiny_unet(8), seed=0)
heavy = ('bitsandbytes', 'torch._inductor.lowering', 'scipy.optimize', 'sklearn', 'matplotlib', 'tensorboard.compat')
print([name for name in heavy if name in sys.modules])
from diffusers import LMSDiscreteScheduler, UniPCMultistepScheduler
LMSDiscreteScheduler().set_timesteps(5)
UniPCMultistepScheduler(use_beta_sigmas=True).set_timesteps(5)
from bitsandbytes.optim import AdamW8bit
print('all there')
"""


def test_a_start_leaves_out_what_others_need_and_has_it_when_asked() -> None:
    """generate.py's mistakes wait for torch alone; the trainer's start for no compiler, no optimiser in 8 bits."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", "[]", "all there"], done.stdout + done.stderr
