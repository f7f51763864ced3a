"""One line that says what goes on in the background; nothing when nothing does."""

from __future__ import annotations

from textual.reactive import reactive
from textual.widgets import Static

from tui.jobs import Job

_BAR = 20


class JobLine(Static):
    """Progress of the job that runs."""

    job: reactive[Job | None] = reactive(None, always_update=True)

    def watch_job(self, job: Job | None) -> None:
        """Show it, or go away."""
        running = job is not None and not job.finished
        self.set_class(running, "-running")
        if job is not None and running:
            self.update(describe_job(job))


def describe_job(job: Job) -> str:
    """A job in one line."""
    if not job.total:
        counted = f" {job.done}" if job.done else ""
        return f"{job.title}: {job.step or job.status}{counted} · ctrl+x cancels"
    filled = job.done * _BAR // job.total
    bar = "━" * filled + "╌" * (_BAR - filled)
    return f"{job.title}: {job.step} {bar} {job.done}/{job.total} · ctrl+x cancels"
