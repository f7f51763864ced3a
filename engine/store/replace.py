"""Delete the capture that another one replaces, and say what is lost."""

from __future__ import annotations

import logging

from engine.errors import StoreError
from engine.records.files import count_prompts
from engine.store.catalog import shard_files
from engine.store.names import CapturePaths, is_present
from engine.store.plan import hold_plan, remove_shards
from engine.store.record import read_record

log = logging.getLogger(__name__)


def delete_replaced(paths: CapturePaths) -> None:
    """Delete a capture that will be replaced by shards, which are saved one by one.

    The caller holds the lock of the store.

    Args:
        paths: The capture, if there is one.

    Raises:
        StoreError: Another process is capturing it, or a file cannot be deleted.
    """
    if not paths.exist:
        return
    try:
        if paths.plan.exists():
            with hold_plan(paths):  # refuse before anything is deleted
                pass
        warn_of_loss(paths, tensors=True)
        paths.record.unlink(missing_ok=True)  # first, so that no record describes deleted tensors
        paths.tensors.unlink(missing_ok=True)
        remove_shards(paths)
        paths.directions.unlink(missing_ok=True)  # they are of the capture that is replaced
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be deleted: {error.strerror}") from error


def warn_of_loss(paths: CapturePaths, *, tensors: bool) -> None:
    """Log what replacing a capture deletes.

    Args:
        paths: The capture.
        tensors: Name its prompts and shards too, as is due if the new capture is not complete.
    """
    lost = [_tensors_lost(paths)] if tensors else []
    if is_present(paths.directions):
        lost.append("saved directions")
    if named := [f"its {one}" for one in lost if one]:
        log.warning("replacing %s: deleting %s now", paths.name, " and ".join(named))


def _tensors_lost(paths: CapturePaths) -> str:
    """What a capture consists of, in words; empty if it is unfinished and has no shards."""
    if paths.unfinished:
        saved = len(shard_files(paths))
        return _counted(saved, "saved shard") if saved else ""
    try:
        record = read_record(paths.record)
    except (StoreError, OSError):
        return "files"
    pairs = record["num_pairs"]
    return _counted(pairs, "captured pair") if pairs else _counted(count_prompts(record), "captured prompt")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
