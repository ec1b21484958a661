"""Asking a run to stop, once, twice, or by killing its launcher."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import InputError
from train import signals
from train.signals import StopRequest, launcher_pid, stop_requests, stop_with_launcher


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_nobody_asked() -> None:
    with stop_requests() as asked:
        assert not asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_says_so(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_requests() as asked:
        os.kill(os.getpid(), number)
        assert asked
    assert capfd.readouterr().out.count("stopping after this step; once more stops at once") == 1


def test_behind_a_launcher_the_second_signal_needs_an_address(capfd: pytest.CaptureFixture[str]) -> None:
    """accelerate's launcher ends at the terminal's first Ctrl-C, so the second one would reach nobody."""
    with stop_requests(os.getppid()) as asked:
        interrupt()
        assert asked
    assert f"stopping after this step; kill {os.getpid()} stops at once" in capfd.readouterr().out


def test_a_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.0)
    with stop_requests() as asked:
        interrupt()
        assert asked
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_the_launchers_echo_of_the_terminals_signal_is_no_second_one(capfd: pytest.CaptureFixture[str]) -> None:
    """torchrun sends SIGTERM to its children when the terminal has sent SIGINT to all."""
    with stop_requests() as asked:
        interrupt()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked
    assert capfd.readouterr().out.count("stopping") == 1


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dead_launcher_asks_too() -> None:
    """A child of a process that is killed: its parent is another one from then on."""
    child = (
        "import os, sys, time; from train.signals import StopRequest as Asked\n"
        "asked = Asked(os.getppid()); print(bool(asked), flush=True)\n"
        "for _ in range(600):\n"
        "    if asked: break\n"
        "    time.sleep(0.05)\n"
        "print(bool(asked), flush=True)\n"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "False"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout.readline().strip() == "True"
    process.stdout.close()


def test_only_a_launchers_child_watches_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by hand it may outlive its shell: nohup python train/finetune.py &"""
    for name in signals.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert launcher_pid() is None
    assert not StopRequest(None)
    monkeypatch.setattr(signals, "PARENT_PID", 1)
    stop_with_launcher()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launcher_pid() == 1
    with pytest.raises(KeyboardInterrupt):
        stop_with_launcher()
    monkeypatch.setattr(signals, "PARENT_PID", os.getppid())
    stop_with_launcher()


CHILD = """
from data.errors import InputError
from train.signals import check_process_count
try:
    check_process_count()
    print("goes on")
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("everywhere", "launchers", "refused"),
    [
        ({}, {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, True),
        ({}, {"ACCELERATE_MIXED_PRECISION": "no"}, False),  # one process was asked for
        ({"MASTER_ADDR": "127.0.0.1"}, {"ACCELERATE_MIXED_PRECISION": "no"}, False),  # a cluster's, not the launcher's
        ({}, {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}, False),
        ({}, {"MASTER_ADDR": "127.0.0.1"}, False),  # no launcher
    ],
)
def test_processes_that_accelerate_did_not_start_are_missed(
    everywhere: dict[str, str], launchers: dict[str, str], refused: bool
) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process, which would train a batch of half the size."""
    start = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], env=os.environ | "
    start += f"{launchers!r}, check=True)"
    known = ("MASTER_ADDR", "WORLD_SIZE", *signals.LAUNCHER_VARIABLES)
    plain = {name: value for name, value in os.environ.items() if name not in known}
    argv = [sys.executable, "-c", start, CHILD]
    done = subprocess.run(
        argv, env=plain | everywhere, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    expected = "accelerate was asked for several processes and started one" if refused else "goes on"
    assert expected in done.stdout


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_closed_terminal_asks_too_but_not_with_nohup(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with stop_requests() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert bool(asked) == (handler is signal.SIG_DFL)
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


UNREAD = """
import os, sys
from train.signals import survive_closed_output
with survive_closed_output():
    for number in range(5):
        print("a line", number, flush=True)
        print("another", file=sys.stderr)
        os.write(int(sys.argv[1]), b"and one past both")
    sys.stdout.write("not flushed")
open(sys.argv[2], "w").write("done")
"""


@pytest.mark.parametrize("number", [1, 2])
def test_a_reader_that_goes_ends_nothing(number: int, tmp_path: Path) -> None:
    """As with `| tee log`, which the same Ctrl-C ends."""
    reader, writer = os.pipe()
    os.close(reader)
    typed = [sys.executable, "-c", UNREAD, str(number), str(tmp_path / "end")]
    stdout, stderr = (writer, subprocess.STDOUT) if number == 1 else (subprocess.DEVNULL, writer)
    done = subprocess.run(typed, stdout=stdout, stderr=stderr, check=False)
    os.close(writer)
    assert done.returncode == 0 and (tmp_path / "end").read_text() == "done"


@pytest.mark.parametrize(
    ("token", "start"),
    [
        ("--mixed_precision", "accelerate launch"),
        ("--mixed-precision=bf16", "accelerate launch"),
        ("--nproc-per-node", "torchrun"),
    ],
)
def test_a_launchers_flag_behind_the_script_is_named(token: str, start: str) -> None:
    words = rf"^{token.partition('=')[0]}: this is a flag of {start}\. Put it before the script: {start} {token} "
    with pytest.raises(InputError, match=words):
        signals.check_launcher_flags(["--lr", "1e-4", token, "2"])
    signals.check_launcher_flags(["--export.precision", "bf16"])
