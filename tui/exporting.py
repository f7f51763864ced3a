"""Save what is seen: as a picture, or as data. Knows files and formats; imports matplotlib for a picture alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import RequestError, StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Export:
    """What a screen shows, for a file.

    Attributes:
        name: The file's name unless told, without suffix.
        rows: As data, a dictionary a row, all with the same keys.
        draw: Makes the picture; None where there is none.
        title: Kept inside a picture.
    """

    name: str
    rows: Sequence[dict[str, Any]]
    draw: Callable[[], Figure] | None = None
    title: str = ""

    @property
    def formats(self) -> tuple[str, ...]:
        """Suffixes that it can be saved under."""
        return (*(_PICTURES if self.draw else ()), ".csv", ".json")


def save_export(export: Export, path: Path, *, replace: bool = False) -> Path:
    """Write a file; the suffix says how.

    Args:
        export: What to save.
        path: Where to.
        replace: Whether a file that is there may be replaced.

    Raises:
        RequestError: Another suffix, or the file is there.
        StoreError: It cannot be written; nothing half-written stays.
    """
    suffix = path.suffix.lower()
    if suffix not in export.formats:
        raise RequestError(f"{path.name!r} says no format", expected=f"a name ending in {', '.join(export.formats)}")
    if path.exists() and not replace:
        raise RequestError(f"{path} is already there", next_step="press Enter again to replace it, or change the name")
    if suffix in _PICTURES and export.draw is not None:
        from engine.plots.style import save_figure

        return save_figure(export.draw, path, title=export.title)
    content = _as_csv(export.rows) if suffix == ".csv" else _as_json(export.rows)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", next_step="make room, or choose another folder"
        ) from error
    return path


def _as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _as_json(rows: Sequence[dict[str, Any]]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(list(rows)), indent=2) + b"\n"
