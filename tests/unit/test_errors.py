"""What people read when something is wrong: the texts, the exit codes, and that no traceback gets out."""

import subprocess
import sys

import pytest

from data.errors import InputError, InputErrors, check_choice, printable, raise_all, run_entry


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("no pictures"), "no pictures"),
        (InputError("no pictures", where="a/b"), "a/b: no pictures"),
        (
            InputError("rank -1", where="--adapter.rank", allowed="1 or more"),
            "--adapter.rank: rank -1; allowed: 1 or more",
        ),
        (InputError("gone", where="m.jsonl:3", fix="Put it back."), "m.jsonl:3: gone. Put it back."),
        (InputError("x", where=0, allowed=0, fix=""), "0: x; allowed: 0"),
    ],
)
def test_the_text_says_where_what_allowed_and_what_to_do(error: InputError, text: str) -> None:
    assert str(error) == text


def test_all_problems_are_raised_at_once() -> None:
    raise_all([])
    alone = InputError("one")
    with pytest.raises(InputError) as caught:
        raise_all([alone])
    assert caught.value is alone
    with pytest.raises(InputErrors) as several:
        raise_all([alone, InputError("two", where="f:2")])
    assert str(several.value) == "one\nf:2: two"
    assert several.value.errors[0] is alone


def test_choose_returns_what_is_allowed_and_suggests_what_is_near() -> None:
    assert check_choice("lora", (kind for kind in ["full", "lora"]), what="adapter") == "lora"
    with pytest.raises(InputError) as caught:
        check_choice("loar", ["full", "lora"], what="adapter", where="--adapter.kind")
    assert str(caught.value) == "--adapter.kind: unknown adapter 'loar', did you mean 'lora'?; allowed: full, lora"
    with pytest.raises(InputError, match=r"^unknown adapter 'zzz'; allowed: full, lora$"):
        check_choice("zzz", ["full", "lora"], what="adapter")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("água com gás.png", "água com gás.png"),
        ("水 'q' \"d\".png", "水 'q' \"d\".png"),
        ("a\nerror: forged", "a\\nerror: forged"),
        ("tab\there", "tab\\there"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("right\u202eto-left", "right\\u202eto-left"),  # would turn the rest of the line around
        (b"caf\xe9".decode(errors="surrogateescape"), "caf\\udce9"),  # undecodable: printing it raw would raise
    ],
)
def test_a_name_stays_on_its_line(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert str(InputError("x", where=name)).splitlines() == [f"{shown}: x"]
    assert shown.encode()


# ---------------------------------------------------------------- run_entry


def outcome(main: object, capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as left:
        run_entry(main)  # pyright: ignore[reportArgumentType]
    printed = capsys.readouterr()
    return left.value.code, printed.out, printed.err


def raising(error: BaseException) -> object:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_answer_is_the_exit_code(answer: int | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(lambda: answer, capsys) == (code, "", "")


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError("no such file", where="a\nb.yaml", fix="Check the name.")
    assert outcome(raising(error), capsys) == (2, "", "error: a\\nb.yaml: no such file. Check the name.\n")


def test_several_mistakes_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    errors = InputErrors([InputError("one"), InputError("two", where="f:2")])
    assert outcome(raising(errors), capsys) == (2, "", "error: one\nerror: f:2: two\n")


def test_an_interrupt_is_130_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = outcome(raising(KeyboardInterrupt()), capsys)
    assert (code, out, err.strip()) == (130, "", "stopped.")


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_entry(lambda: 1 // 0)
    with pytest.raises(AssertionError):
        run_entry(raising(AssertionError()))  # pyright: ignore[reportArgumentType]


def run(code: str) -> subprocess.Popen[str]:
    lines = f"from data.errors import InputError, run_entry\ndef main():\n    {code}\nrun_entry(main)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", lines], **pipes)  # pyright: ignore


def test_a_reader_that_leaves_early_is_no_mistake() -> None:
    process = run("[print('line', i) for i in range(200_000)]")  # more than a pipe holds
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 0
