"""Which process generates which images: by their position in the job alone."""

import pytest

from infer.processes import Processes


@pytest.mark.parametrize(("count", "together"), [(1, 1), (2, 1), (3, 4), (5, 2)])
def test_every_picture_is_in_one_share(count: int, together: int) -> None:
    shares = [Processes(rank, count).share(range(23), together) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(23))
    assert max(map(len, shares)) - min(map(len, shares)) <= together


def test_a_share_is_whole_micro_batches() -> None:
    assert Processes(1, 2).share(range(10), 4) == [4, 5, 6, 7]
    assert Processes(0, 2).share(range(10), 4) == [0, 1, 2, 3, 8, 9]


def test_one_process_agrees_with_itself_and_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert Processes().agree(lambda: 3) == 3
    Processes().wait()
    Processes().say("hello")
    Processes(1, 2).say("hello")
    assert capsys.readouterr().out == "hello\n"
