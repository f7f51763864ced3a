"""Work in the background: one job at a time, with progress and cancel, while the screens stay usable.

Knows threads and messages. Does not know what the work is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import LayerscopeError, first_line
from tui.messages import JobEnded, JobMoved
from tui.remedies import in_words

if TYPE_CHECKING:
    from textual.app import App
    from textual.message_pump import MessagePump

log = logging.getLogger("tui")

Status = Literal["waiting", "running", "done", "failed", "cancelled"]


class JobCancelled(Exception):  # noqa: N818 - it ends a job, it reports no error
    """Raised inside the work when its job has been cancelled."""


@dataclass(eq=False)
class Job:
    """One piece of work.

    Attributes:
        title: What it does, for people.
        status: Where it stands.
        step: What is being done.
        done: Steps done.
        total: Steps in total; 0 while unknown.
        result: What it came to.
        error: Why it failed.
        kept: Name of the unfinished capture that it left when it was cancelled, if it did.
    """

    title: str
    status: Status = "waiting"
    step: str = ""
    done: int = 0
    total: int = 0
    result: Any = None
    error: str = ""
    kept: str = ""
    _cancel: threading.Event = field(default_factory=threading.Event)
    _tell: Callable[[], None] = lambda: None

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in {"done", "failed", "cancelled"}

    def cancel(self) -> None:
        """Stop it after the batch that is in the model."""
        self._cancel.set()

    def checkpoint(self, step: str = "") -> None:
        """To be called by the work before each step.

        Raises:
            JobCancelled: The job has been cancelled.
        """
        if self._cancel.is_set():
            raise JobCancelled
        if step:
            self.step, self.done, self.total = step, 0, 0
            self._tell()

    def progress(self, done: int, total: int) -> None:
        """To be called by the work after each batch; raises as `checkpoint` does."""
        self.checkpoint()
        self.done, self.total = done, total
        self._tell()

    def tell(self, step: str, done: int, total: int) -> None:
        """What is being done and how far it is, in one; raises as `checkpoint` does."""
        self.checkpoint()
        self.step, self.done, self.total = step, done, total
        self._tell()


class Jobs:
    """All jobs of the app, one at a time: a model has one forward pass, and this machine's cores are few.

    Args:
        app: Whose threads they run in, and who is told of everything.
    """

    def __init__(self, app: App[None]) -> None:
        self._app = app
        self._turn = threading.Lock()
        self.current: Job | None = None

    def start(self, title: str, work: Callable[[Job], Any], asker: MessagePump) -> Job:
        """Begin a job.

        Args:
            title: What it does.
            work: Given the job, to report to; what it returns is the result.
            asker: Who is told of its progress and its end, beside the app.
        """
        job = Job(title)

        def tell() -> None:
            for listener in self._listeners(asker):
                listener.post_message(JobMoved(job))

        job._tell = tell
        self._app.run_worker(lambda: self._run(job, work, asker), thread=True, group="jobs", exit_on_error=False)
        return job

    def _run(self, job: Job, work: Callable[[Job], Any], asker: MessagePump) -> None:
        with self._turn:
            self.current = job
            job.status = "running"
            try:
                job.checkpoint("starting")
                job.result = work(job)
                job.status = "done"
            except JobCancelled:
                job.status = "cancelled"
            except LayerscopeError as error:
                job.status, job.error = "failed", in_words(error)
            except Exception as error:
                log.exception("%s failed", job.title)
                job.status = "failed"
                job.error = (
                    f"{type(error).__name__}: {first_line(error)}. This is a bug in layerscope: please report it."
                )
            finally:
                self.current = None
        for listener in self._listeners(asker):
            listener.post_message(JobEnded(job))

    def _listeners(self, asker: MessagePump) -> list[MessagePump]:
        """Who is told, each once: the app may be the one that asked."""
        return [self._app] if asker is self._app else [self._app, asker]
