"""What the background tells the screens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

from engine.store.summaries import CaptureSummary

if TYPE_CHECKING:
    from tui.jobs import Job


@dataclass
class CapturesRead(Message):
    """Captures of the store were read or are gone.

    Attributes:
        summaries: Those that are new or changed.
        gone: Names of those that are no longer there.
        left: How many are still to be read.
    """

    summaries: list[CaptureSummary]
    gone: set[str]
    left: int


@dataclass
class StoreUnreadable(Message):
    """The store cannot be read.

    Attributes:
        problem: What is wrong and what to do.
    """

    problem: str


@dataclass
class JobMoved(Message):
    """A job has got further."""

    job: Job


@dataclass
class JobEnded(Message):
    """A job is done, has failed or was cancelled."""

    job: Job
