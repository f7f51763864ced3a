"""Save the view of a screen as a figure or as data."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import RequestError, StoreError
from engine.records.files import FIGURE_FORMATS
from engine.store.unfinished import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Export:
    """The view of a screen, ready to save.

    Attributes:
        name: Default file name without suffix.
        rows: The data, one dictionary per row, all with the same keys.
        draw: Function that draws the figure; None if there is none.
        title: Title in the figure's metadata.
    """

    name: str
    rows: Sequence[dict[str, Any]]
    draw: Callable[[], Figure] | None = None
    title: str = ""

    @property
    def formats(self) -> tuple[str, ...]:
        """The supported file suffixes."""
        return (*(FIGURE_FORMATS if self.draw else ()), ".csv", ".json")


def save_export(export: Export, path: Path, *, replace: bool = False) -> Path:
    """Write a file atomically, in the format of its suffix.

    Args:
        export: The view.
        path: The file.
        replace: Whether to replace an existing file.

    Raises:
        RequestError: The suffix is not supported, or the file exists.
        StoreError: The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in export.formats:
        raise RequestError(f"{path.name!r} has no supported suffix", expected=f"one of {', '.join(export.formats)}")
    if path.exists() and not replace:
        raise RequestError(f"{path} already exists", next_step="press Enter again to replace it, or change the name")
    if suffix in FIGURE_FORMATS and export.draw is not None:
        from engine.plots.style import save_figure

        return save_figure(export.draw, path, title=export.title)
    rows = [{key: _encodable(value) for key, value in row.items()} for row in export.rows]
    content = _as_csv(rows) if suffix == ".csv" else _as_json(rows)
    try:
        write_whole(path, lambda out: out.write(content))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", next_step="free disk space, or choose another folder"
        ) from error
    return path


def _encodable(value: Any) -> Any:  # noqa: ANN401 - any value of a row
    """Escape lone surrogates, which stand for the bytes of a file name that is not UTF-8."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _as_json(rows: Sequence[dict[str, Any]]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(list(rows)), indent=2) + b"\n"
