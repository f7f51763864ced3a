"""The server's job queue: jobs outlive their call and are found by a handle."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from engine.errors import LayerscopeError, RequestError, nearest
from engine.jobs import Job
from server.errors import cut, explain_bug, explain_shortage

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

log = logging.getLogger("server")

_KEPT = 200  # jobs
_MOST_UNFINISHED = 100


@dataclass(eq=False, kw_only=True)
class ServerJob(Job):
    """A job that clients find by its handle. It counts prompts, in every step.

    Attributes:
        id: The handle.
        capture: Name of the capture that the job saves; empty if it saves none.
        estimate: The estimated cost of a capture, once it is known.
    """

    id: str
    step: str = "waiting for its turn"
    capture: str = ""
    estimate: Any = None

    def checkpoint(self, step: str = "") -> None:
        """Report that a step begins; the count of prompts stays."""
        done, total = self.done, self.total
        super().checkpoint(step)
        self.done, self.total = done, total

    def count(self, step: str, done: int, total: int) -> None:
        """Report a step and how many prompts are done.

        Raises:
            JobCancelled: The job has been cancelled.
        """
        self.checkpoint(step)
        self.progress(done, total)

    def progress(self, done: int, total: int) -> None:
        """Report how many prompts are done; the count never exceeds the total, nor goes back.

        Raises:
            JobCancelled: The job has been cancelled.
        """
        super().progress(max(self.done, min(done, total)), max(self.total, total))

    def tell(self, step: str, done: int, total: int) -> None:
        """Report a step other than running prompts, and keep the count of prompts.

        The progress of the step becomes text.

        Raises:
            JobCancelled: The job has been cancelled.
        """
        self.checkpoint(f"{step}: {done} of {total}" if total else f"{step}: {done}")


class Jobs:
    """The jobs of a server, run one at a time.

    They share the models and the processor.

    Args:
        tasks: The task group that waits for the threads of the jobs.
        at_work: Held while a job runs, so that the process does not end meanwhile.
        shared: Whether several clients share the server: no error then names a job, and handles are hard to guess.
    """

    def __init__(self, tasks: TaskGroup, at_work: threading.Lock, *, shared: bool = False) -> None:
        self._tasks = tasks
        self._at_work = at_work
        self._shared = shared
        self._turn = anyio.CapacityLimiter(1)
        self._jobs: OrderedDict[str, ServerJob] = OrderedDict()

    def start(self, kind: str, work: Callable[[ServerJob], Any], capture: str = "") -> ServerJob:
        """Start a job; it runs in a thread when its turn comes.

        Args:
            kind: Name of the tool that starts it.
            work: Called with the job, to which it reports; what it returns is the result.
            capture: Name of the capture that the job saves, if any.

        Raises:
            RequestError: Too many jobs are waiting.
        """
        unfinished = sum(not job.finished for job in self._jobs.values())
        if unfinished >= _MOST_UNFINISHED:
            raise RequestError(
                f"{unfinished} jobs are waiting or running", next_step="wait_for_job or cancel_job, then call again"
            )
        handle = f"{kind}-{secrets.token_hex(16 if self._shared else 3)}"
        job = ServerJob(kind, id=handle, capture=capture)
        self._jobs[job.id] = job
        while len(self._jobs) > _KEPT and next(iter(self._jobs.values())).finished:
            self._jobs.popitem(last=False)
        self._tasks.start_soon(self._run, job, work)
        return job

    def find(self, handle: str) -> ServerJob:
        """Find a job by its handle.

        Raises:
            RequestError: There is no such job; the message names the nearest, unless it may be another client's.
        """
        if handle not in self._jobs and self._shared:
            raise RequestError(
                f"there is no job {handle!r}",
                expected="the handle from the answer of the call that started the job",
                next_step="list_captures shows the finished captures",
            )
        if handle not in self._jobs:
            raise RequestError(
                f"there is no job {handle!r}; {nearest(handle, self._jobs)}",
                next_step="list_captures shows the finished captures",
            )
        return self._jobs[handle]

    def listed(self) -> list[ServerJob]:
        """List the jobs: those waiting and running in the order of the queue, then the finished ones, latest first."""
        jobs = list(self._jobs.values())
        return [job for job in jobs if not job.finished] + [job for job in reversed(jobs) if job.finished]

    def ahead(self, job: ServerJob) -> int:
        """Count the unfinished jobs that run before a waiting one; 0 for any other."""
        queue = [other for other in self._jobs.values() if not other.finished]
        return queue.index(job) if job.status == "waiting" and job in queue else 0

    def require_sole(self, capture: str) -> None:
        """Refuse to capture under a name while an unfinished job captures under it.

        Raises:
            RequestError: There is such a job.
        """
        other = next((job for job in self._jobs.values() if job.capture == capture and not job.finished), None)
        if other is None:
            return
        by = "another job" if self._shared else f"the job {other.id}"
        wait = "list_captures shows when it is done" if self._shared else f"wait_for_job(job='{other.id}')"
        raise RequestError(
            f"{by} {'is waiting to capture' if other.status == 'waiting' else 'is capturing'} {capture!r}",
            next_step=f"{wait}; or choose another name, or replace=true to capture it again afterwards",
        )

    async def wait(self, job: ServerJob, seconds: float, report: Callable[[ServerJob], Any] | None = None) -> None:
        """Wait until a job is finished, or time is up.

        Args:
            job: The job.
            seconds: Maximum time to wait.
            report: Awaited after each change of progress.
        """
        seen = (-1, "")
        with anyio.move_on_after(seconds):
            while not job.finished:
                if report is not None and (job.done, job.step) != seen:
                    seen = (job.done, job.step)
                    await report(job)
                await anyio.sleep(0.05)

    def cancel_all(self) -> None:
        """Cancel every job, because the server ends."""
        for job in self._jobs.values():
            job.cancel()

    async def _run(self, job: ServerJob, work: Callable[[ServerJob], Any]) -> None:
        start = time.perf_counter()
        # Shielded: a thread cannot be stopped from outside; the work stops itself at its next checkpoint.
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self._run_alone, job, work, limiter=self._turn)
        fields = {"job": job.id, "outcome": job.status, "seconds": round(time.perf_counter() - start, 3)}
        log.info("job", extra={"fields": fields})

    def _run_alone(self, job: ServerJob, work: Callable[[ServerJob], Any]) -> None:
        with self._at_work:
            job.run(work, partial(_explain, job.title))


def _explain(where: str, error: Exception) -> str:
    if isinstance(error, LayerscopeError):
        return cut(error.said("server"))
    return explain_shortage(error) or explain_bug(error, where)
