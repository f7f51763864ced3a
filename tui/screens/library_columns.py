"""The columns of the library's table: what a line says of a capture."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from rich.text import Text

from engine.plots.captures_text import score_and_interval
from engine.plots.words import p_in_words
from engine.store.summaries import CaptureSummary
from tui.widgets.rows import Column

MARK = "■"


def capture_columns(marked: Callable[[str], bool]) -> list[Column[CaptureSummary]]:
    """The columns; a capture that is marked has a sign before its name.

    Args:
        marked: Whether a capture is marked.
    """
    return [
        Column("", "", 1, lambda summary, _width: MARK if marked(summary.name) else "", order=0),
        Column("name", "name", 17, _name, grows=True, order=0),
        Column("model", "model", 8, lambda summary, _width: summary.model, order=5),
        Column("concept", "concept", 11, lambda summary, _width: summary.concept, order=4),
        Column("pairs", "pairs", 5, lambda summary, _width: str(summary.pairs or ""), right=True, order=3),
        Column("layer", "best", 4, _best, right=True, order=1),
        Column("score", "d' (95%)", 19, lambda summary, _width: score_and_interval(summary), right=True, order=2),
        Column("p", "p", 6, _p_value, right=True, order=6),
        Column("saved", "saved UTC", 12, lambda summary, _width: _time(summary.created), order=7),
    ]


def _name(summary: CaptureSummary, _width: int) -> Text:
    return Text(summary.name) if not summary.problem else Text(f"✗ {summary.name}: {summary.problem}", style="italic")


def _best(summary: CaptureSummary, _width: int) -> str:
    return "" if summary.best_layer is None else str(summary.best_layer)


def _p_value(summary: CaptureSummary, _width: int) -> str:
    return "" if summary.p_value is None else p_in_words(summary.p_value)


def _time(created: str) -> str:
    """Day and time of this year's, the day alone of others."""
    this_year = created.startswith(str(datetime.now(UTC).year))
    return created[5:16].replace("T", " ") if this_year else created[:10]
