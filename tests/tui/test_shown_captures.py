"""What the library shows of a store: the filter, the order, the marks, and how many there are, in words."""

import pytest

from engine.errors import RequestError
from engine.store.summaries import CaptureSummary
from tui.shown_captures import ShownCaptures

SUMMARIES = [
    CaptureSummary("old", concept="honesty", pairs=72, created="2026-01-01T00:00:00+00:00"),
    CaptureSummary("new", concept="empathy", pairs=24, created="2026-03-01T00:00:00+00:00"),
    CaptureSummary("middle", pairs=0, created="2026-02-01T00:00:00+00:00"),
]


@pytest.fixture
def shown() -> ShownCaptures:
    captures = ShownCaptures()
    captures.take(SUMMARIES, [])
    return captures


def names(shown: ShownCaptures) -> list[str]:
    return [summary.name for summary in shown.rows()]


def test_the_newest_comes_first_until_another_order_is_asked_for(shown: ShownCaptures) -> None:
    assert names(shown) == ["new", "middle", "old"]
    shown.sort_by("name")
    assert names(shown) == ["middle", "new", "old"]
    shown.sort_by("name")
    assert names(shown) == ["old", "new", "middle"]
    shown.sort_by_next(["name", "pairs", "saved"])
    assert shown.sorted_by == ("pairs", False)
    shown.sort_by_next(["saved", "pairs"])
    assert shown.sorted_by == ("saved", False)


def test_a_filter_that_cannot_be_read_leaves_what_is_shown(shown: ShownCaptures) -> None:
    shown.narrow("pairs:>=30")
    with pytest.raises(RequestError):
        shown.narrow("colour:red")
    assert names(shown) == ["old"]
    assert shown.filter_text == "pairs:>=30"


def test_a_capture_that_is_gone_is_no_longer_marked(shown: ShownCaptures) -> None:
    for name in ("old", "new", "middle", "middle"):
        shown.mark(name)
    assert shown.counted(2) == "2 of 3 captures, 2 marked"
    shown.take([], ["old", "never there"])
    assert shown.marked == ["new"]
    shown.take([CaptureSummary("new", pairs=48)], [])
    assert (shown.marked, len(shown)) == (["new"], 2)
    assert shown.counted(2, unread=7) == "2 captures, reading 7 more, 1 marked"
