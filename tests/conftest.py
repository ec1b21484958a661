"""What every test gets: a cache of its own, one CPU thread, and no way out to the network."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from accelerate import Accelerator

# Set before any test imports a library that reads them; child processes inherit them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONUNBUFFERED"] = "1"

ROOT = Path(__file__).parent.parent
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Caches of this test session, shared by its workers; the user's own are neither used nor changed.

    What is kept is keyed by content, so no test can tell: counts of operations alone are 3 CPU seconds a worker.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    before = os.environ.get("ATELIER_CACHE")
    os.environ["ATELIER_CACHE"] = str(folder)
    yield folder
    os.environ.pop("ATELIER_CACHE")
    if before is not None:
        os.environ["ATELIER_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two test workers on two cores: more threads would only wait for one another."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches out fails, whatever the machine would have answered."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its precision in a state shared by all Accelerators of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def bf16_on_cpu(fresh_accelerate: None) -> "Accelerator":
    """bf16 autocast as accelerate sets it up."""
    from accelerate import Accelerator

    return Accelerator(cpu=True, mixed_precision="bf16")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Stable Diffusion v1-shaped model in diffusers layout."""
    from tests.tiny import tiny_pipeline

    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioned folder of twelve creatures."""
    from data import sample_set

    folder = tmp_path_factory.mktemp("creatures") / "twelve"
    sample_set.write_sample_folder(folder, count=12, size=32)
    return folder
