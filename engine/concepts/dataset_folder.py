"""Rows of a data set in a folder, one at a time: the library datasets leaves them on the disk.

Knows what a folder of `save_to_disk` looks like; does not know what the rows mean. Imports no torch, and the library
when there is something to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import RequestError, first_line

if TYPE_CHECKING:
    from engine.concepts.rows import Row


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
