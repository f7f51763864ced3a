"""Pairs of the user's own, from a JSONL or CSV file or a data set.

Every complaint names the line or row and the field. Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.concepts.rows import (
    MORE_CELLS,
    Row,
    csv_rows,
    dataset_rows,
    file_stamp,
    jsonl_rows,
    place_in,
    readable_errors,
)
from engine.concepts.rows import require_whole_characters as require_whole
from engine.errors import RequestError, nearest
from engine.inputs import user_path
from engine.records.captures import Factors

PAIR_FILES = (".jsonl", ".csv")
"""How the names of files that hold pairs end."""

_TEXTS = ("positive", "negative")
_FACTORS = ("template", "persona", "topic")


@dataclass(frozen=True)
class WrittenPair:
    """A pair as a user wrote it.

    Attributes:
        positive: The text of one side.
        negative: That of the other.
        factors: What it was made from; empty where the file says nothing of it.
    """

    positive: str
    negative: str
    factors: Factors


@dataclass(frozen=True)
class PairFile:
    """A file of pairs: an object a line (`.jsonl`), or a table whose first line names the columns (`.csv`).

    The fields are `positive` and `negative`, and if known `template`, `persona` and `topic`. Or the folder of a data
    set with columns of these names, others being left alone, as `save_to_disk` of the library datasets writes it.

    Attributes:
        path: Where it lies.
    """

    path: Path

    def pairs(self) -> Iterator[WrittenPair]:
        """The pairs in the order of the file, one at a time.

        Raises:
            RequestError: The file cannot be read, or a line lacks a text or adds a field.
        """
        with readable_errors(self.path):
            for number, row in self._rows():
                yield _checked(self.path, number, row)

    def stamp(self) -> tuple[int, int]:
        """What differs when the file was changed, see `file_stamp`."""
        return file_stamp(self.path)

    def _rows(self) -> Iterator[Row]:
        if self.path.is_dir():
            return dataset_rows(self.path, _TEXTS, _FACTORS)
        if self.path.suffix.lower() == ".csv":
            return csv_rows(self.path)
        return jsonl_rows(self.path, '{"positive": …, "negative": …}')


@dataclass(frozen=True)
class WrittenPairs:
    """All pairs of a file.

    Attributes:
        positive: Texts of one side.
        negative: Texts of the other, in the same order.
        factors: What each pair was made from; None if the file says nothing of it. A factor that only some pairs name
            is empty for the others, which makes them a group.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    factors: tuple[Factors, ...] | None


def open_pairs(path: str | Path) -> PairFile:
    """A file of pairs, looked into as far as its first pair.

    Args:
        path: The file, in UTF-8, or the folder.

    Raises:
        RequestError: It says no format, cannot be read, or does not begin with a pair.
    """
    file = PairFile(user_path(path))
    if file.path.suffix.lower() not in PAIR_FILES and not file.path.is_dir():
        raise RequestError(
            f"{file.path.name!r} says no format",
            expected="pairs in a .jsonl or .csv file, or in the folder of a data set",
        )
    if next(file.pairs(), None) is None:
        raise RequestError(f"{file.path} holds no pairs", expected="at least one, with positive and negative")
    return file


def read_pairs(path: str | Path) -> WrittenPairs:
    """Read all pairs of a file, see `PairFile`.

    Args:
        path: The file, in UTF-8, or the folder.

    Raises:
        RequestError: The file cannot be read, has no pairs, or a line lacks a text or adds a field.
    """
    pairs = list(open_pairs(path).pairs())
    return WrittenPairs(
        positive=tuple(pair.positive for pair in pairs),
        negative=tuple(pair.negative for pair in pairs),
        factors=tuple(pair.factors for pair in pairs) if any(names_factors(pair.factors) for pair in pairs) else None,
    )


def names_factors(factors: Factors) -> bool:
    """Whether anything is known of what a pair was made from."""
    return any(factors.values())


def _checked(path: Path, number: int, row: dict[str, object]) -> WrittenPair:
    if row.pop(MORE_CELLS, None):
        raise RequestError(f"{path}, line {number} has more cells than the first line has columns")
    for field in row.keys() - {*_TEXTS, *_FACTORS}:
        hint = nearest(field, (*_TEXTS, *_FACTORS))
        raise RequestError(f"{place_in(path, number)}: the field {field!r} is not known; {hint}")
    for field in _TEXTS:
        text = row.get(field)
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"{place_in(path, number)}: {field} must be a text that is not empty")
        require_whole(path, number, f"{field} prompt", text)
    if row["positive"] == row["negative"]:
        raise RequestError(
            f"{place_in(path, number)}: positive and negative are the same text",
            expected="two texts that differ in what the contrast is about",
            next_step="correct that pair, or leave it out",
        )
    for field in _FACTORS:
        if not isinstance(row.get(field) or "", str):
            raise RequestError(f"{place_in(path, number)}: {field} must be a text")
    template, persona, topic = (str(row.get(field) or "") for field in _FACTORS)
    return WrittenPair(
        str(row["positive"]), str(row["negative"]), Factors(template=template, persona=persona, topic=topic)
    )
