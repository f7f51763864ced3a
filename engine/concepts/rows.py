"""Lines of text, JSONL and CSV files, one at a time: files may be larger than memory.

Knows formats; does not know what the rows mean. Imports no torch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import RequestError, first_line

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


def dataset_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a data set, without the columns that nobody asked for.

    Args:
        path: The folder that `save_to_disk` wrote, of one split.
        required: Columns that must be there.
        optional: Columns that may be.

    Raises:
        RequestError: The library is not installed, this is no such folder, or it has several splits or lacks a column.
    """
    _require_one_split(path)
    if not any(path.glob("*.arrow")):
        return  # no rows, of which the library makes an error of its own
    table = _open(path)
    for column in required:
        if column not in table.column_names:
            columns = ", ".join(table.column_names) or "none"
            raise RequestError(
                f"{path} has no column {column!r}", expected=f"it among the columns, which are: {columns}"
            )
    wanted = [column for column in (*required, *optional) if column in table.column_names]
    yield from enumerate(table.select_columns(wanted), start=1)


def dataset_columns(path: Path) -> set[str]:
    """Names of the columns of a data set.

    Raises:
        RequestError: As `dataset_rows`.
    """
    _require_one_split(path)
    return {*_open(path).column_names} if any(path.glob("*.arrow")) else set()


def is_dataset(path: Path) -> bool:
    """Whether a path is the folder of a data set, or of one with splits."""
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _require_one_split(path: Path) -> None:
    if (path / "dataset_info.json").exists():
        return
    splits = sorted(found.parent for found in path.glob("*/dataset_info.json"))
    if splits:
        raise RequestError(
            f"{path} has splits: {', '.join(split.name for split in splits)}",
            expected="the folder of one of them",
            next_step=f"give {splits[0]}",
        )
    raise RequestError(
        f"{path} is a folder, but not that of a data set",
        expected="a file, or a folder that save_to_disk of the library datasets wrote",
    )


def _open(path: Path) -> Any:  # noqa: ANN401 - a Dataset, for which the library declares no types
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise RequestError(
            f"{path} is read with the library datasets, which is not installed",
            next_step="pip install 'layerscope[datasets]'",
        ) from error
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged file makes the library say
        raise RequestError(f"{path} cannot be read: {first_line(error)}", next_step="save it again") from error
