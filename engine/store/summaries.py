"""A line about each capture of a store, read from as little of its record as possible: for stores of thousands.

Knows records and files. Loads without torch and without numpy.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import RequestError, StoreError, nearest
from engine.store.catalog import UNFINISHED_SHARDS, missing_part
from engine.store.names import PLAN, locate
from engine.store.record import decode_record, read_content


@dataclass(frozen=True)
class CaptureSummary:
    """What a list shows of a capture.

    Attributes:
        name: Its name.
        created: Time of saving, ISO 8601 in UTC; empty if unknown.
        model: Alias of the model.
        concept: Name of the concept; empty for prompts and for pairs of the user's own.
        pairs: Number of pairs; 0 for prompts.
        layers: Number of captured layers.
        num_layers: Number of layers of the model.
        positions: Which tokens were kept.
        best_layer: The layer that ranks first; None without a ranking.
        score: Its held-out d'.
        low: Lower end of its 95% interval.
        high: Upper end.
        p_value: How often shuffled labels do as well.
        problem: Why the capture cannot be used; empty if all is well.
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
        """Why it cannot be used, as a sentence: what is unfinished is not damaged."""
        if self.problem.startswith(UNFINISHED_SHARDS):
            return f"{self.name} is {self.problem}"
        return f"{self.name} is damaged: {self.problem}" if self.problem else ""


@dataclass(frozen=True)
class Stamp:
    """When a capture last changed, without reading it.

    Attributes:
        name: Its name.
        changed: Time of the last change to one of its files, in nanoseconds.
    """

    name: str
    changed: int


class _Leader(msgspec.Struct):
    layer: int
    d_prime: float
    low: float
    high: float
    p_value: float


class _Ranking(msgspec.Struct):
    layers: list[_Leader]


class _Provenance(msgspec.Struct):
    alias: str
    positions: str


class _Data(msgspec.Struct):
    bytes: int


class _Head(msgspec.Struct):
    """The fields of a record that a list shows; the others are passed over unread."""

    created: str
    data: _Data
    concept: str | None
    num_pairs: int
    num_layers: int
    captured_layers: list[int]
    ranking: _Ranking | None
    provenance: _Provenance | None


_HEAD = msgspec.json.Decoder(_Head)


def stamp_store(store: str | Path) -> list[Stamp]:
    """What a store holds and when it last changed, the newest first.

    Args:
        store: The folder; a missing one holds nothing.

    Raises:
        StoreError: It cannot be read.

    Example:
        >>> [stamp.name for stamp in stamp_store("activations")]
        ['smollm2_honesty']
    """
    changed: dict[str, int] = {}
    try:
        with os.scandir(store) as entries:
            for entry in entries:
                stem, dot, suffix = entry.name.rpartition(".")
                if dot and suffix in {"pt", "json"} and not stem.startswith("."):
                    changed[stem] = max(changed.get(stem, 0), _changed(entry))
                elif entry.is_dir() and not entry.name.startswith(".") and Path(entry.path, PLAN).is_file():
                    changed[entry.name] = max(changed.get(entry.name, 0), _changed(entry))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(
            f"the store {store} cannot be read: {error.strerror}",
            expected="a folder of captures",
            next_step="name another folder, or ask its owner for the permission to read it",
        ) from error
    return sorted((Stamp(name, when) for name, when in changed.items()), key=lambda stamp: (-stamp.changed, stamp.name))


def summarise_capture(name: str, store: str | Path) -> CaptureSummary:
    """A line about one capture; of one that cannot be used, why.

    Args:
        name: Its name.
        store: The folder.

    Example:
        >>> summary = summarise_capture("smollm2_honesty", "activations")
        >>> summary.concept, summary.model, summary.problem
        ('honesty', 'smollm2', '')
    """
    try:
        paths = locate(name, store)
        if not paths.record.exists():
            return CaptureSummary(name, problem=missing_part(paths, None))
        head = decode_record(paths.record, read_content(paths.record), _HEAD)
        problem = missing_part(paths, head.data.bytes)
    except StoreError as error:
        return CaptureSummary(name, problem=error.problem)
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
    except OSError:  # deleted meanwhile
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
