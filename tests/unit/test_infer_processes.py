"""Which process generates which images: by their position in the job alone."""

import pytest

from infer.generation import ProcessGroup


@pytest.mark.parametrize(("count", "together"), [(1, 1), (2, 1), (3, 4), (5, 2)])
def test_every_picture_is_in_one_share(count: int, together: int) -> None:
    shares = [ProcessGroup(rank, count).share(range(23), together) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(23))
    assert max(map(len, shares)) - min(map(len, shares)) <= together


def test_a_share_is_whole_micro_batches() -> None:
    assert ProcessGroup(1, 2).share(range(10), 4) == [4, 5, 6, 7]
    assert ProcessGroup(0, 2).share(range(10), 4) == [0, 1, 2, 3, 8, 9]


def test_one_process_agrees_with_itself_and_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert ProcessGroup().agree(lambda: 3) == 3
    ProcessGroup().wait()
    ProcessGroup().say("hello")
    ProcessGroup(1, 2).say("hello")
    assert capsys.readouterr().out == "hello\n"
