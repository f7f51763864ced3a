"""Jobs: work that outlives the call that began it, with progress, cancel and an answer kept under a handle."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio import to_thread

from engine.errors import LayerscopeError, RequestError, nearest
from server.errors import cut, explain_bug
from server.remedies import REMEDIES

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

log = logging.getLogger("server")

Status = Literal["waiting", "running", "done", "failed", "cancelled"]
_KEPT = 200  # finished jobs that are remembered
_MOST_UNFINISHED = 100


class JobCancelled(Exception):  # noqa: N818 - it ends a job, it reports no error
    """Raised inside the work when its job has been cancelled."""


@dataclass
class Job:
    """One piece of work.

    Attributes:
        id: Its handle.
        kind: What it does, as the name of the tool.
        status: Where it stands.
        done: Steps done.
        total: Steps in total; 0 while unknown.
        step: What is being done.
        estimate: What it will cost, once that is known.
        result: What it came to.
        error: Why it failed, for the client.
        kept: Name of the unfinished capture that it left when it was cancelled, if it did.
    """

    id: str
    kind: str
    status: Status = "waiting"
    done: int = 0
    total: int = 0
    step: str = "waiting for its turn"
    estimate: Any = None
    result: Any = None
    error: str = ""
    kept: str = ""
    _cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in {"done", "failed", "cancelled"}

    def cancel(self) -> None:
        """Stop it: at once if it has not begun, else after the batch that is in the model."""
        self._cancel.set()
        if self.status == "waiting":
            self.status = "cancelled"

    def checkpoint(self, step: str = "") -> None:
        """To be called by the work now and then.

        Raises:
            JobCancelled: The job has been cancelled.
        """
        if self._cancel.is_set():
            raise JobCancelled
        if step:
            self.step = step

    def progress(self, done: int, total: int) -> None:
        """To be called by the work after each batch; raises as `checkpoint` does."""
        self.checkpoint()
        self.done, self.total = done, total

    def tell(self, step: str, done: int, total: int) -> None:
        """To be called by the work beside running prompts, which alone are counted; raises as `checkpoint` does."""
        self.checkpoint(f"{step}: {done} of {total}" if total else f"{step}: {done}")


class Jobs:
    """All jobs of a server. One at a time runs: a model has one forward pass.

    Args:
        tasks: Where they are waited for.
        at_work: Held while one runs, for who must not end the process meanwhile.
    """

    def __init__(self, tasks: TaskGroup, at_work: threading.Lock) -> None:
        self._tasks = tasks
        self._at_work = at_work
        self._turn = anyio.CapacityLimiter(1)
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def start(self, kind: str, work: Callable[[Job], Any]) -> Job:
        """Begin a job; it runs in a thread when its turn comes.

        Args:
            kind: What it does.
            work: Given the job, to report to; what it returns is the result.

        Raises:
            RequestError: Too many are waiting already.
        """
        unfinished = sum(not job.finished for job in self._jobs.values())
        if unfinished >= _MOST_UNFINISHED:
            raise RequestError(
                f"{unfinished} jobs are waiting or running", next_step="wait_for_job or cancel_job, then call again"
            )
        job = Job(f"{kind}-{secrets.token_hex(3)}", kind)
        self._jobs[job.id] = job
        while len(self._jobs) > _KEPT and next(iter(self._jobs.values())).finished:
            self._jobs.popitem(last=False)
        self._tasks.start_soon(self._run, job, work)
        return job

    def find(self, handle: str) -> Job:
        """The job of a handle.

        Raises:
            RequestError: There is none.
        """
        if handle not in self._jobs:
            raise RequestError(
                f"there is no job {handle!r}; {nearest(handle, self._jobs)}",
                next_step="list_captures shows what has been captured",
            )
        return self._jobs[handle]

    async def wait(self, job: Job, seconds: float, report: Callable[[Job], Any] | None = None) -> None:
        """Wait until a job is finished, at most so long.

        Args:
            job: The job.
            seconds: Longest wait.
            report: Awaited whenever there has been progress.
        """
        seen = (-1, "")
        with anyio.move_on_after(seconds):
            while not job.finished:
                if report is not None and (job.done, job.step) != seen:
                    seen = (job.done, job.step)
                    await report(job)
                await anyio.sleep(0.05)

    def cancel_all(self) -> None:
        """Stop everything: the server ends."""
        for job in self._jobs.values():
            job.cancel()

    async def _run(self, job: Job, work: Callable[[Job], Any]) -> None:
        begun = time.perf_counter()

        def begin() -> Any:  # noqa: ANN401 - whatever the work returns
            with self._at_work:
                job.checkpoint("starting")
                job.status = "running"
                return work(job)

        try:
            # Shielded: a thread cannot be stopped from outside; the work stops itself at its next checkpoint.
            with anyio.CancelScope(shield=True):
                job.result = await to_thread.run_sync(begin, limiter=self._turn)
            job.status = "done"
        except JobCancelled:
            job.status = "cancelled"
        except LayerscopeError as error:
            job.status, job.error = "failed", cut(error.said(REMEDIES))
        except Exception as error:
            job.status, job.error = "failed", explain_bug(error, job.kind)
        fields = {"job": job.id, "outcome": job.status, "seconds": round(time.perf_counter() - begun, 3)}
        log.info("job", extra={"fields": fields})
