"""Which captures a person wants to see: free words, and words that name a column.

Knows summaries. Does not know how they are shown.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import RequestError, nearest
from engine.store.summaries import CaptureSummary

Value = str | int | float | None

COLUMNS: dict[str, Callable[[CaptureSummary], Value]] = {
    "name": lambda summary: summary.name,
    "model": lambda summary: summary.model,
    "concept": lambda summary: summary.concept,
    "pairs": lambda summary: summary.pairs,
    "layer": lambda summary: summary.best_layer,
    "score": lambda summary: summary.score,
    "p": lambda summary: summary.p_value,
    "layers": lambda summary: summary.layers,
    "positions": lambda summary: summary.positions,
    "saved": lambda summary: summary.created,
    "problem": lambda summary: summary.problem,
}
"""What can be filtered and sorted by."""

_NUMBERS = frozenset({"pairs", "layer", "score", "p", "layers"})
_COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "": operator.eq,
}
_NUMBER = re.compile(r"(>=|<=|>|<|)(-?\d+(?:\.\d*)?)")

Test = Callable[[CaptureSummary], bool]


@dataclass(frozen=True)
class Filter:
    """What a capture must be like.

    Attributes:
        text: How it was written.
        tests: Each must hold.
    """

    text: str
    tests: tuple[Test, ...]

    def accepts(self, summary: CaptureSummary) -> bool:
        """Whether a capture is wanted."""
        return all(test(summary) for test in self.tests)


def parse_filter(text: str) -> Filter:
    """Read a filter: words that the name, model, concept or problem holds, and `column:value`; all must hold.

    A column of text must hold the value, a column of numbers equal it, or be `>1.5`, `>=1.5`, `<1.5` or `<=1.5`.

    Args:
        text: What a person typed.

    Raises:
        RequestError: There is no such column, or its value must be a number and is not.

    Example:
        >>> wanted = parse_filter("honesty pairs:>=30")
        >>> wanted.accepts(CaptureSummary("smollm2_honesty", pairs=72))
        True
    """
    return Filter(text, tuple(_test(word) for word in text.lower().split()))


def sort_summaries(summaries: list[CaptureSummary], column: str, *, descending: bool = False) -> list[CaptureSummary]:
    """Order captures by a column; those without a value come last either way.

    Args:
        summaries: The captures.
        column: One of `COLUMNS`.
        descending: The largest first.
    """
    value = COLUMNS[column]
    with_value = [summary for summary in summaries if value(summary) not in (None, "")]
    without = [summary for summary in summaries if value(summary) in (None, "")]
    return [*sorted(with_value, key=lambda s: _sortable(value(s)), reverse=descending), *without]


def _sortable(value: Value) -> tuple[float, str]:
    return (float(value), "") if isinstance(value, int | float) else (0.0, str(value).lower())


def _test(word: str) -> Test:
    column, colon, wanted = word.partition(":")
    if not colon:
        return lambda summary: any(
            word in text.lower() for text in (summary.name, summary.model, summary.concept, summary.problem)
        )
    if column not in COLUMNS:
        raise RequestError(f"there is no column {column!r}; {nearest(column, COLUMNS)}", expected=", ".join(COLUMNS))
    value = COLUMNS[column]
    if column not in _NUMBERS:
        return lambda summary: wanted in str(value(summary) or "").lower()
    match = _NUMBER.fullmatch(wanted)
    if not match:
        raise RequestError(f"{column}:{wanted} is not a number", expected=f"such as {column}:>1.5")
    compare, number = _COMPARED[match[1]], float(match[2])

    def test(summary: CaptureSummary) -> bool:
        found = value(summary)
        return isinstance(found, int | float) and compare(float(found), number)

    return test
