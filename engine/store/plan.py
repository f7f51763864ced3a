"""The plan of a capture in shards: written before the first, read before going on, compared with what is wanted now.

Knows JSON. Loads without torch.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import Remedy, StoreError
from engine.records.files import ShardPlan
from engine.store.catalog import shard_files
from engine.store.names import UNFINISHED, CapturePaths
from engine.store.record import read_content

PLAN_SCHEMA = 3

_PLAN = msgspec.json.Decoder(ShardPlan)
_HASHES = {
    "prompts.texts": "the texts of the prompts",
    "prompts.ids": "the tokens of the prompts",
    "prompts.factors": "what the pairs were made from",
    "weights": "the weights of the model",
    "provenance.adapters": "the adapters of the model",
    "provenance.chat_template": "the chat template",
}
# The file may lie elsewhere under another name, states are the same in both modes, and what the check at load measured
# may differ in the last digits; what follows from it is in the provenance. The time shows in the texts, if it matters,
# and the weights are named outside of the provenance too.
_MAY_DIFFER = {"prompts.file", "provenance.mode", "provenance.template_time", "provenance.weights"}
_MEASURED = "provenance.receipt."


def encode_plan(plan: ShardPlan) -> bytes:
    """The plan as indented JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"


def read_plan(path: Path) -> ShardPlan:
    """Read a plan.

    Raises:
        StoreError: It is missing, damaged or of another version.
    """
    try:
        plan = _PLAN.decode(read_content(path))
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} is damaged: {error}", next_step=Remedy.CAPTURE_AGAIN) from error
    if plan["schema"] != PLAN_SCHEMA:
        raise StoreError(f"{path} is of another version of layerscope", next_step=Remedy.CAPTURE_AGAIN)
    return plan


def require_same_plan(paths: CapturePaths, wanted: ShardPlan) -> None:
    """Refuse to go on with a capture that would become a mixture.

    Raises:
        StoreError: What is wanted now differs from what was begun; the message says in what.
    """
    begun = read_plan(paths.plan)
    changed = plan_changes(begun, wanted)
    if "added_code" in begun["provenance"] or "added_code" in wanted["provenance"]:
        changed.append("code was added to the model, and whether it is the same now cannot be told")
    if changed:
        raise StoreError(
            f"the unfinished capture {paths.name!r} was begun otherwise: {'; '.join(changed)}",
            expected="what it was begun with: then it goes on from the shards that are saved",
            next_step=Remedy.RENAME_OR_REPLACE,
        )


def plan_changes(begun: ShardPlan, wanted: ShardPlan) -> list[str]:
    """In what two plans differ, in words; nothing if captures by them are the same to the bit.

    Args:
        begun: The plan that was saved.
        wanted: The plan that would be saved now.
    """
    old, new = _flat(begun), _flat(wanted)
    return [
        f"{_HASHES[name]} changed" if name in _HASHES else f"{_said(name)} was {old.get(name)}, is {new.get(name)}"
        for name in dict.fromkeys([*old, *new])
        if _known_by(name, old.get(name)) != _known_by(name, new.get(name))
        if name not in _MAY_DIFFER and not name.startswith(_MEASURED)
    ]


def _known_by(name: str, value: Any) -> Any:  # noqa: ANN401 - what JSON can hold
    """What of a value matters: of a device its kind, for processes that share a capture have a GPU each."""
    return str(value).partition(":")[0] if name == "provenance.device" else value


def _said(name: str) -> str:
    return name.removeprefix("provenance.").replace(".", " ").replace("_", " ")


def _flat(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401 - walks what JSON can hold
    if not isinstance(value, dict):
        return {name: value}
    return {
        inner: leaf
        for key, below in value.items()
        for inner, leaf in _flat(below, f"{name}.{key}" if name else key).items()
    }


def remove_shards(paths: CapturePaths) -> list[Path]:
    """Delete the shards of a capture and their plan, the plan last; other files in that folder stay.

    Args:
        paths: Of the capture; a folder without a plan of layerscope is left alone.

    Returns:
        What was deleted.
    """
    if not paths.plan.exists() or not _is_own(paths.plan):
        return []
    clear_unfinished(paths)
    files = [*shard_files(paths), paths.plan]
    for path in files:
        path.unlink()
    with contextlib.suppress(OSError):  # something else lies there
        paths.shards.rmdir()
    return files


def require_own_folder(paths: CapturePaths) -> None:
    """Refuse to write shards into a folder that holds something else.

    Raises:
        StoreError: It does.
    """
    if not paths.shards.exists():
        return
    plan = paths.plan
    begun = _is_own(plan) if plan.exists() else all(path.suffix == UNFINISHED for path in paths.shards.iterdir())
    if not begun:
        raise StoreError(
            f"{paths.shards} is a folder of something else", next_step="choose another name, or move that folder away"
        )


def _is_own(plan: Path) -> bool:
    return b'"shard_prompts"' in read_content(plan)


def clear_unfinished(paths: CapturePaths) -> None:
    """Delete what killed runs left half written."""
    for path in paths.shards.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)
