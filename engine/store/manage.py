"""Rename captures, with the directions and control vectors saved under their names."""

from __future__ import annotations

import errno
from contextlib import ExitStack, suppress
from pathlib import Path

from engine.errors import StoreError
from engine.records.files import VECTOR_FORMATS, CaptureRecord
from engine.remedies import Remedy
from engine.store.catalog import unknown_capture
from engine.store.directions import load_directions, write_directions
from engine.store.directions_catalog import derived_directions
from engine.store.directions_header import path_of, read_header
from engine.store.locks import folder_lock
from engine.store.names import CapturePaths, is_present, locate
from engine.store.ownership import foreign_origin, require_free
from engine.store.plan import hold_still
from engine.store.record import encode_record, read_record
from engine.store.replace import finish_replacement, put_in_place
from engine.store.unfinished import claim


def rename_capture(name: str | Path, new: str, *, store: str | Path | None = None) -> CapturePaths:
    """Rename a capture: its record, its tensors or shards, its saved directions and exported control vectors.

    The new record is written first, then the tensors move, and the old record is deleted last. A killed rename leaves
    the capture complete under one of the names; `verify_store` explains what is left under the other. An unfinished
    replacement goes with its capture. Directions that were saved under another name keep it, and name their capture as
    it is called now. Directions that have the name of a capture but come from elsewhere stay under the old name.

    Args:
        name: A path with or without suffix; a plain name when `store` is given.
        new: The new name, in the same store.
        store: The store folder.

    Returns:
        Paths of the files under the new name.

    Raises:
        StoreError: The capture does not exist or is damaged, the new name is taken or invalid, or another process is
            capturing it now.

    Example:
        >>> paths = save_activations(data, "draft")
        >>> rename_capture("draft", "final").tensors.name
        'final.pt'
        >>> delete_capture("final")
        ['final.json', 'final.pt']
    """
    old = locate(name, store)
    target = locate(new, old.store)
    finish_replacement(old)
    _require_present(old)  # first, because the lock would create the folder
    with folder_lock(old.store), ExitStack() as held:
        _require_present(old)  # another process may have renamed or deleted it
        _require_free(target)
        made: list[Path] = []
        try:
            put_in_place(old)  # one that has been completed since
            for place in (old, old.replacement):
                if place.in_shards:
                    held.enter_context(hold_still(place))
            record = read_record(old.record) if old.record.exists() else None
            own = not (old.exist and foreign_origin(old))
            derived = derived_directions(old) if record is not None else []
            if own and path_of(old).exists():
                made.append(_write_directions(old, target, old.name, target.name, replace=False))
            if record is not None:
                made.append(_write_record(record, target))
            _move(old, target, with_directions=own)
            _follow(derived, target)
        except (OSError, StoreError) as error:
            if not is_present(target.tensors) and not is_present(target.plan):
                _undo(made)
            if isinstance(error, OSError):
                raise _cannot_rename(old, error) from error
            raise
    return target


def _undo(made: list[Path]) -> None:
    """Delete what a failed rename has written: the capture has its old name still."""
    with suppress(OSError):
        for path in made:
            path.unlink()


def _cannot_rename(old: CapturePaths, error: OSError) -> StoreError:
    advice: Remedy | str = Remedy.MAKE_WRITABLE if error.errno in (errno.EACCES, errno.EROFS) else ""
    if error.errno == errno.EPERM:  # as in a folder of several users, where each may only move files of their own
        advice = "ask the owner of its files to rename it"
    return StoreError(
        f"{old.name!r} cannot be renamed: {error.strerror or error}",
        expected=f"files in {old.store} that can be renamed and deleted",
        next_step=advice,
    )


def _follow(derived: list[str], target: CapturePaths) -> None:
    """Make the directions that are saved under other names name their capture as it is called now."""
    for name in derived:
        with suppress(StoreError):  # a damaged file cannot be rewritten, and the capture has been renamed
            paths = locate(name, target.store)
            _write_directions(paths, paths, read_header(path_of(paths))["capture"], target.name, replace=True)


def _write_directions(old: CapturePaths, new: CapturePaths, capture: str, renamed: str, *, replace: bool) -> Path:
    """Write directions, and name their capture as it is called now, if they come from the one that is renamed."""
    found, _ = load_directions(old.name, store=old.store)
    header = read_header(path_of(old))
    if header["capture"] == capture:
        header["capture"] = renamed
    return write_directions(found, header, new, replace=replace)


def _write_record(record: CaptureRecord, target: CapturePaths) -> Path:
    from engine.store.write import write_atomically

    write_atomically(target.record, encode_record(_renamed(record, target)), replace=False)
    return target.record


def _require_present(paths: CapturePaths) -> None:
    if not paths.exist and not path_of(paths).exists():
        raise unknown_capture(paths.name, paths)


def _require_free(target: CapturePaths) -> None:
    if not target.exist and path_of(target).exists():
        raise StoreError(
            f"{path_of(target)} already exists", next_step="choose another name, or delete those directions first"
        )
    try:
        require_free(target, force=False)
    except StoreError as error:  # its advice is for a capture
        taken = error.next_step is Remedy.RENAME_OR_REPLACE
        raise StoreError(
            error.problem,
            next_step="choose another name, or delete that capture first" if taken else Remedy.MAKE_WRITABLE,
        ) from None
    for path in (target.shards, *map(target.vectors, VECTOR_FORMATS)):
        if path.exists():
            raise StoreError(f"{path} already exists", next_step="choose another name")


def _renamed(record: CaptureRecord, target: CapturePaths) -> CaptureRecord:
    record["name"] = target.name
    record["data"]["name"] = f"{target.name}/" if record["data"]["name"].endswith("/") else target.tensors.name
    return record


def _move(old: CapturePaths, target: CapturePaths, *, with_directions: bool) -> None:
    if old.in_shards:
        old.shards.rename(target.shards)
    elif old.tensors.exists():
        claim(old.tensors, target.tensors)
    for file_format in VECTOR_FORMATS if with_directions else ():
        if is_present(old.vectors(file_format)):
            claim(old.vectors(file_format), target.vectors(file_format))
    with suppress(OSError):  # nothing to resume, or the cache folder cannot be written
        old.causal_parts.replace(target.causal_parts)
    old.record.unlink(missing_ok=True)
    if with_directions:
        path_of(old).unlink(missing_ok=True)
    if is_present(old.replacement.plan):
        old.replacement.shards.rename(target.replacement.shards)
