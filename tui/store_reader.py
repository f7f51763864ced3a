"""Reads a store bit by bit: what is new or changed since the last look, the newest first. Knows no Textual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.store.summaries import CaptureSummary, stamp_store, summarise_capture

_FIRST, _LATER = 50, 500


@dataclass(frozen=True)
class StoreChange:
    """A part of what changed since the last look.

    Attributes:
        summaries: Captures that are new or changed.
        gone: Names of captures that are no longer there.
        left: How many changed ones are still to be read.
    """

    summaries: list[CaptureSummary]
    gone: set[str]
    left: int


@dataclass
class StoreReader:
    """What has been seen of a store.

    Attributes:
        store: The folder.
    """

    store: Path
    _seen: dict[str, int] = field(default_factory=dict)

    def changes(self) -> Iterator[StoreChange]:
        """What changed since the last call: a screenful first, so that there is something to look at, then the rest.

        At least one change is told, if only that there is none.

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
            part = changed[start : start + (_LATER if start else _FIRST)]
            summaries = []
            for stamp in part:
                summaries.append(summarise_capture(stamp.name, self.store))
                self._seen[stamp.name] = stamp.changed
            start += len(part)
            yield StoreChange(summaries, set(gone), len(changed) - start)
            gone = set()
