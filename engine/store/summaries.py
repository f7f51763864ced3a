"""Summarize, filter and sort captures quickly; loads neither torch nor numpy."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import RequestError, StoreError, similar, visible
from engine.records.results import Count, Real
from engine.store.catalog import UNFINISHED_SHARDS, is_damage, missing_part
from engine.store.names import is_present, listed_name, locate_listed, unreadable_store
from engine.store.record import decode_record, read_content


@dataclass(frozen=True)
class CaptureSummary:
    """One row in a list of captures.

    Attributes:
        name: Name of the capture's files; control characters are escaped.
        created: Time of saving, ISO 8601 in UTC; empty if unknown.
        model: Alias of the model.
        concept: Name of the concept; empty for prompts and for user-supplied pairs.
        pairs: Number of pairs; 0 for prompts.
        layers: Number of captured layers.
        num_layers: Number of layers of the model.
        positions: Which tokens were kept.
        best_layer: The layer that ranks first; None without a ranking.
        score: Held-out d' of the best layer.
        low: Lower end of its 95% interval.
        high: Upper end of its 95% interval.
        p_value: Its permutation p-value.
        problem: Why the capture is unusable; empty if it is usable.
    """

    name: str
    created: str = ""
    model: str = ""
    concept: str = ""
    pairs: int = 0
    layers: int = 0
    num_layers: int = 0
    positions: str = ""
    best_layer: int | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    problem: str = ""

    @property
    def complaint(self) -> str:
        """Why the capture is unusable, as a sentence: unfinished, damaged or not readable."""
        if self.problem.startswith(UNFINISHED_SHARDS):
            return f"{self.name} is {self.problem}"
        if not is_damage(self.problem):
            return f"{self.name} cannot be opened: {self.problem}"
        return f"{self.name} is damaged: {self.problem}" if self.problem else ""


@dataclass(frozen=True)
class Stamp:
    """Name and modification time of a capture.

    Attributes:
        name: Name of the capture's files; control characters are escaped.
        changed: Latest modification time of its files, in nanoseconds since the epoch.
    """

    name: str
    changed: int


class _Leader(msgspec.Struct):
    layer: Count
    d_prime: Real
    low: Real
    high: Real
    p_value: Real


class _Ranking(msgspec.Struct):
    layers: list[_Leader]


class _Provenance(msgspec.Struct):
    alias: str
    positions: str


class _Data(msgspec.Struct):
    bytes: Count


class _Head(msgspec.Struct):
    """The record fields that a list shows; msgspec skips all others."""

    created: str
    data: _Data
    concept: str | None
    num_pairs: Count
    num_layers: Count
    captured_layers: list[Count]
    ranking: _Ranking | None
    provenance: _Provenance | None


_HEAD = msgspec.json.Decoder(_Head)


def stamp_store(store: str | Path) -> list[Stamp]:
    """List the captures of a store by modification time, newest first.

    The captures are not read.

    Args:
        store: The store folder; a missing folder counts as empty.

    Raises:
        StoreError: The folder cannot be read.

    Example:
        >>> [stamp.name for stamp in stamp_store("activations")]
        ['smollm2_honesty']
    """
    changed: dict[str, int] = {}
    try:
        with os.scandir(store) as entries:
            for entry in entries:
                if name := listed_name(Path(store), entry.name):
                    changed[name] = max(changed.get(name, 0), _changed(entry))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable_store(Path(store), error) from error
    return sorted((Stamp(name, when) for name, when in changed.items()), key=lambda stamp: (-stamp.changed, stamp.name))


def summarise_capture(name: str, store: str | Path) -> CaptureSummary:
    """Summarize one capture, or say why it is unusable.

    Args:
        name: Name of the capture.
        store: The store folder.

    Example:
        >>> summary = summarise_capture("smollm2_honesty", "activations")
        >>> summary.concept, summary.model, summary.problem
        ('honesty', 'smollm2', '')
    """
    try:
        paths = locate_listed(name, store)
        if not is_present(paths.record):
            return CaptureSummary(name, problem=missing_part(paths, None))
        head = decode_record(paths.record, read_content(paths.record), _HEAD)
        problem = missing_part(paths, head.data.bytes)
    except StoreError as error:
        return CaptureSummary(name, problem=visible(error.problem))
    leader = head.ranking.layers[0] if head.ranking and head.ranking.layers else None
    return CaptureSummary(
        name=name,
        created=head.created,
        model=head.provenance.alias if head.provenance else "",
        concept=head.concept or "",
        pairs=head.num_pairs,
        layers=len(head.captured_layers),
        num_layers=head.num_layers,
        positions=head.provenance.positions if head.provenance else "",
        best_layer=leader.layer if leader else None,
        score=leader.d_prime if leader else None,
        low=leader.low if leader else None,
        high=leader.high if leader else None,
        p_value=leader.p_value if leader else None,
        problem=problem,
    )


def _changed(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_mtime_ns
    except OSError:  # deleted since the folder was listed, or a link to nothing
        return 0


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
"""Columns to filter and sort by."""

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
    """A filter for captures.

    Attributes:
        text: The filter as typed.
        tests: Conditions that must all hold.
    """

    text: str
    tests: tuple[Test, ...]

    def accepts(self, summary: CaptureSummary) -> bool:
        """Whether a capture passes the filter."""
        return all(test(summary) for test in self.tests)


def parse_filter(text: str) -> Filter:
    """Parse a filter: words and `column:value` terms that must all match.

    A word matches if the name, model, concept or problem contains it. A text column matches if it contains the value. A
    numeric column takes a number to equal, or `>1.5`, `>=1.5`, `<1.5` or `<=1.5`.

    Args:
        text: The filter as typed.

    Raises:
        RequestError: The column does not exist, or the value of a numeric column is not a number.

    Example:
        >>> wanted = parse_filter("honesty pairs:>=30")
        >>> wanted.accepts(CaptureSummary("smollm2_honesty", pairs=72))
        True
    """
    return Filter(text, tuple(_test(word) for word in text.lower().split()))


def sort_summaries(summaries: list[CaptureSummary], column: str, *, descending: bool = False) -> list[CaptureSummary]:
    """Sort captures by a column; captures without a value always come last.

    Args:
        summaries: The captures.
        column: One of `COLUMNS`.
        descending: Largest value first.
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
        raise RequestError(
            f"there is no column {column!r}", expected=", ".join(COLUMNS), next_step=similar(column, COLUMNS)
        )
    value = COLUMNS[column]
    if column not in _NUMBERS:
        return lambda summary: wanted in str(value(summary) or "").lower()
    match = _NUMBER.fullmatch(wanted)
    if not match:
        raise RequestError(
            f"the value of {column}:{wanted} is not a number", expected=f"a number, for example {column}:>1.5"
        )
    compare, number = _COMPARED[match[1]], float(match[2])

    def test(summary: CaptureSummary) -> bool:
        found = value(summary)
        return isinstance(found, int | float) and compare(float(found), number)

    return test
