"""Read contrastive pairs from a JSONL or CSV file or a saved dataset.

Every error names the line or row and the field.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from engine.concepts.rows import (
    Row,
    csv_rows,
    dataset_rows,
    file_stamp,
    how_to_convert,
    jsonl_rows,
    place_in,
    readable_errors,
    require_text,
)
from engine.errors import RequestError, nearest
from engine.inputs import user_path
from engine.records.captures import Factors

PAIR_FILES = (".jsonl", ".csv")
"""Suffixes of pair files."""

_TEXTS = ("positive", "negative")
_RESPONSES = ("positive_response", "negative_response")
_FACTORS = ("template", "persona", "topic")


@dataclass(frozen=True)
class WrittenPair:
    """A pair as written in a file.

    Attributes:
        positive: The positive prompt.
        negative: The negative prompt.
        factors: Factors of the pair; each is empty if the file does not give it.
        responses: The responses to the positive and to the negative prompt; empty if the file does not give them.
        line: Number of its line or row.
    """

    positive: str
    negative: str
    factors: Factors
    responses: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True)
class PairFile:
    """A file or saved dataset of pairs.

    A `.jsonl` file has one object per line; a `.csv` file has a header line. The fields are `positive` and `negative`,
    and optionally `template`, `persona` and `topic`, and the responses to the prompts, `positive_response` and
    `negative_response`. A dataset is a folder written by `save_to_disk` of the `datasets` library, with columns of
    these names; other columns are ignored.

    Attributes:
        path: Path of the file or folder.
    """

    path: Path

    def pairs(self) -> Iterator[WrittenPair]:
        """Yield the pairs in file order, one at a time.

        Raises:
            RequestError: The file cannot be read, or a line lacks a prompt or a response, or has an unknown field.
        """
        with readable_errors(self.path):
            answered: bool | None = None
            for number, row in self._rows():
                pair = _checked(self.path, number, row)
                answered = bool(pair.responses) if answered is None else answered
                require_like_first(self.path, number, bool(pair.responses), answered)
                yield pair

    @property
    def answered(self) -> bool:
        """Whether the pairs have responses.

        Raises:
            RequestError: The first pair cannot be read.
        """
        return any(pair.responses for pair in islice(self.pairs(), 1))

    def stamp(self) -> tuple[int, int]:
        """Size and modification time of the file; see `file_stamp`."""
        return file_stamp(self.path)

    def _rows(self) -> Iterator[Row]:
        if self.path.is_dir():
            return dataset_rows(self.path, _TEXTS, (*_FACTORS, *_RESPONSES))
        if self.path.suffix.lower() == ".csv":
            return csv_rows(self.path)
        return jsonl_rows(self.path, '{"positive": …, "negative": …}')


@dataclass(frozen=True)
class WrittenPairs:
    """Pairs of texts that a caller passes.

    Attributes:
        positive: Positive prompts.
        negative: Negative prompts, in the same order.
        factors: Factors of each pair, each empty for all pairs if it is unknown; None if all are.
        positive_responses: A response to each positive prompt; None without responses.
        negative_responses: A response to each negative prompt; None without responses.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    factors: tuple[Factors, ...] | None
    positive_responses: tuple[str, ...] | None = None
    negative_responses: tuple[str, ...] | None = None


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
            next_step=how_to_convert(file.path),
        )
    if next(file.pairs(), None) is None:
        raise RequestError(f"{file.path} contains no pairs", expected="at least one, with positive and negative")
    return file


def named_factors(factors: Factors) -> frozenset[str]:
    """The factors of a pair that are known.

    Example:
        >>> sorted(named_factors(Factors(persona="nurse", template=" ", topic="tea")))
        ['persona', 'topic']
    """
    return frozenset(name for name, value in factors.items() if str(value).strip())


def _checked(path: Path, number: int, row: dict[str, object]) -> WrittenPair:
    for field in row.keys() - {*_TEXTS, *_FACTORS, *_RESPONSES}:
        hint = nearest(field, (*_TEXTS, *_FACTORS, *_RESPONSES))
        raise RequestError(f"{place_in(path, number)}: unknown field {field!r}; {hint}")
    for field in _TEXTS:
        text = row.get(field)
        if text is None:
            raise RequestError(f"{place_in(path, number)}: {field} is missing", expected="both positive and negative")
        require_text(path, number, f"{field} prompt", text)
    responses = _checked_responses(path, number, row)
    if row["positive"] == row["negative"] and len({*responses}) < len(_TEXTS):
        raise RequestError(
            f"{place_in(path, number)}: positive and negative are the same text",
            expected="two texts, or two responses, that differ in the concept",
            next_step="fix or remove that pair",
        )
    for field in _FACTORS:
        if not isinstance(row.get(field), str | None):
            raise RequestError(f"{place_in(path, number)}: {field} must be a string, not {row[field]!r}")
    template, persona, topic = (str(row.get(field) or "") for field in _FACTORS)
    factors = Factors(template=template, persona=persona, topic=topic)
    return WrittenPair(str(row["positive"]), str(row["negative"]), factors, responses, number)


def _checked_responses(path: Path, number: int, row: dict[str, object]) -> tuple[str, ...]:
    given = [row.get(field) for field in _RESPONSES]
    if given == [None, None]:
        return ()
    for field, text in zip(_RESPONSES, given, strict=True):
        require_response(path, number, field, text)
    return tuple(str(text) for text in given)


def require_response(path: Path, number: int, field: str, text: object) -> None:
    """Refuse a response that is missing or empty.

    Raises:
        RequestError: It is.
    """
    if text is None:
        raise RequestError(f"{place_in(path, number)}: {field} is missing", expected="a response to every prompt")
    require_text(path, number, field.replace("_", " "), text)


def require_like_first(path: Path, number: int, answered: bool, first: bool) -> None:
    """Refuse a file of which only some lines have responses.

    Raises:
        RequestError: A line has one, unlike the first, or the other way around.
    """
    if answered is not first:
        raise RequestError(
            f"{place_in(path, number)} has {'a response' if answered else 'no response'}, unlike the first",
            expected="responses in every line, or in none",
        )
