"""Read contrastive pairs from a JSONL or CSV file or a saved dataset.

Every error names the line or row and the field.
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
"""Suffixes of pair files."""

_TEXTS = ("positive", "negative")
_FACTORS = ("template", "persona", "topic")


@dataclass(frozen=True)
class WrittenPair:
    """A pair as written in a file.

    Attributes:
        positive: The positive prompt.
        negative: The negative prompt.
        factors: Factors of the pair; each is empty if the file does not give it.
    """

    positive: str
    negative: str
    factors: Factors


@dataclass(frozen=True)
class PairFile:
    """A file or saved dataset of pairs.

    A `.jsonl` file has one object per line; a `.csv` file has a header line. The fields are `positive` and `negative`,
    and optionally `template`, `persona` and `topic`. A dataset is a folder written by `save_to_disk` of the `datasets`
    library, with columns of these names; other columns are ignored.

    Attributes:
        path: Path of the file or folder.
    """

    path: Path

    def pairs(self) -> Iterator[WrittenPair]:
        """Yield the pairs in file order, one at a time.

        Raises:
            RequestError: The file cannot be read, or a line lacks a prompt or has an unknown field.
        """
        with readable_errors(self.path):
            for number, row in self._rows():
                yield _checked(self.path, number, row)

    def stamp(self) -> tuple[int, int]:
        """Size and modification time of the file; see `file_stamp`."""
        return file_stamp(self.path)

    def _rows(self) -> Iterator[Row]:
        if self.path.is_dir():
            return dataset_rows(self.path, _TEXTS, _FACTORS)
        if self.path.suffix.lower() == ".csv":
            return csv_rows(self.path)
        return jsonl_rows(self.path, '{"positive": …, "negative": …}')


@dataclass(frozen=True)
class WrittenPairs:
    """Pairs of texts that a caller passes.

    Attributes:
        positive: Positive prompts.
        negative: Negative prompts, in the same order.
        factors: Factors of each pair; None if unknown. If only some pairs give a factor, it is empty for the others,
            which then form one group.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    factors: tuple[Factors, ...] | None


def open_pairs(path: str | Path) -> PairFile:
    """Open a file of pairs and check its first pair.

    Args:
        path: UTF-8 file or dataset folder; see `PairFile`.

    Raises:
        RequestError: The file type is not supported, the file cannot be read, or it does not start with a valid pair.
    """
    file = PairFile(user_path(path))
    if file.path.suffix.lower() not in PAIR_FILES and not file.path.is_dir():
        raise RequestError(
            f"{file.path.name!r} is not a supported file type",
            expected="pairs in a .jsonl or .csv file, or in a dataset folder",
        )
    if next(file.pairs(), None) is None:
        raise RequestError(f"{file.path} contains no pairs", expected="at least one, with positive and negative")
    return file


def names_factors(factors: Factors) -> bool:
    """Whether any factor of a pair is known."""
    return any(factors.values())


def _checked(path: Path, number: int, row: dict[str, object]) -> WrittenPair:
    if row.pop(MORE_CELLS, None):
        raise RequestError(f"{path}, line {number} has more cells than the header has columns")
    for field in row.keys() - {*_TEXTS, *_FACTORS}:
        hint = nearest(field, (*_TEXTS, *_FACTORS))
        raise RequestError(f"{place_in(path, number)}: unknown field {field!r}; {hint}")
    for field in _TEXTS:
        text = row.get(field)
        if text is None:
            raise RequestError(f"{place_in(path, number)}: {field} is missing", expected="both positive and negative")
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"{place_in(path, number)}: {field} must be a non-empty string")
        require_whole(path, number, f"{field} prompt", text)
    if row["positive"] == row["negative"]:
        raise RequestError(
            f"{place_in(path, number)}: positive and negative are the same text",
            expected="two texts that differ in the concept",
            next_step="fix or remove that pair",
        )
    for field in _FACTORS:
        if not isinstance(row.get(field) or "", str):
            raise RequestError(f"{place_in(path, number)}: {field} must be a string")
    template, persona, topic = (str(row.get(field) or "") for field in _FACTORS)
    return WrittenPair(
        str(row["positive"]), str(row["negative"]), Factors(template=template, persona=persona, topic=topic)
    )
