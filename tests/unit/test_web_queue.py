"""The job queue: in order, one at a time, none lost, each can be stopped, and a failure never affects the next job."""

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from data.errors import InputError
from infer.config import GenerateOptions
from infer.web.queue import Job, JobQueue, JobStopped

TIMEOUT = 20.0


class FakeWorker:
    """Runs a job when it is released; the prompt chooses what happens."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        self.started, self.release = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, job: Job) -> None:
        self.started.release()
        self.release.acquire()
        job.raise_if_stopped()
        prompt = job.options.prompt[0]
        if prompt == "wrong":
            raise InputError("that is not possible", where="--prompt")
        if prompt == "broken":
            raise ZeroDivisionError
        self.finished.append(prompt)


def options(prompt: str) -> GenerateOptions:
    return GenerateOptions(prompt=(prompt,))


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def queue(worker: FakeWorker) -> Iterator[JobQueue]:
    found = JobQueue(worker, max_waiting=4)
    found.start()
    yield found
    for _ in range(10):
        worker.release.release()
    found.close()
    assert not found.thread.is_alive()


def test_jobs_run_in_order_one_at_a_time(queue: JobQueue, worker: FakeWorker) -> None:
    first = queue.submit(options("one"))
    assert worker.started.acquire(timeout=TIMEOUT)
    second, third = queue.submit(options("two")), queue.submit(options("three"))
    assert (first.state, second.state) == ("running", "waiting")
    assert [queue.position(job) for job in (first, second, third)] == [0, 1, 2]
    for _ in range(3):
        worker.release.release()
    assert third.finished.wait(TIMEOUT)
    assert worker.finished == ["one", "two", "three"]
    assert {job.state for job in (first, second, third)} == {"done"} and third.progress == 1.0


def test_stop_removes_a_waiting_job_and_ends_a_running_one_at_its_next_step(
    queue: JobQueue, worker: FakeWorker
) -> None:
    running, waiting, after = (queue.submit(options(word)) for word in ("running", "waiting", "after"))
    assert worker.started.acquire(timeout=TIMEOUT)
    queue.stop(waiting)
    assert waiting.state == "stopped" and waiting.finished.is_set()
    queue.stop(running)
    assert running.state == "running"
    for _ in range(2):
        worker.release.release()
    assert after.finished.wait(TIMEOUT)
    assert (running.state, worker.finished) == ("stopped", ["after"])
    with pytest.raises(JobStopped):
        running.raise_if_stopped()


def test_failures_are_reported_and_the_next_job_runs(
    queue: JobQueue, worker: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, broken, fine = (queue.submit(options(word)) for word in ("wrong", "broken", "fine"))
    for _ in range(3):
        worker.release.release()
    assert fine.finished.wait(TIMEOUT)
    assert (wrong.state, wrong.error) == ("failed", "--prompt: that is not possible")
    assert broken.state == "failed" and "ZeroDivisionError" in broken.error
    assert "Traceback" in capsys.readouterr().err
    assert worker.finished == ["fine"]


def test_a_full_queue_rejects_jobs(queue: JobQueue, worker: FakeWorker) -> None:
    queue.submit(options("first"))
    assert worker.started.acquire(timeout=TIMEOUT)
    jobs = [queue.submit(options("more")) for _ in range(4)]
    with pytest.raises(InputError):
        queue.submit(options("one too many"))
    queue.stop(jobs[0])
    assert queue.submit(options("now")).state == "waiting"


def test_close_stops_everything(worker: FakeWorker) -> None:
    queue = JobQueue(worker)
    queue.start()
    running, waiting = queue.submit(options("running")), queue.submit(options("waiting"))
    assert worker.started.acquire(timeout=TIMEOUT)
    threading.Timer(0.05, worker.release.release).start()
    queue.close()
    assert (running.state, waiting.state, queue.thread.is_alive()) == ("stopped", "stopped", False)


def test_a_job_that_nobody_holds_is_freed(queue: JobQueue, worker: FakeWorker) -> None:
    job = queue.submit(options("gone"))
    key, reference = job.key, weakref.ref(job)
    assert queue.jobs[key] is job
    worker.release.release()
    assert job.finished.wait(TIMEOUT)
    after = queue.submit(options("after"))
    worker.release.release()
    assert after.finished.wait(TIMEOUT)
    del job
    gc.collect()
    assert reference() is None and key not in queue.jobs


def test_progress_and_seconds_left(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(options("x"), started=100.0)
    monkeypatch.setattr("time.monotonic", lambda: 103.0)
    assert (job.progress, job.seconds_left) == (0.0, 0.0)
    job.total, job.calls = 40, 10
    assert (job.progress, job.seconds_left) == (0.25, pytest.approx(9.0))
    job.state = "done"
    assert job.progress == 1.0
