"""Background jobs: status, progress, cancellation and result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Status = Literal["waiting", "running", "done", "failed", "cancelled"]


class JobCancelled(Exception):  # noqa: N818 - it ends a job and reports no error
    """Raised inside the work of a job that has been cancelled."""


@dataclass(eq=False)
class Job:
    """One background job.

    The thread of the work reports to it; any thread may read or cancel it.

    Attributes:
        title: What the job does.
        status: Current status.
        step: The step that is running.
        done: Units of the step that are done.
        total: Units of the step in total; 0 while unknown.
        result: What the work returned.
        error: Why it failed, in words for the user.
        kept: Name of the unfinished capture whose shards would stay in the store if the job ended now; empty if none.
        on_change: Called in the job's thread after every report.

    Example:
        >>> job = Job("counting")
        >>> job.run(lambda job: sum(range(4)), explain=str)
        >>> job.status, job.result
        ('done', 6)
    """

    title: str
    status: Status = "waiting"
    step: str = ""
    done: int = 0
    total: int = 0
    result: Any = None
    error: str = ""
    kept: str = ""
    on_change: Callable[[], None] = lambda: None
    _cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        """Whether the job is done, has failed or was cancelled."""
        return self.status in {"done", "failed", "cancelled"}

    @property
    def stopping(self) -> bool:
        """Whether the job has been cancelled."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Stop the job: at once if it is waiting, else at its next report."""
        self._cancel.set()
        if self.status == "waiting":
            self.status = "cancelled"

    def checkpoint(self, step: str = "") -> None:
        """Report that a step begins, or only check for cancellation.

        Args:
            step: The step; empty to keep the current one.

        Raises:
            JobCancelled: The job has been cancelled.
        """
        if self._cancel.is_set():
            raise JobCancelled
        if step:
            self.step, self.done, self.total = step, 0, 0
            self.on_change()

    def progress(self, done: int, total: int) -> None:
        """Report the progress of the current step.

        Raises:
            JobCancelled: The job has been cancelled.
        """
        self.checkpoint()
        self.done, self.total = done, total
        self.on_change()

    def tell(self, step: str, done: int, total: int) -> None:
        """Report a step and its progress together.

        Raises:
            JobCancelled: The job has been cancelled.
        """
        self.checkpoint()
        self.step, self.done, self.total = step, done, total
        self.on_change()

    def run(self, work: Callable[[Self], Any], explain: Callable[[Exception], str]) -> None:
        """Run the work in this thread and record its result or error.

        No exception of the work leaves this method.

        Args:
            work: Called with the job; what it returns becomes the result.
            explain: Turns an exception into words for the user.
        """
        try:
            self.checkpoint("starting")
            self.status = "running"
            self.result = work(self)
            self.status = "done"
        except JobCancelled:
            self.status = "cancelled"
        except Exception as error:
            self.error = explain(error)
            self.status = "failed"
