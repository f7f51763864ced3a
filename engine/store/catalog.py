"""List the captures of a store from their records alone: no torch, no tensors, damaged ones shown as damaged."""

from dataclasses import dataclass
from pathlib import Path

from engine.errors import Remedy, StoreError
from engine.inputs import user_path
from engine.records.files import CaptureRecord
from engine.store.names import DEFAULT_STORE, PLAN, SHARD, UNFINISHED, CapturePaths, locate
from engine.store.record import read_record

UNFINISHED_SHARDS = "unfinished"


@dataclass(frozen=True)
class CatalogEntry:
    """One capture of a store.

    Attributes:
        name: Its name.
        record: What its JSON says, None if that cannot be used.
        problem: Why it cannot be used; empty if all is well.
    """

    name: str
    record: CaptureRecord | None
    problem: str = ""


def list_captures(
    store: str | Path = DEFAULT_STORE, *, concept: str | None = None, model: str | None = None
) -> list[CatalogEntry]:
    """The captures of a store, newest first, then those that cannot be used.

    Args:
        store: The folder.
        concept: Only captures of this concept.
        model: Only captures of this model, by alias or id.

    Raises:
        StoreError: The folder is not there or cannot be read.

    Example:
        >>> [entry.name for entry in list_captures("activations", concept="honesty")]
        ['smollm2_honesty']
    """
    folder = user_path(store)
    try:
        stems = sorted({stem for p in folder.iterdir() if (stem := _capture_of(p))})
    except OSError as error:
        raise StoreError(
            f"the store {folder} cannot be read: {error.strerror}",
            expected="a folder of captures",
            next_step=Remedy.CHOOSE_STORE,
        ) from error
    entries = [_entry(folder, stem) for stem in stems]
    wanted = [entry for entry in entries if _matches(entry, concept, model)]
    return sorted(wanted, key=lambda entry: entry.record["created"] if entry.record else "", reverse=True)


def show_capture(name: str | Path, *, store: str | Path | None = None) -> CaptureRecord:
    """The record of one capture.

    Args:
        name: A path with or without suffix; a plain name when `store` is given.
        store: The folder.

    Raises:
        StoreError: There is no such capture, or its record cannot be used.
    """
    paths = locate(name, store)
    if not paths.exist:
        raise StoreError(
            f"there is no capture called {paths.name!r} in the folder {str(paths.store)!r}",
            next_step=Remedy.LIST_CAPTURES,
        )
    entry = _entry(paths.store, paths.name)
    if entry.record is None:
        step = Remedy.RESUME if paths.unfinished else Remedy.CAPTURE_AGAIN
        raise StoreError(f"the capture {paths.name!r} cannot be used: {entry.problem}", next_step=step)
    return entry.record


def unfinished_saves(store: str | Path) -> list[Path]:
    """What killed saves left behind: hidden files that nothing reads, safe to delete when no save is running."""
    folder = user_path(store)
    return sorted([*folder.glob(f".*{UNFINISHED}"), *folder.glob(f"*/.*{UNFINISHED}")])


def missing_part(paths: CapturePaths, size: int | None) -> str:
    """What a capture lacks to be usable, in words; empty if nothing.

    Args:
        paths: Where it lies.
        size: Bytes of the tensors according to its record; None if it has no record.
    """
    if paths.in_shards:
        return _missing_shards(paths, size)
    if size is None:
        return "it has no record: the save was interrupted, or the .pt came alone"
    try:
        found = paths.tensors.stat().st_size
    except OSError:
        return f"{paths.tensors.name} is missing"
    return "" if found == size else f"{paths.tensors.name} has {found} bytes, its record says {size}"


def shard_files(paths: CapturePaths) -> list[Path]:
    """The shards of a capture that are whole, in the order of their prompts; those being written have hidden names."""
    return sorted(paths.shards.glob(f"[0-9]*{SHARD}"))


def _missing_shards(paths: CapturePaths, size: int | None) -> str:
    files = shard_files(paths)
    plural = "" if len(files) == 1 else "s"
    if size is None:
        return (
            f"{UNFINISHED_SHARDS}: {len(files)} shard{plural} saved so far; capturing the same again goes on from there"
        )
    found = sum(path.stat().st_size for path in files)
    return "" if found == size else f"its shards have {found} bytes, its record says {size}"


def _capture_of(path: Path) -> str:
    """The name of the capture that something in a store belongs to; empty if to none."""
    if path.name.startswith("."):
        return ""
    if path.suffix in {".pt", ".json"}:
        return path.stem
    return path.name if (path / PLAN).is_file() else ""


def _entry(folder: Path, name: str) -> CatalogEntry:
    try:
        paths = locate(name, folder)
        record = read_record(paths.record) if paths.record.exists() else None
        problem = missing_part(paths, record["data"]["bytes"] if record else None)
    except StoreError as error:
        return CatalogEntry(name.encode(errors="replace").decode(), None, error.problem)  # the name may be no UTF-8
    return CatalogEntry(name, None if problem else record, problem)


def _matches(entry: CatalogEntry, concept: str | None, model: str | None) -> bool:
    record = entry.record
    if record is None:
        return concept is None and model is None
    provenance = record["provenance"]
    names = {provenance["alias"], provenance["model"]} if provenance else set()
    return (concept is None or record["concept"] == concept) and (model is None or model in names)
