"""Which captures of a store are shown, in what order, and which are marked. Knows no Textual and reads no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.store.summaries import CaptureSummary, parse_filter, sort_summaries


class ShownCaptures:
    """All captures of a store, of which some are shown.

    Attributes:
        sorted_by: Column, and whether the largest comes first.
        marked: Names of those that are marked, in the order in which they were.

    Example:
        >>> shown = ShownCaptures()
        >>> shown.sort_by("name")
        >>> shown.rows(), shown.counted(0, unread=3)
        ([], '0 captures, reading 3 more')
    """

    def __init__(self) -> None:
        self.sorted_by = ("saved", True)
        self.marked: list[str] = []
        self._filter = parse_filter("")
        self._summaries: dict[str, CaptureSummary] = {}

    @property
    def filter_text(self) -> str:
        """What the captures must fit that are shown; empty for all of them."""
        return self._filter.text

    def __len__(self) -> int:
        return len(self._summaries)

    def take(self, summaries: Iterable[CaptureSummary], gone: Iterable[str]) -> None:
        """Add captures, or newer summaries of them, and forget others."""
        for name in gone:
            self._summaries.pop(name, None)
            if name in self.marked:
                self.marked.remove(name)
        self._summaries.update((summary.name, summary) for summary in summaries)

    def narrow(self, text: str) -> None:
        """Show what fits a filter.

        Raises:
            RequestError: It cannot be read; what was shown before stays.
        """
        self._filter = parse_filter(text)

    def sort_by(self, column: str) -> None:
        """Sort by a column; by the same once more turns the order round."""
        before, descending = self.sorted_by
        self.sorted_by = (column, not descending if column == before else False)

    def sort_by_next(self, columns: Sequence[str]) -> None:
        """Sort by the column after the one that it is sorted by."""
        self.sorted_by = (columns[(columns.index(self.sorted_by[0]) + 1) % len(columns)], False)

    def mark(self, name: str) -> None:
        """Mark a capture, or take its mark away."""
        if name in self.marked:
            self.marked.remove(name)
        else:
            self.marked.append(name)

    def rows(self) -> list[CaptureSummary]:
        """The captures that fit the filter, in order."""
        wanted = [summary for summary in self._summaries.values() if self._filter.accepts(summary)]
        column, descending = self.sorted_by
        return sort_summaries(wanted, column, descending=descending)

    def counted(self, shown: int, unread: int = 0) -> str:
        """In words, how many there are.

        Args:
            shown: How many are in the table.
            unread: How many are still to be read.
        """
        total = len(self)
        words = [f"{total} capture{'' if total == 1 else 's'}" if shown == total else f"{shown} of {total} captures"]
        if unread:
            words.append(f"reading {unread} more")
        if self.marked:
            words.append(f"{len(self.marked)} marked")
        return ", ".join(words)
