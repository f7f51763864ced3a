"""Delete captures and the directions saved under their names."""

from __future__ import annotations

from pathlib import Path

from engine.errors import StoreError
from engine.remedies import Remedy
from engine.store.directions import path_of
from engine.store.names import locate
from engine.store.plan import remove_shards


def delete_capture(name: str | Path, *, store: str | Path | None = None) -> list[str]:
    """Delete a capture: its record, its tensors or shards, and its saved directions.

    The record is deleted first. An interrupted deletion leaves tensors that the catalog lists as having no record.

    Args:
        name: A path with or without suffix; a plain name when `store` is given.
        store: The store folder.

    Returns:
        Names of the deleted files.

    Raises:
        StoreError: The capture does not exist, or a file cannot be deleted.

    Example:
        >>> paths = save_activations(data, "draft")
        >>> delete_capture("draft")
        ['draft.json', 'draft.pt']
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
