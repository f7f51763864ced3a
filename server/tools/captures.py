"""Captures that there are: list, describe, delete."""

from typing import Annotated, Literal

from mcp.types import CallToolResult
from pydantic import Field

from engine.errors import RequestError
from engine.plots.words import describe_findings
from engine.records.files import count_prompts, record_warnings
from engine.store.catalog import list_captures as list_store
from server.replies.captures import (
    CaptureReply,
    CapturesReply,
    DeletedReply,
    summarise_capture,
)
from server.replies.reply import send, shorten
from server.tools.arguments import LONGEST_NAME, CaptureName
from server.tools.spec import ToolSpec
from server.workbench import Ctx, find_capture, workbench

_SHOWN_PROMPTS = 4
_SHOWN_DAMAGED = 5


def list_captures(
    ctx: Ctx,
    concept: Annotated[str | None, Field(description="Only captures of this concept", max_length=LONGEST_NAME)] = None,
    model: Annotated[str | None, Field(description="Only captures of this model", max_length=LONGEST_NAME)] = None,
    name_contains: Annotated[
        str, Field(description="Only captures with this in their name", max_length=LONGEST_NAME)
    ] = "",
    offset: Annotated[int, Field(ge=0, description="How many to pass over")] = 0,
    limit: Annotated[int, Field(ge=1, le=20, description="Most captures in one answer")] = 10,
) -> Annotated[CallToolResult, CapturesReply]:
    """List the captures in the store, newest first, whoever made them, with the layer that leads in each."""
    store = workbench(ctx).settings.store
    entries = list_store(store, concept=concept, model=model) if store.exists() else []
    entries = [entry for entry in entries if name_contains in entry.name]
    records = [entry.record for entry in entries if entry.record]
    page = records[offset : offset + limit]
    damaged = [entry for entry in entries if entry.problem]
    after = offset + len(page)
    return send(
        CapturesReply(
            captures=[summarise_capture(record) for record in page],
            total=len(records),
            next_offset=after if after < len(records) else None,
            damaged={entry.name: shorten(entry.problem) for entry in damaged[:_SHOWN_DAMAGED]} if offset == 0 else {},
            damaged_total=len(damaged),
            next_step="rank_layers(name=...), compare_captures(one=..., other=...)" if records else "capture_contrast",
        )
    )


def describe_capture(
    ctx: Ctx,
    name: CaptureName,
    detail: Annotated[Literal["concise", "full"], Field(description="full: more and longer prompts")] = "concise",
) -> Annotated[CallToolResult, CaptureReply]:
    """Describe a capture: how it was made, what its ranking comes to, and what else could explain it (confounds)."""
    record = find_capture(ctx, name)
    shown = _SHOWN_PROMPTS if detail == "concise" else 2 * _SHOWN_PROMPTS
    prompts = [text for pair in zip(record["prompts"], record["negative_prompts"], strict=False) for text in pair]
    prompts = prompts or record["prompts"]
    checks = record["confounds"]["checks"] if record["confounds"] else []
    provenance = record["provenance"]
    origin = {key: str(value) for key, value in provenance.items() if key != "receipt"} if provenance else {}
    return send(
        CaptureReply(
            capture=summarise_capture(record),
            findings=describe_findings(record),
            confounds={check["what"]: round(check["auroc"], 3) for check in checks},
            provenance=origin,
            example_prompts=[shorten(text, 160 if detail == "concise" else 600) for text in prompts[:shown]],
            left_out=count_prompts(record) - min(len(prompts), shown),
            warnings=record_warnings(record),
            next_step=f"rank_layers(name='{name}')"
            if record["ranking"]
            else "capture_contrast(concept=...) can be ranked",
        )
    )


def delete_capture(
    ctx: Ctx,
    name: CaptureName,
    confirm: Annotated[
        bool, Field(description="Must be true: what is deleted cannot be brought back", strict=True)
    ] = False,
) -> Annotated[CallToolResult, DeletedReply]:
    """Delete a capture and the directions saved with it, for good. Needs confirm=true."""
    from engine.store.delete import delete_capture as delete

    store = workbench(ctx).settings.store
    if not confirm:
        raise RequestError(
            f"{name!r} was not deleted",
            expected="confirm=true",
            next_step=f"delete_capture(name='{name}', confirm=true) if it shall be gone for good",
        )
    if not any(entry.name == name for entry in (list_store(store) if store.exists() else [])):
        find_capture(ctx, name)  # names the nearest; damaged captures can be deleted
    return send(DeletedReply(deleted=delete(name, store=store), next_step="list_captures"))


TOOLS = (
    ToolSpec(list_captures, "List captures"),
    ToolSpec(describe_capture, "Describe a capture"),
    ToolSpec(delete_capture, "Delete a capture", writes=True, destroys=True, repeatable=False),
)
