"""The captures of a store: filter, order, marks and counts."""

import pytest

from engine.errors import RequestError
from engine.store.summaries import CaptureSummary
from tui.store_feed import ShownCaptures

SUMMARIES = [
    CaptureSummary("old", concept="honesty", pairs=72, created="2026-01-01T00:00:00+00:00"),
    CaptureSummary("new", concept="empathy", pairs=24, created="2026-03-01T00:00:00+00:00"),
    CaptureSummary("middle", pairs=0, created="2026-02-01T00:00:00+00:00"),
]


@pytest.fixture
def shown() -> ShownCaptures:
    captures = ShownCaptures()
    captures.update(SUMMARIES, [])
    return captures


def names(shown: ShownCaptures) -> list[str]:
    return [summary.name for summary in shown.rows()]


def test_the_newest_comes_first_until_sorted_otherwise(shown: ShownCaptures) -> None:
    assert names(shown) == ["new", "middle", "old"]
    shown.sort_by("name")
    assert names(shown) == ["middle", "new", "old"]
    shown.sort_by("name")
    assert names(shown) == ["old", "new", "middle"]
    shown.sort_by_next(["name", "pairs", "saved"])
    assert shown.sorted_by == ("pairs", False)
    shown.sort_by_next(["saved", "pairs"])
    assert shown.sorted_by == ("saved", False)


def test_an_invalid_filter_keeps_the_previous_one(shown: ShownCaptures) -> None:
    shown.set_filter("pairs:>=30")
    with pytest.raises(RequestError):
        shown.set_filter("colour:red")
    assert names(shown) == ["old"]
    assert shown.filter_text == "pairs:>=30"


def test_a_deleted_capture_is_no_longer_marked(shown: ShownCaptures) -> None:
    for name in ("old", "new", "middle", "middle"):
        shown.toggle_mark(name)
    assert shown.describe(2) == "2 of 3 captures, 2 marked"
    shown.update([], ["old", "never there"])
    assert shown.marked == ["new"]
    shown.update([CaptureSummary("new", pairs=48)], [])
    assert (shown.marked, len(shown)) == (["new"], 2)
    assert shown.describe(2, unread=7) == "2 captures, reading 7 more, 1 marked"
