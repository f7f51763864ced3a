"""Pairs of the user's own, from a JSONL or CSV file. Every complaint names the line and the field; imports no torch."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import RequestError, nearest
from engine.records.concepts import Factors

_TEXTS = ("positive", "negative")
_FACTORS = ("template", "persona", "topic")


@dataclass(frozen=True)
class WrittenPairs:
    """Pairs as a user wrote them.

    Attributes:
        positive: Texts of one side.
        negative: Texts of the other, in the same order.
        factors: What each pair was made from; None if the file says nothing of it. A factor that only some pairs name
            is empty for the others, which makes them a group.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    factors: tuple[Factors, ...] | None


def read_pairs(path: str | Path) -> WrittenPairs:
    """Read pairs: an object a line (`.jsonl`), or a table whose first line names the columns (`.csv`).

    The fields are `positive` and `negative`, and if known `template`, `persona` and `topic`.

    Args:
        path: The file, in UTF-8.

    Raises:
        RequestError: The file cannot be read, has no pairs, or a line lacks a text or adds a field.
    """
    file = Path(path)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if file.suffix.lower() not in readers:
        raise RequestError(f"{file.name!r} says no format", expected="a file of pairs ending in .jsonl or .csv")
    try:
        lines = list(readers[file.suffix.lower()](file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{file} cannot be read: {error}", next_step="check the path; it must be UTF-8") from error
    for number, row in lines:
        _require_valid(file, number, row)
    if not lines:
        raise RequestError(f"{file} holds no pairs", expected="at least one line with positive and negative")
    rows = [row for _, row in lines]
    named = any(row.get(factor) for row in rows for factor in _FACTORS)
    return WrittenPairs(
        positive=tuple(str(row["positive"]) for row in rows),
        negative=tuple(str(row["negative"]) for row in rows),
        factors=tuple(_factors(row) for row in rows) if named else None,
    )


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(f"{path}, line {number} is not JSON: {error}", next_step="correct that line") from error
        if not isinstance(row, dict):
            raise RequestError(f"{path}, line {number} is not an object", expected='{"positive": …, "negative": …}')
        yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            extra = row.pop(None, None)  # DictReader keeps what has no column under None
            if extra:
                raise RequestError(f"{path}, line {reader.line_num} has more cells than the first line has columns")
            yield reader.line_num, dict(row)


def _require_valid(path: Path, number: int, row: dict[str, object]) -> None:
    for field in row.keys() - {*_TEXTS, *_FACTORS}:
        hint = nearest(field, (*_TEXTS, *_FACTORS))
        raise RequestError(f"{path}, line {number}: the field {field!r} is not known; {hint}")
    for field in _TEXTS:
        text = row.get(field)
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"{path}, line {number}: {field} must be a text that is not empty")
    for field in _FACTORS:
        if not isinstance(row.get(field) or "", str):
            raise RequestError(f"{path}, line {number}: {field} must be a text")


def _factors(row: dict[str, object]) -> Factors:
    template, persona, topic = (str(row.get(field) or "") for field in _FACTORS)
    return Factors(template=template, persona=persona, topic=topic)
