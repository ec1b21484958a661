"""Who draws what: by place in the job alone, and threads that end when nobody waits for them."""

import threading

import pytest
import torch

from infer import crew
from infer.crew import Crew
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


def test_results_come_in_order_and_are_begun_ahead() -> None:
    stop, order = threading.Event(), []
    found = list(Crew(3).each(lambda item: (order.append(item), item * 2)[1], range(20), stop))
    assert found == [item * 2 for item in range(20)]
    assert stop.is_set()
    assert sorted(order) == list(range(20))


def test_what_one_raises_is_raised_in_its_place() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    stop = threading.Event()
    found = Crew(2).each(work, range(10), stop)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)
    assert stop.is_set()


def test_threads_inside_operations_are_as_many_as_said() -> None:
    before = torch.get_num_threads()
    found = list(Crew(2, 1).each(lambda _: torch.get_num_threads(), range(4), threading.Event()))
    assert found == [1] * 4
    assert torch.get_num_threads() == before


def test_a_small_network_is_drawn_side_by_side_and_a_large_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    small = torch.nn.Linear(4, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert crew.suited(small, torch.device("cpu")) == Crew(6, 1)
    assert crew.suited(small, torch.device("cuda")) == Crew(1, 6)
    monkeypatch.setattr(crew, "SMALL", 10)
    assert crew.suited(small, torch.device("cpu")) == Crew(1, 6)


def test_processes_of_one_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers set OMP_NUM_THREADS=1 when nothing is said."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert crew.threads_here() == 4
