"""Lines of text, JSONL and CSV files, one at a time: files may be larger than memory.

Knows formats; does not know what the rows mean. Imports no torch.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RequestError

Row = tuple[int, dict[str, object]]
"""Number of a line, from 1, and its fields."""

MORE_CELLS = "\0"
"""The field that holds what a line of a CSV file has beyond the columns that the first line names."""


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold some text, with their numbers from 1."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.removesuffix("\n")


def jsonl_rows(path: Path, expected: str) -> Iterator[Row]:
    """Objects of a JSONL file.

    Args:
        path: The file.
        expected: What a line should look like, for the message when one does not.

    Raises:
        RequestError: A line is not an object in JSON.
    """
    for number, line in text_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(f"{path}, line {number} is not JSON: {error}", next_step="correct that line") from error
        if not isinstance(row, dict):
            raise RequestError(f"{path}, line {number} is not an object", expected=expected)
        yield number, row


def csv_rows(path: Path, required: str = "") -> Iterator[Row]:
    """Lines of a CSV file whose first line names the columns.

    Args:
        path: The file.
        required: A column that must be there.

    Raises:
        RequestError: It is not.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader: csv.DictReader[str] = csv.DictReader(file, restkey=MORE_CELLS, strict=True)
        if required and required not in (reader.fieldnames or []):
            raise RequestError(
                f"{path} has no column {required!r}", expected="it in the first line, which names columns"
            )
        for row in reader:
            yield reader.line_num, dict(row)


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change: what differs when a file, or one of the files of a folder, was changed.

    Raises:
        RequestError: It is gone.
    """
    try:
        files = [one.stat() for one in path.iterdir()] if path.is_dir() else [path.stat()]
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", next_step="check the path") from error
    return sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)


def place_in(path: Path, number: int) -> str:
    """What an error calls a line of a file, or a row of a data set."""
    return f"{path}, {'row' if path.is_dir() else 'line'} {number}"


def require_whole_characters(path: Path, number: int, field: str, text: str) -> None:
    """Refuse a text with half a character, which JSON can write and UTF-8 cannot.

    Raises:
        RequestError: It has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{place_in(path, number)}: the {field} holds half a character: {error.reason}") from error


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into an error for people."""
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} cannot be read: {error}", next_step="check the path; it must be UTF-8") from error
