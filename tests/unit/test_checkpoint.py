"""A checkpoint is whole or it is not there; what is read back is what was saved, bit for bit."""

import errno
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.errors import InputError
from tests.small_runs import equal
from train import checkpoint, optim
from train.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    resume_checkpoint,
    save_checkpoint,
)
from train.config import OptimOptions

KINDS = sorted(optim.BUILDERS)
RUN = "the identity of this run"
OTHER = "7e57ab1e00"


class Trainee:
    """A convolution in the memory format of the trainer and an optimiser; step i has gradients of its own."""

    def __init__(self, kind: str) -> None:
        self.layer = nn.Conv2d(16, 32, 3)  # 4608 weights are kept in 8 bits, 32 biases are not
        self.layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            for index, parameter in enumerate(self.layer.parameters()):
                parameter.copy_(draw(parameter, 1000 + index))
        config = OptimOptions.model_validate({"kind": kind})
        self.optimizer = optim.build_optimizer(self.layer.parameters(), config)

    def train(self, *steps: int) -> "Trainee":
        for step in steps:
            optim.set_learning_rate(self.optimizer, 0.01 / (step + 1))
            for index, parameter in enumerate(self.layer.parameters()):
                parameter.grad = torch.empty_like(parameter).copy_(draw(parameter, 10 * step + index))
            self.optimizer.step()
        return self

    def kept(self, step: int) -> Checkpoint:
        weights = {name: tensor.detach().clone() for name, tensor in self.layer.named_parameters()}
        return Checkpoint(step, weights, self.optimizer.state_dict(), {"scaler": {"scale": 65536.0}})

    def restore(self, kept: Checkpoint) -> "Trainee":
        self.layer.load_state_dict(kept.weights)
        self.optimizer.load_state_dict(dict(kept.optimizer))
        return self


def draw(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def small(step: int) -> Checkpoint:
    return Checkpoint(step, {"w": torch.full((3,), float(step))}, {"state": {}, "param_groups": []}, {})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_saved(kind: str, tmp_path: Path) -> None:
    kept = Trainee(kind).train(0, 1, 2).kept(3)
    found = load_checkpoint(save_checkpoint(tmp_path, kept, RUN), RUN)
    assert found.step == 3
    assert found.extra == kept.extra
    assert equal(dict(found.weights), dict(kept.weights))
    assert equal(found.optimizer, kept.optimizer)
    assert kept.optimizer["state"].keys() == {0, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_bits_of_one_that_went_on(kind: str, tmp_path: Path) -> None:
    """Also for channels-last convolutions, whose moments a file holds in another order."""
    through = Trainee(kind).train(0, 1)
    path = save_checkpoint(tmp_path, through.kept(2), RUN)
    through.train(2, 3)
    resumed = Trainee(kind).restore(load_checkpoint(path, RUN)).train(2, 3)
    assert equal(dict(resumed.kept(4).weights), dict(through.kept(4).weights))
    assert equal(resumed.optimizer.state_dict(), through.optimizer.state_dict())


def test_without_the_moments_it_would_differ(tmp_path: Path) -> None:
    """The test above can fail."""
    through = Trainee("adamw").train(0, 1)
    kept = through.kept(2)
    fresh = Trainee("adamw")
    fresh.layer.load_state_dict(kept.weights)
    assert not torch.equal(fresh.train(2).layer.weight, through.train(2).layer.weight)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, Trainee("adamw-8bit").train(0).kept(1), RUN)
    files = {file.name for file in path.iterdir()}
    assert files == {"weights.safetensors", "optimizer.safetensors", "state.json"}
    json.loads((path / "state.json").read_text())
    assert path.name == "000001"


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, RUN) == (None, [])
    assert newest_checkpoint(tmp_path / "missing", RUN) == (None, [])


