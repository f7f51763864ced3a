"""Read text, JSONL and CSV files and saved datasets row by row.

Rows are streamed, so files may be larger than memory.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from engine.errors import RequestError, first_line
from engine.regular import IrregularFileError, open_regular_file

Row = tuple[int, dict[str, object]]
"""Number of a line or row, from 1, and its fields."""

_SHOWN = 40  # characters of a value in an error message

_SEPARATORS = {";": "semicolons", "\t": "tabs"}
_ONE_OBJECT_PER_LINE = "write one object per line, without brackets around all and commas between them"
_WITH_COMMAS = "save it as CSV with commas"

_MORE_CELLS = "\0"
"""Field for the cells of a CSV line beyond the columns of the header."""


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a UTF-8 file for reading.

    Args:
        path: Path of the file.
        newline: As for `open`.

    Raises:
        RequestError: The path is a folder, a named pipe, a device or the like.
        OSError: The file cannot be opened.
    """
    try:
        return io.TextIOWrapper(open_regular_file(path), encoding="utf-8-sig", newline=newline)
    except IrregularFileError as error:
        raise RequestError(f"{path} is {error.strerror}", expected="a file", next_step="save it to a file") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.removesuffix("\n")


def jsonl_rows(path: Path, expected: str) -> Iterator[Row]:
    """Yield the objects of a JSONL file.

    Args:
        path: Path of the file.
        expected: Expected form of a line, for the error message.

    Raises:
        RequestError: A line is not a JSON object, or has a key twice.
    """
    for number, line in text_lines(path):
        try:
            row = json.loads(line, object_pairs_hook=_with_unique_keys)
        except (ValueError, RecursionError) as error:  # ValueError: also for a number of thousands of digits
            if number == 1 and _opens_array(line):
                raise _not_lines(path, expected) from error
            raise RequestError(
                f"{path}, line {number} is not valid JSON: {error}", next_step="fix that line"
            ) from error
        if isinstance(row, list) and any(isinstance(one, dict) for one in row):
            raise _not_lines(path, expected)
        if not isinstance(row, dict):
            raise RequestError(f"{path}, line {number} is not a JSON object", expected=expected)
        yield number, row


def _opens_array(line: str) -> bool:
    """Whether a line begins a JSON array of objects, or an object, that continues on the next line."""
    return line.strip() == "{" or "".join(line.split())[:2] in ("[", "[{")


def _not_lines(path: Path, expected: str) -> RequestError:
    return RequestError(
        f"{path} is JSON, but not one object per line",
        expected=f"lines such as {expected}",
        next_step=_ONE_OBJECT_PER_LINE,
    )


def how_to_convert(path: Path) -> str:
    """How to turn a file of a type that is not supported into one that is; empty if nobody knows.

    Example:
        >>> how_to_convert(Path("pairs.txt"))
        ''
    """
    return {".json": f"{_ONE_OBJECT_PER_LINE}, in a file ending in .jsonl", ".tsv": _WITH_COMMAS}.get(
        path.suffix.lower(), ""
    )


def csv_columns(path: Path, names: Sequence[str]) -> list[str]:
    """The columns of a CSV file, from the names in its header line.

    Raises:
        RequestError: They are separated by something other than commas.
    """
    for separator, called in _SEPARATORS.items():
        if len(names) == 1 and separator in names[0]:
            raise RequestError(f"{path} has {called} between its columns", expected="commas", next_step=_WITH_COMMAS)
    return [*names]


def _with_unique_keys(fields: list[tuple[str, object]]) -> dict[str, object]:
    """The fields of a JSON object; JSON would take the last of two with one key."""
    row = dict(fields)
    if len(row) < len(fields):
        raise ValueError(f"the key {_repeated([key for key, _ in fields])!r} appears twice")
    return row


def _repeated(names: Sequence[str]) -> str:
    return next((name for name in names if names.count(name) > 1), "")


def csv_rows(path: Path, required: str = "") -> Iterator[Row]:
    """Yield the rows of a CSV file with a header line.

    Args:
        path: Path of the file.
        required: Name of a required column.

    Raises:
        RequestError: The columns are not separated by commas, the required one is missing, two have one name, or a row
            has more cells than columns or a quote that does not end.
    """
    with open_text(path, newline="") as file:
        reader: csv.DictReader[str] = csv.DictReader(file, restkey=_MORE_CELLS, strict=True)
        columns = csv_columns(path, reader.fieldnames or [])
        if required and required not in columns:
            raise RequestError(f"{path} has no column {required!r}", expected=f"{required!r} in the header line")
        if twice := _repeated(columns):
            raise RequestError(f"{path} has two columns {twice!r}", expected="one column of each name")
        read = reader.line_num
        try:
            for row in reader:
                read = reader.line_num
                if row.pop(_MORE_CELLS, None):
                    raise RequestError(
                        f"{path}, line {read} has more cells than the header has columns",
                        expected='a text with commas in quotes, such as "Hello, you"',
                    )
                yield read, dict(row)
        except csv.Error as error:
            raise _not_csv(path, read + 1, error) from error


def _not_csv(path: Path, line: int, error: csv.Error) -> RequestError:
    return RequestError(
        f"{path}, line {line} is not valid CSV: {error}", expected='a text in quotes that end, and "" for a quote in it'
    )


