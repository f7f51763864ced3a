"""List the captures of a store from their JSON records; loads no torch."""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.errors import StoreError, similar, visible
from engine.inputs import user_path
from engine.records.files import CaptureRecord
from engine.remedies import Advice, Remedy
from engine.store.files import regular_size, require_inside
from engine.store.names import (
    DEFAULT_STORE,
    PLAN,
    REPLACEMENTS,
    UNFINISHED,
    CapturePaths,
    is_present,
    listed_name,
    locate,
    locate_listed,
    shard_files,
    unreadable_store,
)
from engine.store.record import read_record
from engine.store.replace import read_whole

UNFINISHED_SHARDS = "unfinished"
_DENIED = os.strerror(errno.EACCES)
UNDER_THIS_NAME = "under this name"
_RESUME = f"; run the same capture again {UNDER_THIS_NAME} to resume"  # it may have been renamed since


@dataclass(frozen=True)
class CatalogEntry:
    """One capture of a store.

    Attributes:
        name: Name of the capture's files, which counts more than that in its record; control characters are escaped.
        record: The decoded JSON record; None if the capture is unusable.
        problem: Why the capture is unusable; empty if it is usable.
    """

    name: str
    record: CaptureRecord | None
    problem: str = ""


def list_captures(
    store: str | Path = DEFAULT_STORE, *, concept: str | None = None, model: str | None = None
) -> list[CatalogEntry]:
    """List the captures of a store, newest first, unusable ones last.

    Args:
        store: The store folder.
        concept: Only captures of this concept.
        model: Only captures of this model, by alias or id.

    Raises:
        StoreError: The folder does not exist or cannot be read.

    Example:
        >>> [entry.name for entry in list_captures("activations", concept="honesty")]
        ['smollm2_honesty']
    """
    folder = user_path(store)
    try:
        names = capture_names(folder)
    except OSError as error:
        raise unreadable_store(folder, error) from error
    entries = [_entry(folder, name) for name in names]
    wanted = [entry for entry in entries if _matches(entry, concept, model)]
    return sorted(wanted, key=lambda entry: entry.record["created"] if entry.record else "", reverse=True)


def capture_names(folder: Path) -> list[str]:
    """List the names of the captures in a store, without reading them.

    Raises:
        OSError: The folder does not exist or cannot be read.
    """
    return sorted({name for path in folder.iterdir() if (name := listed_name(folder, path.name))})


def unknown_capture(name: str, paths: CapturePaths) -> StoreError:
    """Make the error for a name that no capture has; it names directions of that name, or suggests similar names.

    Args:
        name: The name as given.
        paths: Where the capture would be.
    """
    from engine.store.ownership import only_directions

    hint = only_directions(paths)
    with suppress(OSError):
        hint = hint or similar(name, capture_names(paths.store))
    return StoreError(
        f"there is no capture called {name!r} in the folder {str(paths.store)!r}{hint and f'; {hint}'}",
        next_step=paths.advice(Remedy.LIST_CAPTURES),
    )


def show_capture(name: str | Path, *, store: str | Path | None = None) -> CaptureRecord:
    """Read the record of one capture.

    Args:
        name: A path with or without suffix; a plain name when `store` is given.
        store: The store folder.

    Raises:
        StoreError: The capture does not exist or is unusable.
    """
    paths = locate(name, store)
    return read_whole(paths, partial(_show, paths))


def _show(paths: CapturePaths) -> CaptureRecord:
    if not paths.exist:
        raise unknown_capture(paths.name, paths)
    entry = _entry(paths.store, paths.name)
    if entry.record is None:
        denied = is_present(paths.record) and not os.access(paths.record, os.R_OK)
        step: Remedy | Advice = Remedy.ASK_TO_READ if denied else Remedy.CAPTURE_AGAIN
        if paths.unfinished:
            step = paths.advice(Remedy.RESUME_UNDER_NAME)
        problem = entry.problem.removesuffix(_RESUME)  # the next step says it
        raise StoreError(f"the capture {paths.name!r} cannot be used: {problem}", next_step=step)
    return entry.record


def is_damage(problem: str) -> bool:
    """Whether the problem of a capture is damage, not unfinished shards or a file that the user may not read.

    Example:
        >>> is_damage("mine.pt is missing"), is_damage("unfinished: 1 shard saved so far")
        (True, False)
    """
    return not (problem.startswith(UNFINISHED_SHARDS) or problem.endswith(f"cannot be read: {_DENIED}"))


def unfinished_saves(store: str | Path) -> list[Path]:
    """List the temporary files of killed saves, and the folders of unfinished replacements.

    They are hidden, and safe to delete when no save is running. Linked folders are not searched.
    """
    folder = user_path(store)
    in_shards = (path for path in folder.glob(f"*/.*{UNFINISHED}") if not path.parent.is_symlink())
    linked = (folder / REPLACEMENTS).is_symlink()
    replacements = [] if linked else [plan.parent for plan in folder.glob(f"{REPLACEMENTS}/*/{PLAN}")]
    return sorted([*folder.glob(f".*{UNFINISHED}"), *in_shards, *replacements])


def missing_part(paths: CapturePaths, size: int | None) -> str:
    """Say what makes a capture unusable; empty if it is complete.

    Args:
        paths: Files of the capture.
        size: Bytes of the tensors according to the record; None without a record.
    """
    if paths.in_shards:
        return _missing_shards(paths, size)
    try:
        found = regular_size(paths.tensors)
    except FileNotFoundError:
        return f"{paths.tensors.name} is missing"
    except StoreError as error:
        return error.problem
    if size is None:
        return "it has no record: the save was interrupted, or the .pt was copied without its JSON"
    return "" if found == size else f"{paths.tensors.name} has {found} bytes, its record says {size}"


def _missing_shards(paths: CapturePaths, size: int | None) -> str:
    try:
        sizes = [_shard_size(paths, path) for path in shard_files(paths)]
    except StoreError as error:
        return error.problem
    except OSError as error:  # deleted since the folder was listed
        return f"its shards cannot be read: {error.strerror}"
    plural = "" if len(sizes) == 1 else "s"
    if size is None:
        return f"{UNFINISHED_SHARDS}: {len(sizes)} shard{plural} saved so far{_RESUME}"
    found = sum(sizes)
    return "" if found == size else f"its shards have {found} bytes, its record says {size}"


def _shard_size(paths: CapturePaths, path: Path) -> int:
    if path.is_symlink():
        require_inside(path, paths.store)
    return regular_size(path)


def _entry(folder: Path, name: str) -> CatalogEntry:
    try:
        paths = locate_listed(name, folder)
        return read_whole(paths, partial(_read_entry, paths))
    except StoreError as error:
        return CatalogEntry(name, None, visible(error.problem))


def _read_entry(paths: CapturePaths) -> CatalogEntry:
    record = read_record(paths.record) if is_present(paths.record) else None
    problem = missing_part(paths, record["data"]["bytes"] if record else None)
    return CatalogEntry(paths.name, None if problem else record, problem)


def _matches(entry: CatalogEntry, concept: str | None, model: str | None) -> bool:
    record = entry.record
    if record is None:
        return concept is None and model is None
    provenance = record["provenance"]
    names = {provenance["alias"], provenance["model"]} if provenance else set()
    return (concept is None or record["concept"] == concept) and (model is None or model in names)
