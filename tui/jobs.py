"""The app's job queue: runs jobs one at a time and posts their progress."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.message import Message

from engine.errors import LayerscopeError, first_line
from engine.jobs import Job

if TYPE_CHECKING:
    from textual.app import App
    from textual.message_pump import MessagePump

log = logging.getLogger("tui")


@dataclass
class JobMoved(Message, bubble=False):
    """A job made progress."""

    job: Job


@dataclass
class JobEnded(Message, bubble=False):
    """A job succeeded, failed or was cancelled; `wanted` unless it was dropped for another one."""

    job: Job
    wanted: bool = True


class Jobs:
    """The jobs of an app, run one at a time in threads.

    They share the model and the CPU cores. The threads are daemons and no workers of Textual, which waits for its
    workers after it has closed the screen.

    Args:
        app: Receives every message.
    """

    def __init__(self, app: App[None]) -> None:
        self._app = app
        self._turn = threading.Lock()
        self.current: Job | None = None
        self._threads: dict[Job, threading.Thread] = {}
        self._dropped: set[Job] = set()

    @property
    def unfinished(self) -> list[Job]:
        """The running job and those that wait, in the order of their start; without those that were dropped."""
        return [job for job in [*self._threads] if job not in self._dropped]

    def start(self, title: str, work: Callable[[Job], Any], asker: MessagePump) -> Job:
        """Start a job; it runs when the jobs before it have ended.

        Args:
            title: What it does.
            work: Called with the job, to which it reports; what it returns is the result.
            asker: Receives the progress and the end of the job, as the app does.
        """
        job = Job(title)

        def post_progress() -> None:
            for listener in self._listeners(asker):
                listener.post_message(JobMoved(job))

        job.on_change = post_progress
        run = copy_context().run  # messages name the app of their context
        self._threads[job] = threading.Thread(target=run, args=(self._run, job, work, asker), daemon=True)
        self._threads[job].start()
        return job

    def cancel_all(self) -> None:
        """Cancel the running job and those that wait."""
        for job in [*self._threads]:
            job.cancel()

    def join(self, seconds: float) -> bool:
        """Wait until all jobs have ended, at most for some seconds; return whether they have."""
        end = time.monotonic() + seconds
        for thread in [*self._threads.values()]:
            thread.join(max(end - time.monotonic(), 0.0))
        return not self._threads

    def drop(self, job: Job | None) -> None:
        """Cancel a job whose result is not wanted any more; the user is not told of its end."""
        if job is not None and not job.finished:
            self._dropped.add(job)
            job.cancel()

    def _run(self, job: Job, work: Callable[[Job], Any], asker: MessagePump) -> None:
        def explain(error: Exception) -> str:
            if isinstance(error, LayerscopeError):
                return error.said("app")
            log.error("%s failed", job.title, exc_info=error)
            return f"{type(error).__name__}: {first_line(error)}. This is a bug in layerscope: please report it."

        with self._turn:
            self.current = job
            try:
                job.run(work, explain)
            finally:
                self.current = None
                del self._threads[job]
        wanted = job not in self._dropped
        self._dropped.discard(job)
        for listener in self._listeners(asker):
            listener.post_message(JobEnded(job, wanted))

    def _listeners(self, asker: MessagePump) -> list[MessagePump]:
        """Return the app and the asker, once if they are the same."""
        return [self._app] if asker is self._app else [self._app, asker]
