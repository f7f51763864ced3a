"""Read the captures of a store, watch for changes, and filter, sort and mark them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import awatch

from engine.store.summaries import CaptureSummary, parse_filter, sort_summaries, stamp_store, summarise_capture

_FIRST_BATCH, _BATCH = 50, 500
_POLL_S = 1.5


@dataclass(frozen=True)
class StoreChange:
    """One batch of changes since the last read.

    Attributes:
        summaries: New and changed captures.
        gone: Names of deleted captures.
        left: Number of changed captures still to be read.
    """

    summaries: list[CaptureSummary]
    gone: set[str]
    left: int


@dataclass
class StoreReader:
    """Incremental reader of a store.

    Attributes:
        store: The folder.
    """

    store: Path
    _seen: dict[str, int] = field(default_factory=dict)

    def changes(self) -> Iterator[StoreChange]:
        """Yield the changes since the last call: a screenful, then larger batches.

        At least one change is yielded; it is empty if nothing changed.

        Raises:
            StoreError: The store cannot be read.
        """
        stamps = stamp_store(self.store)
        gone = self._seen.keys() - {stamp.name for stamp in stamps}
        changed = [stamp for stamp in stamps if self._seen.get(stamp.name) != stamp.changed]
        for name in gone:
            del self._seen[name]
        if not changed:
            yield StoreChange([], set(gone), 0)
        start = 0
        while start < len(changed):
            batch = changed[start : start + (_BATCH if start else _FIRST_BATCH)]
            summaries = []
            for stamp in batch:
                summaries.append(summarise_capture(stamp.name, self.store))
                self._seen[stamp.name] = stamp.changed
            start += len(batch)
            yield StoreChange(summaries, set(gone), len(changed) - start)
            gone = set()


async def watch_store(store: Path) -> AsyncIterator[None]:
    """Yield once immediately, then whenever the store may have changed.

    Network folders and folders without read permission send no file events, so the folder's change time is polled too.

    Args:
        store: The folder; it may not exist yet.
    """
    seen = _change_time(store)
    yield
    async for notified in _file_events(store):
        now = _change_time(store)
        if notified or now != seen:
            seen = now
            yield


async def _file_events(store: Path) -> AsyncIterator[bool]:
    """Yield True for a file event, and False after each polling interval without one."""
    interval = int(_POLL_S * 1000)
    while True:
        try:
            async for changes in awatch(
                store, debounce=300, step=50, rust_timeout=interval, yield_on_timeout=True, recursive=False
            ):
                yield bool(changes)
        except OSError:  # the folder does not exist yet, is not readable, or the system is out of watches
            yield False
            await asyncio.sleep(_POLL_S)


def _change_time(store: Path) -> int:
    """Return the folder's change time, which the rename that ends a save updates."""
    try:
        return store.stat().st_ctime_ns
    except OSError:
        return 0


class ShownCaptures:
    """The captures of a store with the current filter, order and marks.

    Attributes:
        sorted_by: Column key, and whether the order is descending.
        marked: Names of the marked captures, in the order of marking.

    Example:
        >>> shown = ShownCaptures()
        >>> shown.sort_by("name")
        >>> shown.rows(), shown.describe(0, unread=3)
        ([], '0 captures, reading 3 more')
    """

    def __init__(self) -> None:
        self.sorted_by = ("saved", True)
        self.marked: list[str] = []
        self._filter = parse_filter("")
        self._summaries: dict[str, CaptureSummary] = {}

    @property
    def filter_text(self) -> str:
        """The current filter; empty for all captures."""
        return self._filter.text

    def __len__(self) -> int:
        return len(self._summaries)

    def update(self, summaries: Iterable[CaptureSummary], gone: Iterable[str]) -> None:
        """Add or replace captures, and drop the deleted ones."""
        for name in gone:
            self._summaries.pop(name, None)
            if name in self.marked:
                self.marked.remove(name)
        self._summaries.update((summary.name, summary) for summary in summaries)

    def set_filter(self, text: str) -> None:
        """Show only the captures that match a filter.

        Raises:
            RequestError: The filter is invalid; the previous one stays.
        """
        self._filter = parse_filter(text)

    def sort_by(self, column: str) -> None:
        """Sort by a column, or reverse the order if it is the current one."""
        current, descending = self.sorted_by
        self.sorted_by = (column, not descending if column == current else False)

    def sort_by_next(self, columns: Sequence[str]) -> None:
        """Sort by the column after the current one."""
        self.sorted_by = (columns[(columns.index(self.sorted_by[0]) + 1) % len(columns)], False)

    def toggle_mark(self, name: str) -> None:
        """Mark or unmark a capture."""
        if name in self.marked:
            self.marked.remove(name)
        else:
            self.marked.append(name)

    def rows(self) -> list[CaptureSummary]:
        """Return the matching captures in order."""
        matching = [summary for summary in self._summaries.values() if self._filter.accepts(summary)]
        column, descending = self.sorted_by
        return sort_summaries(matching, column, descending=descending)

    def describe(self, shown: int, unread: int = 0) -> str:
        """Return the counts in words.

        Args:
            shown: Number of captures in the table.
            unread: Number of captures still to be read.
        """
        total = len(self)
        parts = [f"{total} capture{'' if total == 1 else 's'}" if shown == total else f"{shown} of {total} captures"]
        if unread:
            parts.append(f"reading {unread} more")
        if self.marked:
            parts.append(f"{len(self.marked)} marked")
        return ", ".join(parts)
