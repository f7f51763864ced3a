"""Delete captures, and what was saved beside them."""

from __future__ import annotations

from pathlib import Path

from engine.errors import Remedy, StoreError
from engine.store.directions import path_of
from engine.store.names import locate
from engine.store.plan import remove_shards


def delete_capture(name: str | Path, *, store: str | Path | None = None) -> list[str]:
    """Delete a capture: its record, its tensors or shards, and directions saved under its name.

    The record goes first: an interrupted deletion leaves tensors that the catalogue shows as having none.

    Args:
        name: A path with or without suffix; a plain name when `store` is given.
        store: The folder.

    Returns:
        Names of the files that were deleted.

    Raises:
        StoreError: There is no such capture, or a file cannot be deleted.
    """
    paths = locate(name, store)
    files = [path for path in (paths.record, paths.tensors, path_of(paths)) if path.exists()]
    if not files and not paths.plan.exists():
        raise StoreError(
            f"there is no capture called {paths.name!r} in the folder {str(paths.store)!r}",
            next_step=Remedy.LIST_CAPTURES,
        )
    try:
        for path in files:
            path.unlink()
        files += remove_shards(paths)
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be deleted: {error.strerror}") from error
    return [path.name for path in files]