def change(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(edit(content))
        assert (path / name).read_bytes() != content

    return spoil


def remove_all(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


WEIGHTS, STATE = "weights.safetensors", "state.json"
flip_last_byte = change(WEIGHTS, lambda content: content[:-1] + bytes([content[-1] ^ 1]))
SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: (path / "optimizer.safetensors").unlink(), "torn checkpoint (No such file or directory)"),
    "a byte": (flip_last_byte, f"damaged checkpoint ({WEIGHTS} changed since it was written)"),
    "cut short": (change(WEIGHTS, lambda b: b[:-4]), f"damaged checkpoint ({WEIGHTS} changed since it was written)"),
    "a digit": (
        change(STATE, lambda b: b.replace(b'"step": 7', b'"step": 6')),
        f"damaged checkpoint ({STATE} changed since it was written)",
    ),
    "half": (change(STATE, lambda b: b[: len(b) // 2]), f"torn checkpoint ({STATE} cannot be read)"),
    "a list": (change(STATE, lambda b: b"[]"), f"torn checkpoint ({STATE} cannot be read)"),
    "no keys": (
        change(STATE, lambda b: json.dumps({"sha256": json.loads(b)["sha256"]}).encode()),
        f"torn checkpoint ({STATE} cannot be read)",
    ),
    "empty": (remove_all, "torn checkpoint (No such file or directory)"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_torn_one_is_named_and_skipped(case: str, tmp_path: Path) -> None:
    spoil, message = SPOILED[case]
    save_checkpoint(tmp_path, small(5), RUN)
    spoil(save_checkpoint(tmp_path, small(7), RUN))
    found, skipped = newest_checkpoint(tmp_path, RUN)
    assert found is not None and found.step == 5
    (error,) = skipped
    assert str(error).startswith(f"{tmp_path / '000007'}: {message}") and "\n" not in str(error)


def test_another_runs_is_moved_aside_and_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody copied it there, to go on from it: older, newer, and one that cannot be read, which is nobody's."""
    for step, run in ((2, OTHER), (5, RUN), (7, OTHER)):
        save_checkpoint(tmp_path, small(step), run)
    (tmp_path / "000009").mkdir()
    here = Accelerator(cpu=True)
    found = resume_checkpoint(here, tmp_path, RUN)
    assert found is not None and found.step == 5
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"skipped: {tmp_path / '000007'}: checkpoint of another run (its settings differ)"
    assert [line.partition(":")[0] for line in said[2:]] == [
        f"moved to {tmp_path / 'of-another-run' / name}" for name in ("000002-7e57ab1e", "000007-7e57ab1e")
    ]
    save_checkpoint(tmp_path, small(6), RUN)
    prune_checkpoints(tmp_path, 1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000006"]
    for step in (2, 7):
        assert load_checkpoint(tmp_path / "of-another-run" / f"{step:06d}-7e57ab1e", OTHER).step == step
    assert newest_checkpoint(tmp_path, RUN)[1] == []


def test_half_written_folders_do_not_count(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path, small(5), RUN)
    whole.rename(tmp_path / ".000009.x7f.part")
    (tmp_path / "notes").mkdir()
    (tmp_path / "12").write_text("a file")
    assert newest_checkpoint(tmp_path, RUN) == (None, [])


def test_the_newest_is_the_one_of_most_steps(tmp_path: Path) -> None:
    """Names have six digits; a million steps have seven."""
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, small(step), RUN)
    found, skipped = newest_checkpoint(tmp_path, RUN)
    assert found is not None
    assert (found.step, skipped) == (1_000_000, [])


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 10, 999_999, 1_000_000):
        save_checkpoint(tmp_path, small(step), RUN)
    save_checkpoint(tmp_path, small(30), RUN).rename(
        tmp_path / ".000030.x7f.part"
    )  # a process was killed while it saved
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, small(step), RUN)
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1000000", "999999"]


def test_a_damaged_later_one_never_outlives_a_whole_one(tmp_path: Path) -> None:
    """A run that fell back to step 5 saves step 6: pruning by number alone would keep the damaged 7."""
    save_checkpoint(tmp_path, small(5), RUN)
    flip_last_byte(save_checkpoint(tmp_path, small(7), RUN))
    save_checkpoint(tmp_path, small(6), RUN)
    prune_checkpoints(tmp_path, 1)
    found, skipped = newest_checkpoint(tmp_path, RUN)
    assert found is not None
    assert (found.step, skipped) == (6, [])


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, small(4), "another run")
    save_checkpoint(tmp_path, small(4), RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["000004"]
    assert load_checkpoint(tmp_path / "000004", RUN).step == 4


def test_a_full_disk_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, small(4), RUN)

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match=r"000008: cannot be written \(No space left on device\)"):
        save_checkpoint(tmp_path, small(8), RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["000004"]
    assert load_checkpoint(tmp_path / "000004", RUN).step == 4


@pytest.fixture
def files_of_64_kib() -> Iterator[None]:
    """The system refuses larger files: the library's own error for a disk that takes no more, not a made-up one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("files_of_64_kib")
def test_a_write_that_fails_inside_the_library(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, small(4), RUN)
    large = Checkpoint(8, {"w": torch.zeros(1 << 15)}, {"state": {}, "param_groups": []}, {})
    with pytest.raises(InputError, match="000008: cannot be written"):
        save_checkpoint(tmp_path, large, RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["000004"]


def test_prune_spares_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save_checkpoint(tmp_path, small(step), RUN)
    prune_checkpoints(tmp_path, 1, spare=[4, 99])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000004", "000008"]
