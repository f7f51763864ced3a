"""Check the files of a store against their records and checksums; loads no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import StoreError
from engine.inputs import user_path
from engine.records.files import CaptureRecord
from engine.remedies import Remedy
from engine.store.catalog import UNFINISHED_SHARDS, list_captures, missing_part, unknown_capture
from engine.store.directions_header import path_of, read_header
from engine.store.files import open_regular
from engine.store.names import DEFAULT_STORE, DIRECTIONS, CapturePaths, locate, shard_files
from engine.store.plan import read_plan
from engine.store.record import read_record
from engine.store.replace import finish_replacement
from engine.store.tensor_files import read_metadata, verify_file

Status = Literal["ok", "unverified", "unfinished", "unreadable", "damaged"]


@dataclass(frozen=True)
class Verification:
    """What checking one capture found.

    Attributes:
        name: Name of the capture.
        status: `ok`, `unverified` (from before checksums), `unfinished` (shards that can be resumed), `unreadable` (the
            user may not read a file) or `damaged`.
        problem: What is wrong, or what is not covered; empty if everything matches.
    """

    name: str
    status: Status
    problem: str = ""


def verify_store(store: str | Path = DEFAULT_STORE) -> list[Verification]:
    """Check every capture and every directions file of a store.

    All bytes are read once, in bounded memory.

    Args:
        store: The store folder.

    Returns:
        One result per name, in alphabetical order.

    Raises:
        StoreError: The folder cannot be read.

    Example:
        >>> {found.name: found.status for found in verify_store("activations")}["smollm2_honesty"]
        'ok'
    """
    folder = user_path(store)
    problems = {entry.name: entry.problem for entry in list_captures(folder)}
    problems |= {path.name.removesuffix(DIRECTIONS): "" for path in folder.glob(f"[!.]*{DIRECTIONS}")} | problems
    return [_verified(name, folder, problem) for name, problem in sorted(problems.items())]


def verify_capture(name: str | Path, *, store: str | Path | None = None) -> Verification:
    """Check one capture: its record, every tensor, and the directions saved under its name.

    Args:
        name: A path with or without suffix; a plain name when `store` is given.
        store: The store folder.

    Raises:
        StoreError: There is no capture of that name.

    Example:
        >>> verify_capture("activations/smollm2_honesty").status
        'ok'
    """
    paths = locate(name, store)
    finish_replacement(paths)
    if not paths.exist and not path_of(paths).exists():
        raise unknown_capture(paths.name, paths)
    try:
        unverified = [*_check_tensors(paths), *_check_directions(paths)]
    except StoreError as error:
        if error.next_step is Remedy.ASK_TO_READ:
            return Verification(paths.name, "unreadable", error.problem)
        return Verification(paths.name, "damaged", error.problem + _left_by_rename(paths))
    if paths.unfinished:
        return Verification(paths.name, "unfinished", missing_part(paths, None).removeprefix(f"{UNFINISHED_SHARDS}: "))
    if unverified:
        return Verification(paths.name, "unverified", f"{', '.join(unverified)}: saved without checksums")
    return Verification(paths.name, "ok")


def has_checksums(paths: CapturePaths) -> bool:
    """Whether the tensors of a capture have checksums; of shards, the first one is looked at.

    Raises:
        StoreError: The first shard is damaged.
    """
    first = next(iter(shard_files(paths)), None) if paths.in_shards else None
    return first is None or bool(read_metadata(first, store=paths.store, remedy=Remedy.DELETE_SHARD).checksums)


def _verified(name: str, folder: Path, problem: str) -> Verification:
    try:
        return verify_capture(name, store=folder)
    except StoreError as error:  # not a name that layerscope gives, but a file that is there
        return Verification(name, "damaged", problem or error.problem)


def _check_tensors(paths: CapturePaths) -> list[str]:
    """Check the tensors against the record, and name what has no checksums."""
    if not paths.exist:
        return []
    if paths.unfinished:
        read_plan(paths.plan)
        return _check_shards(paths)
    record = read_record(paths.record) if paths.record.exists() else None
    problem = missing_part(paths, record["data"]["bytes"] if record else None)
    if record is None or problem:
        raise StoreError(problem)
    if paths.in_shards:
        return [*_check_plan(paths, record), *_check_shards(paths)]
    if not record["data"]["sha256"]:
        return [paths.tensors.name]
    if _sha256(paths.tensors, paths.store) != record["data"]["sha256"]:
        raise StoreError(f"{paths.tensors.name} does not match the checksum in {paths.record.name}")
    return []


def _check_plan(paths: CapturePaths, record: CaptureRecord) -> list[str]:
    if _sha256(paths.plan, paths.store) != record["data"]["sha256"]:
        raise StoreError(f"{paths.name}/{paths.plan.name} does not match the checksum in {paths.record.name}")
    return []


def _check_shards(paths: CapturePaths) -> list[str]:
    found = [verify_file(path, store=paths.store, remedy=Remedy.DELETE_SHARD) for path in shard_files(paths)]
    return [] if all(found) else [f"{found.count(False)} of {len(found)} shards"]


def _check_directions(paths: CapturePaths) -> list[str]:
    path = path_of(paths)
    if not path.exists():
        return []
    read_header(path)
    return [] if verify_file(path, store=paths.store, remedy=paths.advice(Remedy.EXTRACT_AGAIN)) else [path.name]


def _sha256(path: Path, store: Path) -> str:
    try:
        with open_regular(path, store) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _left_by_rename(paths: CapturePaths) -> str:
    """Say that a record without tensors was left by a killed rename, and of which capture."""
    try:
        mine = read_record(paths.record)
        if paths.tensors.exists() or paths.plan.exists():
            return ""
        for entry in list_captures(paths.store):
            record = entry.record
            if record and (record["created"], record["data"]["sha256"]) == (mine["created"], mine["data"]["sha256"]):
                return (
                    f"; an interrupted rename left this record of the capture {entry.name!r}, which is complete:"
                    f" delete {paths.name!r}"
                )
    except StoreError:
        pass
    return ""
