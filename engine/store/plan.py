"""The manifest of a capture in shards; loads no torch.

It is written before the first shard; `engine.store.resume` compares it with a new request.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from engine.errors import StoreError
from engine.records.files import ShardPlan
from engine.remedies import Remedy
from engine.store.catalog import shard_files
from engine.store.names import UNFINISHED, CapturePaths
from engine.store.record import read_content

PLAN_SCHEMA = 3

_PLAN = msgspec.json.Decoder(ShardPlan)


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


def remove_shards(paths: CapturePaths) -> list[Path]:
    """Delete the shards of a capture, then its plan; keep all other files.

    Args:
        paths: Files of the capture. A folder without a layerscope plan is left alone.

    Returns:
        Paths of the deleted files.
    """
    if not paths.plan.exists() or not _is_own(paths.plan):
        return []
    clear_unfinished(paths)
    files = [*shard_files(paths), paths.plan]
    for path in files:
        path.unlink()
    with contextlib.suppress(OSError):  # the folder holds other files
        paths.shards.rmdir()
    return files


def require_own_folder(paths: CapturePaths) -> None:
    """Refuse to write shards into a folder that layerscope did not create.

    Raises:
        StoreError: The folder holds other files.
    """
    if not paths.shards.exists():
        return
    plan = paths.plan
    own = _is_own(plan) if plan.exists() else all(path.suffix == UNFINISHED for path in paths.shards.iterdir())
    if not own:
        raise StoreError(
            f"the folder {paths.shards} holds files that are not shards",
            next_step="choose another name, or move that folder away",
        )


def _is_own(plan: Path) -> bool:
    return b'"shard_prompts"' in read_content(plan)


def clear_unfinished(paths: CapturePaths) -> None:
    """Delete partial files left by killed runs."""
    for path in paths.shards.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)
