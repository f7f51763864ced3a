"""The manifest of a capture in shards; loads no torch.

It is written before the first shard; `engine.store.resume` compares it with a new request.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.errors import StoreError
from engine.records.files import ShardPlan
from engine.remedies import Remedy
from engine.store.locks import open_locked
from engine.store.names import PLAN, SHARD, UNFINISHED, CapturePaths
from engine.store.record import read_content

PLAN_SCHEMA = 3

_OWN_FILE = re.compile(rf"[0-9]+{re.escape(SHARD)}|{re.escape(PLAN)}|\..*{re.escape(UNFINISHED)}")
_PLAN = msgspec.json.Decoder(ShardPlan)


class UnopenedPlanError(StoreError):
    """The plan of a capture is gone or cannot be opened."""


class ChangedPlanError(StoreError):
    """The saved shards of a capture were made with other settings than the requested ones."""


def encode_plan(plan: ShardPlan) -> bytes:
    """Encode a plan as indented, readable JSON."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"


def read_plan(path: Path) -> ShardPlan:
    """Read a plan.

    Raises:
        StoreError: The file is missing, damaged or from another version of layerscope.
    """
    try:
        plan = _PLAN.decode(read_content(path))
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} is damaged: {error}", next_step=Remedy.CAPTURE_AGAIN) from error
    if plan["schema"] != PLAN_SCHEMA:
        raise StoreError(f"{path} was written by another version of layerscope", next_step=Remedy.CAPTURE_AGAIN)
    return plan


def shard_starts(plan: ShardPlan) -> range:
    """Number of the first prompt of each shard."""
    return range(0, plan["prompts"]["count"], plan["shard_prompts"])


@contextlib.contextmanager
def hold_plan(paths: CapturePaths, remedy: Remedy = Remedy.WAIT_OR_RENAME) -> Iterator[None]:
    """Hold the plan of a capture while its shards are written.

    The lock is advisory and belongs to the plan file: it leaves no file behind, and the system releases it when the
    process dies.

    Args:
        paths: Files of the capture.
        remedy: What to do if another process captures it.

    Raises:
        StoreError: Another process or thread holds the plan.
        UnopenedPlanError: The plan is gone, or cannot be opened.
    """
    try:
        held = open_locked(paths.plan)
    except OSError as error:
        raise UnopenedPlanError(
            f"{paths.plan} cannot be opened: {error.strerror}",
            expected="the plan of a capture, which no other process deletes or replaces meanwhile",
            next_step=paths.advice(Remedy.LIST_CAPTURES),
        ) from error
    if held is None:
        raise StoreError(
            f"another process is capturing {paths.name!r} now",
            expected="one process for each name; the processes of one launcher count as one",
            next_step=remedy,
        )
    with held:
        yield


@contextlib.contextmanager
def hold_still(paths: CapturePaths, remedy: Remedy = Remedy.WAIT) -> Iterator[None]:
    """Hold the plan of a capture while its shards are moved or deleted.

    Args:
        paths: Files of the capture.
        remedy: What to do if another process captures it.

    Raises:
        StoreError: As in `hold_plan`.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(hold_plan(paths, remedy))
        if os.name == "nt":  # pragma: no cover - Windows cannot move or delete an open file
            held.close()
        yield


def require_not_held(paths: CapturePaths) -> None:
    """Refuse if another process writes the shards of a capture.

    Raises:
        StoreError: It does.
    """
    if paths.plan.exists():
        with hold_plan(paths):
            pass


def remove_shards(paths: CapturePaths) -> list[Path]:
    """Delete the shards of a capture, then its plan; keep all other files.

    Args:
        paths: Files of the capture. A folder without a layerscope plan is left alone.

    Returns:
        Paths of the deleted files.

    Raises:
        StoreError: Another process is capturing into the folder.
    """
    if not paths.plan.exists() or not is_own_plan(paths.plan):
        return []
    with hold_still(paths, Remedy.WAIT_OR_RENAME):
        return delete_shards(paths.shards)


def delete_shards(folder: Path) -> list[Path]:
    """Delete the shards in a folder, then its plan and the folder; keep all other files.

    Args:
        folder: The folder; the caller holds its plan.

    Returns:
        Paths of the deleted files, without temporary ones.
    """
    own = sorted(filter(is_own_file, folder.iterdir()))
    for path in own:
        remove_entry(path)
    with contextlib.suppress(OSError):  # the folder holds other files
        folder.rmdir()
    return [path for path in own if not path.name.startswith(".")]


def is_own_file(path: Path) -> bool:
    """Whether a file in a folder of shards has a name that layerscope gives."""
    return bool(_OWN_FILE.fullmatch(path.name))


def remove_entry(path: Path) -> None:
    """Delete a file, a link or an empty folder."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
        return
    with contextlib.suppress(FileNotFoundError):  # a temporary file, deleted meanwhile
        path.unlink()


def require_own_folder(paths: CapturePaths) -> None:
    """Refuse to write shards into a folder that layerscope did not create.

    Raises:
        StoreError: The folder holds other files.
    """
    if not paths.shards.exists():
        return
    if not paths.shards.is_dir():
        raise StoreError(
            f"{paths.shards} is a file, and shards need a folder of that name", next_step="choose another name"
        )
    plan = paths.plan
    own = is_own_plan(plan) if plan.exists() else all(path.suffix == UNFINISHED for path in paths.shards.iterdir())
    if not own:
        raise StoreError(
            f"the folder {paths.shards} holds files that are not shards",
            next_step="choose another name, or move that folder away",
        )


def is_own_plan(plan: Path) -> bool:
    """Whether a file is a plan of layerscope.

    Raises:
        StoreError: It cannot be read.
    """
    return b'"shard_prompts"' in read_content(plan)


def clear_unfinished(paths: CapturePaths) -> None:
    """Delete partial files left by killed runs."""
    for path in paths.shards.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)