def file_stamp(path: Path) -> tuple[int, int]:
    """Total size and latest modification time of a file or of the files in a folder.

    Compare two stamps to detect a change. The size is in bytes, the time in nanoseconds.

    Raises:
        RequestError: The path cannot be read.
    """
    try:
        files = [one.stat() for one in path.iterdir()] if path.is_dir() else [path.stat()]
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", next_step="check the path") from error
    return sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)


def place_in(path: Path, number: int) -> str:
    """Name a line of a file, or a row of a dataset, for an error message."""
    return f"{lines_of(path)} {number}"


def lines_of(path: Path) -> str:
    """What comes before the number of a line or row in its name; see `place_in`."""
    return f"{path}, {'row' if path.is_dir() else 'line'}"


def text_problem(text: object) -> str:
    r"""What is wrong with a value that should be a text to read; empty if nothing is.

    Example:
        >>> text_problem("\n"), text_problem(3), text_problem("Tell me a story")
        ("is only white space: '\\n'", 'is not a text: 3', '')
    """
    if not isinstance(text, str):
        return f"is not a text: {str(text)[:_SHOWN]}"
    if text.strip():
        return ""
    return f"is only white space: {text[:_SHOWN]!r}" if text else "is empty"


def require_text(path: Path, number: int, what: str, text: object) -> str:
    """Refuse a value that is no text, is empty or only white space, or contains a lone surrogate.

    Args:
        path: Path of the file.
        number: Number of the line or row.
        what: What the message calls the text.
        text: The value.

    Raises:
        RequestError: It is one of these.
    """
    if problem := text_problem(text):
        raise RequestError(
            f"{place_in(path, number)}: the {what} {problem}",
            expected="a text that is more than white space",
            next_step=f"fix or remove that {'row' if path.is_dir() else 'line'}",
        )
    require_whole_characters(path, number, what, str(text))
    return str(text)


def require_whole_characters(path: Path, number: int, field: str, text: str) -> None:
    """Reject text with a lone surrogate, which JSON can express and UTF-8 cannot.

    Raises:
        RequestError: The text contains a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{place_in(path, number)}: the {field} contains a lone surrogate", expected="text that UTF-8 can encode"
        ) from error


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into a `RequestError`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except csv.Error as error:  # `csv_rows` names the other lines
        raise _not_csv(path, 1, error) from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error}", next_step="check the path") from error


def not_utf8(path: Path) -> RequestError:
    """The error for a file that is not UTF-8; it names the first line that is not."""
    where = ""
    with suppress(OSError), open_regular_file(path) as file:
        lines = (number for number, line in enumerate(file, start=1) if not _is_utf8(line))
        where = f", line {next(lines, 1)}"
    return RequestError(f"{path}{where} is not UTF-8", expected="text in UTF-8", next_step="save the file in UTF-8")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def dataset_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a saved dataset, with the requested columns only.

    Args:
        path: Folder of one split, as written by `save_to_disk`.
        required: Required columns.
        optional: Columns to include if present.

    Raises:
        RequestError: The `datasets` library is not installed, the folder is not a dataset, or the dataset has splits
            or lacks a required column.
    """
    _require_one_split(path)
    if not any(path.glob("*.arrow")):
        return  # the library raises an error for a dataset without rows
    table = _open(path)
    for column in required:
        if column not in table.column_names:
            columns = ", ".join(table.column_names) or "none"
            raise RequestError(f"{path} has no column {column!r}", expected=f"{column!r} among its columns: {columns}")
    wanted = [column for column in (*required, *optional) if column in table.column_names]
    yield from enumerate(table.select_columns(wanted), start=1)


def dataset_columns(path: Path) -> set[str]:
    """Column names of a saved dataset; empty for a dataset without rows.

    Raises:
        RequestError: The `datasets` library is not installed, the folder is not a dataset, or the dataset has splits.
    """
    _require_one_split(path)
    return {*_open(path).column_names} if any(path.glob("*.arrow")) else set()


def is_dataset(path: Path) -> bool:
    """Whether a path is a saved dataset, with or without splits."""
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _require_one_split(path: Path) -> None:
    if (path / "dataset_info.json").exists():
        return
    splits = sorted(found.parent for found in path.glob("*/dataset_info.json"))
    if splits:
        raise RequestError(
            f"{path} has splits: {', '.join(split.name for split in splits)}",
            expected="the folder of one split",
            next_step=f"use {splits[0]}",
        )
    raise RequestError(
        f"{path} is a folder but not a saved dataset",
        expected="a file, or a folder written by save_to_disk of the datasets library",
    )


def _open(path: Path) -> Any:  # noqa: ANN401 - a Dataset; the library is untyped
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise RequestError(
            f"reading {path} requires the datasets library, which is not installed",
            next_step="pip install 'layerscope[datasets]'",
        ) from error
    for part in path.iterdir():
        if not (part.is_file() or part.is_dir()):
            raise RequestError(f"{part} is not a regular file", expected="a folder written by save_to_disk")
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many types for a damaged file
        raise RequestError(f"{path} cannot be read: {first_line(error)}", next_step="save it again") from error
