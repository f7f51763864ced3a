"""Delete captures, and the directions and control vectors saved under their names."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from engine.errors import StoreError, nearest
from engine.inputs import user_path
from engine.records.files import VECTOR_FORMATS
from engine.remedies import Remedy
from engine.store.catalog import unknown_capture
from engine.store.directions_catalog import derived_directions, list_directions
from engine.store.directions_header import path_of
from engine.store.locks import folder_lock
from engine.store.names import DIRECTIONS, PLAN, CapturePaths, is_present, listed_name, locate
from engine.store.ownership import foreign_origin
from engine.store.plan import UnopenedPlanError, delete_shards, hold_still, is_own_file, is_own_plan, remove_entry
from engine.store.replace import finish_replacement


def delete_directions(name: str | Path, *, store: str | Path | None = None) -> list[str]:
    """Delete the directions saved under a name and control vectors exported under it, and no capture.

    Args:
        name: The name they were saved under, or a path with or without suffix; a plain name when `store` is given.
        store: The store folder.

    Returns:
        Names of the deleted files.

    Raises:
        StoreError: There are no directions under that name, or the file cannot be deleted.
    """
    paths = locate(name, store)
    _require_directions(paths)  # first, because the lock would create the folder
    with folder_lock(paths.store):
        _require_directions(paths)  # another process may have renamed or deleted them
        files = [path_of(paths), *_exported(paths)]
        try:
            for file in files:
                file.unlink()
        except OSError as error:
            raise _cannot_delete(error) from error
    return [file.name for file in files]


def _require_directions(paths: CapturePaths) -> None:
    if not is_present(path_of(paths)):
        saved = list_directions(paths.store) if paths.store.exists() else []
        raise StoreError(f"there are no directions called {paths.name!r}; {nearest(paths.name, saved)}")


def delete_capture(name: str | Path, *, store: str | Path | None = None) -> list[str]:
    """Delete a capture: record, tensors or shards, an unfinished replacement, and directions and vectors of its name.

    Directions of the capture that were saved under another name stay, and so do directions of its name that come from
    elsewhere, until no capture has the name. The record is deleted first; an interrupted
    deletion leaves tensors that the catalog lists as having no record. The parts of an interrupted causal ranking in
    the user's cache folder are deleted last. Everything that `list_captures` lists can be deleted, damaged or not.
    Links are removed, never followed. The path of a file of directions deletes no more than `delete_directions`.

    Args:
        name: A name as listed, when `store` is given; else a path, with or without suffix.
        store: The store folder.

    Returns:
        Names of the deleted files.

    Raises:
        StoreError: The capture does not exist, another process is capturing it, or a file cannot be deleted.

    Example:
        >>> paths = save_activations(data, "draft")
        >>> delete_capture("draft")
        ['draft.json', 'draft.pt']
    """
    if _names_directions(name, store):
        return delete_directions(name, store=store)
    paths, _, _ = _parts(name, store)  # first, because the lock would create the folder
    finish_replacement(paths)
    with folder_lock(paths.store), contextlib.ExitStack() as held:
        _, files, folders = _parts(name, store)  # another process may have renamed or deleted it
        deleted = _named(files, paths.store)
        for shards in folders:
            with contextlib.suppress(UnopenedPlanError):  # damaged captures can be deleted
                held.enter_context(hold_still(CapturePaths(shards.parent, shards.name)))
        try:
            for path in files:
                remove_entry(path)
            for shards in folders:
                deleted += [path.name for path in _remove_shards(shards)]
            with contextlib.suppress(OSError):  # there is none, or it holds other replacements
                paths.replacement.store.rmdir()
        except OSError as error:
            raise _cannot_delete(error) from error
    with contextlib.suppress(OSError):
        paths.causal_parts.unlink(missing_ok=True)
    return deleted


def _cannot_delete(error: OSError) -> StoreError:
    if error.errno == errno.EPERM:  # as in a folder of several users, where each may only delete files of their own
        return StoreError(
            f"{error.filename} cannot be deleted: {error.strerror}", next_step="ask the owner of the file to delete it"
        )
    denied = error.errno in (errno.EACCES, errno.EROFS)
    return StoreError(
        f"{error.filename} cannot be deleted: {error.strerror}",
        expected=f"a writable folder {Path(error.filename).parent}" if denied else "",
        next_step=Remedy.MAKE_WRITABLE if denied else "delete it yourself",
    )


def capture_files(name: str | Path, *, store: str | Path | None = None) -> list[str]:
    """Names of the files that `delete_capture` would delete; a folder of shards ends with a slash.

    Args:
        name: See `delete_capture`.
        store: The store folder.

    Raises:
        StoreError: The capture does not exist.
    """
    paths, files, folders = _parts(name, store)
    return _named(files, paths.store) + [f"{folder}/" for folder in _named(folders, paths.store)]


def kept_directions(name: str | Path, *, store: str | Path | None = None) -> list[str]:
    """Names of the files that `delete_capture` would keep: directions of the capture under other names, and of others.

    Directions of the capture's name that come from elsewhere are first. The path of a file of directions keeps none.

    Args:
        name: See `delete_capture`.
        store: See `delete_capture`.
    """
    if _names_directions(name, store):
        return []
    folder = user_path(name).parent if store is None else user_path(store)
    plain = user_path(name).name if store is None else str(name)
    with contextlib.suppress(StoreError):  # a damaged capture may have a name that none can have
        paths = locate(plain, folder)
        others = [paths.name] if paths.exist and foreign_origin(paths) else []
        return [f"{other}{DIRECTIONS}" for other in [*others, *derived_directions(paths)]]
    return []


def _names_directions(name: str | Path, store: str | Path | None) -> bool:
    """Whether a name is that of a file of directions, not of a capture."""
    path = user_path(name) if store is None else user_path(store) / name
    return path.name.endswith(DIRECTIONS) and not is_present(path / PLAN)


def _parts(name: str | Path, store: str | Path | None) -> tuple[CapturePaths, list[Path], list[Path]]:
    """The place of a capture, its files, the record first, and its folders of shards.

    They are looked up in the folder, so that no name leads out of it.
    """
    given = user_path(name) if store is None else None
    folder = given.parent if given is not None else user_path(store or "")
    asked = given.name if given is not None else str(name)
    entries = _entries(folder)
    if not asked or asked not in entries.values():  # entries that are not listed have an empty name
        asked = locate(name, store).name
    own = sorted(folder / file_name for file_name, listed in entries.items() if listed == asked)
    files = [path for path in own if path.name.endswith((".json", ".pt"))]
    folders = [path for path in own if path not in files]
    directions = [folder / f"{asked}{DIRECTIONS}"] if f"{asked}{DIRECTIONS}" in entries else []
    paths = CapturePaths(folder, asked)
    directions += _exported(paths)
    if not paths.replacement.store.is_symlink():
        if is_present(paths.replacement.record):  # first: else the replacement could take the place of the capture
            files.insert(0, paths.replacement.record)
        if is_present(paths.replacement.plan):
            folders.append(paths.replacement.shards)
    if (files or folders) and foreign_origin(paths):
        directions = []
    if not files and not directions and not folders:
        raise unknown_capture(asked, paths)
    return paths, files + directions, folders


def _named(files: list[Path], store: Path) -> list[str]:
    """Paths in a store as its user reads them."""
    return [path.relative_to(store).as_posix() for path in files]


def _exported(paths: CapturePaths) -> list[Path]:
    """The files of control vectors under a name."""
    return [path for path in map(paths.vectors, VECTOR_FORMATS) if is_present(path)]


def _entries(folder: Path) -> dict[str, str]:
    """The entries of a store, each with the name that it is listed under."""
    try:
        return {path.name: listed_name(folder, path.name) for path in folder.iterdir()}
    except OSError:
        return {}  # a missing store has no captures


def _remove_shards(folder: Path) -> list[Path]:
    """Delete the shards of a capture, with the plan and the folder; refuse a folder of other files without a plan."""
    if folder.is_symlink():
        folder.unlink()
        return [folder]
    if not _has_plan(folder) and not all(is_own_file(path) for path in folder.iterdir()):
        raise StoreError(f"the folder {folder} holds files that are not shards", next_step="delete it yourself")
    return delete_shards(folder)


def _has_plan(folder: Path) -> bool:
    try:
        return is_own_plan(folder / PLAN)
    except StoreError:
        return False
