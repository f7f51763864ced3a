"""One background job: its reports, its cancellation, and how it ends."""

import subprocess
import sys
import threading

import pytest

from engine.errors import RequestError
from engine.jobs import Job, JobCancelled


def test_reports_are_recorded_and_announced() -> None:
    job = Job("counting")
    seen: list[tuple[str, int, int]] = []
    job.on_change = lambda: seen.append((job.step, job.done, job.total))
    job.checkpoint("loading")
    job.checkpoint()
    job.progress(1, 2)
    job.tell("ranking", 3, 4)
    assert seen == [("loading", 0, 0), ("loading", 1, 2), ("ranking", 3, 4)]


@pytest.mark.parametrize(
    "report",
    [
        lambda job: job.checkpoint("next"),
        lambda job: job.progress(2, 2),
        lambda job: job.tell("next", 2, 2),
    ],
)
def test_a_cancelled_job_stops_at_its_next_report(report: object) -> None:
    job = Job("counting")
    job.tell("counting", 1, 2)
    job.cancel()
    with pytest.raises(JobCancelled):
        report(job)  # type: ignore[operator]
    assert (job.step, job.done) == ("counting", 1)


def test_a_waiting_job_is_cancelled_at_once_and_never_runs() -> None:
    job = Job("counting")
    job.cancel()
    assert (job.status, job.finished) == ("cancelled", True)
    job.run(lambda _job: pytest.fail("it ran"), str)
    assert (job.status, job.result) == ("cancelled", None)


def test_a_running_job_is_cancelled_by_its_next_report() -> None:
    job, started = Job("counting"), threading.Event()

    def work(running: Job) -> None:
        started.set()
        while True:
            running.progress(running.done + 1, 0)

    thread = threading.Thread(target=job.run, args=(work, str))
    thread.start()
    assert started.wait(10)
    assert (job.status, job.finished) == ("running", False)
    job.cancel()
    thread.join(10)
    assert (job.status, job.error) == ("cancelled", "")


def test_the_result_is_what_the_work_returns() -> None:
    job = Job("counting")
    job.run(lambda running: (running.status, running.step), str)
    assert (job.status, job.result, job.error) == ("done", ("running", "starting"), "")


@pytest.mark.parametrize("error", [RequestError("no such layer"), KeyError("a bug")])
def test_a_failure_is_explained(error: Exception) -> None:
    def work(_job: Job) -> None:
        raise error

    seen: list[Exception] = []
    job = Job("counting")
    job.run(work, lambda raised: seen.append(raised) or "in words")  # type: ignore[func-returns-value]
    assert (job.status, job.error, job.result, seen) == ("failed", "in words", None, [error])


def test_it_needs_no_torch_no_screen_and_no_protocol() -> None:
    program = "import engine.jobs, sys; print(sorted({'torch', 'textual', 'mcp'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
