"""The manifest of a capture in shards; loads no torch.

It is written before the first shard, and compared with the request before resuming.
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
    "prompts.factors": "the factors of the pairs",
    "weights": "the weights of the model",
    "provenance.adapters": "the adapters of the model",
    "provenance.chat_template": "the chat template",
}
# The prompt file may have been moved or renamed. Both modes give the same states. Measurements of the load check may
# differ in the last digits, and the settings derived from them are in the provenance. A template time that matters
# changes the texts, which are hashed. The weights also have a field of their own outside the provenance.
_MAY_DIFFER = {"prompts.file", "provenance.mode", "provenance.template_time", "provenance.weights"}
_MEASURED = "provenance.receipt."


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


def require_same_plan(paths: CapturePaths, wanted: ShardPlan) -> None:
    """Refuse to resume a capture with different settings.

    Raises:
        StoreError: The requested settings differ from the saved plan; the message lists the differences.
    """
    saved = read_plan(paths.plan)
    changed = plan_changes(saved, wanted)
    if "added_code" in saved["provenance"] or "added_code" in wanted["provenance"]:
        changed.append("code was added to the model, and layerscope cannot check that it is still the same")
    if changed:
        raise StoreError(
            f"the unfinished capture {paths.name!r} was started with different settings: {'; '.join(changed)}",
            expected="the same settings, to resume from the saved shards",
            next_step=Remedy.RENAME_OR_REPLACE,
        )


def plan_changes(saved: ShardPlan, wanted: ShardPlan) -> list[str]:
    """Describe how two plans differ; empty if their captures are bit-identical.

    Args:
        saved: The saved plan.
        wanted: The plan of the current request.
    """
    old, new = _flat(saved), _flat(wanted)
    return [
        f"{_HASHES[name]} changed" if name in _HASHES else f"{_said(name)} was {old.get(name)}, is now {new.get(name)}"
        for name in dict.fromkeys([*old, *new])
        if _known_by(name, old.get(name)) != _known_by(name, new.get(name))
        if name not in _MAY_DIFFER and not name.startswith(_MEASURED)
    ]


def _known_by(name: str, value: Any) -> Any:  # noqa: ANN401 - what JSON can hold
    """The part of a value to compare.

    Of a device only the type is compared, because each process of a capture has its own GPU.
    """
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
