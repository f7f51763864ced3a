"""Which capture the directions under a name belong to, and whether the name is free for another one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from engine.errors import StoreError
from engine.records.files import CaptureRecord, DirectionsHeader, not_found_warnings
from engine.remedies import Remedy
from engine.store.directions_header import path_of, read_header
from engine.store.files import unwritable_part
from engine.store.names import CapturePaths, is_present, locate
from engine.store.record import read_record

log = logging.getLogger(__name__)

_SAME = ("model", "revision", "site", "positions")  # of a capture and the directions extracted from it


def origin_of(header: DirectionsHeader, paths: CapturePaths) -> str:
    """Say where directions come from, if not from the capture of their name; else empty.

    Args:
        header: The header of the directions.
        paths: The name that they have, or will have.
    """
    if "imported" in header:
        return f"the file {header['imported']['file']}" if header["imported"]["file"] else "imported vectors"
    if header["capture"] != paths.name:
        return f"the capture {header['capture']!r}"
    return "another capture" if differ(header, find_own_record(paths)) else ""


def find_own_record(paths: CapturePaths) -> CaptureRecord | None:
    """Read the record of a capture; None if there is none, or a damaged one."""
    try:
        return read_record(paths.record) if is_present(paths.record) else None
    except StoreError:
        return None


def differ(header: DirectionsHeader, record: CaptureRecord | None) -> bool:
    """Whether directions that name a capture cannot come from it; those of unknown provenance can.

    Args:
        header: The header of the directions.
        record: The record of the capture; None if it is unknown.
    """
    if record is None:
        return False
    extracted, captured = header["provenance"], record["provenance"]
    if record["kind"] != "contrast":
        return True
    if extracted is None or captured is None:
        return False
    concept = header["concept"] != record["concept"]
    return concept or any(extracted.get(key) != captured.get(key) for key in _SAME)


def foreign_origin(paths: CapturePaths) -> str:
    """Say where the directions saved under a name come from, if not from the capture of that name.

    Empty if there are none, and for a damaged file, which counts as that of the name.
    """
    if not is_present(paths.directions):
        return ""
    try:
        return origin_of(read_header(path_of(paths)), paths)
    except StoreError:
        return ""


def only_directions(paths: CapturePaths) -> str:
    """Say that a name without a capture is that of saved directions; empty if there are none.

    Example:
        >>> path = save_directions({16: extract_direction(data, 16)}, "only", store="runs", capture="mine")
        >>> only_directions(locate("only", "runs"))
        "it is the name of saved directions, which come from the capture 'mine'"
    """
    if not is_present(paths.directions):
        return ""
    origin = foreign_origin(paths)
    return f"it is the name of saved directions{', which come from ' if origin else ''}{origin}"


def origin_note(name: str | Path, *, store: str | Path | None = None) -> str:
    """Say of saved directions that they do not come from the capture of their name; empty if they do.

    Args:
        name: A name or path, as for `find_directions`.
        store: The store folder; `name` is then a plain name.

    Example:
        >>> path = save_directions({16: extract_direction(data, 16)}, "noted", store="runs", capture="mine")
        >>> origin_note("noted", store="runs")
        "the directions noted come from the capture 'mine'"
    """
    paths = locate(name, store)
    origin = foreign_origin(paths)
    if not origin:
        return ""
    if paths.exist:
        return f"the directions saved as {paths.name} come from {origin}, not from the capture {paths.name}"
    return f"the directions {paths.name} come from {origin}"


def origin_warning(name: str | Path, *, store: str | Path | None = None) -> str:
    """As `origin_note`, but only if there is a capture of that name, which the directions could be taken for."""
    return origin_note(name, store=store) if locate(name, store).exist else ""


def direction_warnings(name: str | Path, *, store: str | Path | None = None) -> list[str]:
    """Warn before saved directions, or those of a capture, are used: of their origin, and if they may be noise.

    Args:
        name: A name or path, as for `find_directions`.
        store: The store folder; `name` is then a plain name.
    """
    origin = origin_warning(name, store=store)
    record = _source_record(locate(name, store))
    return [*([origin] if origin else []), *(not_found_warnings(record) if record else [])]


def _source_record(paths: CapturePaths) -> CaptureRecord | None:
    """The record of the capture that directions come from; None if it is not in their store."""
    if not is_present(paths.directions):
        return find_own_record(paths)
    try:
        header = read_header(path_of(paths))
        source = locate(header["capture"], paths.store)
    except StoreError:
        return None
    record = None if origin_of(header, source) else find_own_record(source)
    return record if record and record["kind"] == "contrast" else None


def require_own_name(header: DirectionsHeader, paths: CapturePaths, source: CapturePaths | None = None) -> None:
    """Refuse to save directions under the name of a capture that they do not come from.

    Args:
        header: The header of the directions.
        paths: The name to save them under.
        source: Their capture, if it is known.

    Raises:
        StoreError: A capture has the name, and the directions come from elsewhere.
    """
    if not paths.exist:
        return
    elsewhere = source is not None and source.store.resolve() != paths.store.resolve()
    if source is not None and source.name == paths.name and not elsewhere:
        return
    origin = origin_of(header, paths)
    if not origin and source is not None:
        origin = f"the capture of that name in {source.store}"
    if origin:
        raise StoreError(
            f"{paths.name} is the name of a capture, and these directions come from {origin}",
            expected="a name that no capture has, or that of their own capture",
            next_step=Remedy.RENAME_DIRECTIONS,
        )


def drop_directions(paths: CapturePaths) -> None:
    """Delete the directions of a capture that is being replaced, with the control vectors exported from them.

    Directions that come from elsewhere stay.
    """
    origin = foreign_origin(paths)
    if origin:
        log.warning("the directions saved as %s stay: they come from %s", paths.name, origin)
    else:
        paths.unlink_directions()


def require_amendable(paths: CapturePaths) -> None:
    """Refuse to measure what cannot be kept in the record of a capture, before any work is done.

    Raises:
        StoreError: The store cannot be written.
    """
    if not os.access(paths.store, os.W_OK):
        raise StoreError(
            f"the result could not be kept: {paths.store} is not a writable folder",
            expected="a store where the record of the capture can be changed",
            next_step=Remedy.MAKE_WRITABLE_OR_COPY,
        )


def require_writable(paths: CapturePaths) -> None:
    """Refuse a folder that cannot be written, or created.

    Raises:
        StoreError: It cannot.
    """
    if blocked := unwritable_part(paths.store):
        raise StoreError(f"{blocked} is not a writable folder", next_step=Remedy.CHOOSE_FOLDER)


def require_free(paths: CapturePaths, *, force: bool, resume: bool = False, extracted: bool = False) -> None:
    """Refuse a taken name or a read-only folder before any work is done.

    Directions under a name without a capture take the name too: a new capture cannot be theirs.

    Args:
        paths: Where the capture will be saved.
        force: Allow replacing an existing capture.
        resume: Allow an unfinished capture in shards, or an unfinished replacement, because it can be resumed.
        extracted: Allow directions that do not come from elsewhere: the states of a contrast are in memory, and they
            may have been extracted from those.

    Raises:
        StoreError: The name is taken and `force` is off, directions from elsewhere have it, or the folder cannot be
            written.
    """
    require_writable(paths)
    complete, started = (paths.tensors, paths.record), (paths.plan, paths.replacement.plan)
    taken = [str(path) for path in (complete if resume else complete + started) if is_present(path)]
    if taken and not force and not (resume and paths.replacement.unfinished):
        raise StoreError(
            f"there is already a capture called {paths.name} ({', '.join(taken)})",
            next_step=Remedy.RENAME_OR_REPLACE,
        )
    if not paths.exist:
        _require_no_directions(paths, force=force or extracted)


def _require_no_directions(paths: CapturePaths, *, force: bool) -> None:
    """Refuse the name of directions that have no capture.

    With `force`, only those that name another capture, or come from a file: the others are of an earlier capture, or
    of one whose states are in memory and will be saved now.
    """
    origin = foreign_origin(paths)
    if origin or (not force and is_present(paths.directions)):
        raise StoreError(
            f"there are directions called {paths.name}, which come from {origin or 'an earlier capture'}",
            next_step=paths.advice(Remedy.RENAME_OR_MOVE_DIRECTIONS) if origin else Remedy.RENAME_OR_REPLACE,
        )
