"""Tools for the captures in the store: list, describe, delete."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from engine.errors import RequestError, visible
from engine.plots.causal_text import causal_findings
from engine.plots.findings import describe_findings, layers_in_words
from engine.records.files import CaptureRecord, count_prompts, record_warnings
from engine.records.results import RankedLayer, may_be_best
from engine.store.catalog import capture_names
from engine.store.catalog import list_captures as list_store
from engine.store.names import DIRECTIONS, is_present, locate
from server.tools.answer import Outline, Page, Reply, rounded, send, shorten
from server.tools.directions import origin_warnings
from server.tools.spec import LONGEST_NAME, CaptureName, Offset, ToolSpec
from server.workbench import Ctx, find_capture, workbench

_SHOWN_PROMPTS = 4
_SHOWN_DAMAGED = 5
_SHOWN_DIRECTIONS = 20


class LeadingLayer(BaseModel):
    """The layer that ranks first."""

    layer: int
    d_prime: float = Field(description="Held-out d': distance of the class means in units of their spread")
    interval: tuple[float, float] = Field(description="95% confidence interval of d_prime")
    p_value: float = Field(description="Permutation p-value over the best of all layers")
    tied: str = Field(description="Layers tied with it at 95%, e.g. 15-18, 21")


class CaptureOutline(BaseModel):
    """A capture in short."""

    name: str
    kind: Literal["prompt", "contrast"]
    model: str
    concept: str | None = None
    site: str
    positions: str
    pairs: int
    prompts: int
    layers: str = Field(description="Captured layers, e.g. 0-29")
    created: str
    leading: LeadingLayer | None = Field(default=None, description="Absent if there is no ranking")


class CapturesReply(Page):
    """A page of captures."""

    paged: ClassVar[tuple[str, ...]] = ("captures",)
    captures: list[CaptureOutline]
    damaged: dict[str, str] = Field(default_factory=dict, description="First unusable captures, and why")
    damaged_total: int = 0
    directions: list[str] = Field(default_factory=list, description="First names of saved directions, for read_text")
    directions_total: int = 0


class CaptureReply(Reply):
    """One capture."""

    directions: bool = Field(default=False, description="Whether directions are saved under its name")
    counted: ClassVar[tuple[str, ...]] = ("example_prompts",)
    capture: Outline = Field(description="As in list_captures")
    findings: list[str]
    confounds: dict[str, float] = Field(description="Held-out AUROC of baselines without the model; 0.5 is chance")
    provenance: dict[str, str]
    example_prompts: list[str]
    left_out: int = Field(description="Number of prompts not shown")

    def rest(self) -> str:
        """The resource of the capture."""
        return f"the resource capture://{getattr(self.capture, 'name', '')} has the whole record"


class DeletedReply(Reply):
    """The files that were deleted; kept: directions under other names, or of another capture."""

    deleted: list[str]
    kept: list[str] = Field(default_factory=list)


def list_captures(
    ctx: Ctx,
    concept: Annotated[str | None, Field(description="Only captures of this concept", max_length=LONGEST_NAME)] = None,
    model: Annotated[str | None, Field(description="Only captures of this model", max_length=LONGEST_NAME)] = None,
    name_contains: Annotated[
        str, Field(description="Only captures with this text in their name", max_length=LONGEST_NAME)
    ] = "",
    offset: Offset = 0,
    limit: Annotated[int, Field(ge=1, le=20, description="Maximum number of captures in one answer")] = 10,
) -> Annotated[CallToolResult, CapturesReply]:
    """List the captures in the store, newest first, with the leading layer of each, and the saved directions.

    The store is shared: captures that people or other agents make are listed too.
    """
    store = workbench(ctx).settings.store
    entries = list_store(store, concept=concept, model=model) if store.exists() else []
    entries = [entry for entry in entries if name_contains in entry.name]
    records = [entry.record for entry in entries if entry.record]
    page = records[offset : offset + limit]
    damaged = [entry for entry in entries if entry.problem]
    directions = [] if concept or model else [saved for saved in _directions(store) if name_contains in saved]
    after = offset + len(page)
    return send(
        CapturesReply(
            captures=[outline_capture(record) for record in page],
            total=len(records),
            next_offset=after if after < len(records) else None,
            damaged={entry.name: shorten(entry.problem) for entry in damaged[:_SHOWN_DAMAGED]} if offset == 0 else {},
            damaged_total=len(damaged),
            directions=directions[:_SHOWN_DIRECTIONS] if offset == 0 else [],
            directions_total=len(directions),
            next_step="rank_layers(name=...), compare_captures(one=..., other=...)" if records else "capture_contrast",
        )
    )


def describe_capture(
    ctx: Ctx,
    name: CaptureName,
    detail: Annotated[Literal["concise", "full"], Field(description="full: more and longer prompts")] = "concise",
) -> Annotated[CallToolResult, CaptureReply]:
    """Describe a capture: its provenance, example prompts, findings, and the confounds that could explain them."""
    record, store = find_capture(ctx, name), workbench(ctx).settings.store
    shown = _SHOWN_PROMPTS if detail == "concise" else 2 * _SHOWN_PROMPTS
    prompts = [text for pair in zip(record["prompts"], record["negative_prompts"], strict=False) for text in pair]
    prompts = prompts or record["prompts"]
    checks = record["confounds"]["checks"] if record["confounds"] else []
    provenance = (record["provenance"] or {}).items()
    return send(
        CaptureReply(
            capture=outline_capture(record),
            findings=[*describe_findings(record), *causal_findings(record)],
            confounds={check["what"]: round(check["auroc"], 3) for check in checks},
            provenance={key: str(value) for key, value in provenance if key != "receipt" and value is not None},
            example_prompts=[shorten(text, 160 if detail == "concise" else 600) for text in prompts[:shown]],
            left_out=count_prompts(record) - min(len(prompts), shown),
            directions=is_present(locate(name, store).directions),
            warnings=[*origin_warnings(name, store), *record_warnings(record)],
            next_step=f"rank_layers(name='{name}')"
            if record["ranking"]
            else "capture_contrast(concept=...) makes a capture that can be ranked",
        )
    )


def delete_capture(
    ctx: Ctx,
    name: CaptureName,
    confirm: Annotated[bool, Field(description="Must be true: a deleted capture cannot be restored", strict=True)] = (
        False
    ),
    directions_only: Annotated[
        bool, Field(description="Delete only the directions saved under the name", strict=True)
    ] = False,
) -> Annotated[CallToolResult, DeletedReply]:
    """Delete a capture and the directions saved under its name, permanently. Needs confirm=true."""
    from engine.store.delete import delete_capture as delete
    from engine.store.delete import delete_directions, kept_directions

    store = workbench(ctx).settings.store
    if not confirm:
        only = ", directions_only=true" if directions_only else ""
        raise RequestError(
            f"{name!r} was not deleted",
            expected="confirm=true",
            next_step=f"delete_capture(name='{name}', confirm=true{only}) deletes it permanently",
        )
    if directions_only:
        return send(DeletedReply(deleted=delete_directions(name, store=store), next_step="list_captures"))
    known = [*_directions(store), *capture_names(store)] if store.exists() else []
    if name.removesuffix(DIRECTIONS) not in known:
        find_capture(ctx, name)  # names the nearest; damaged captures can be deleted
    kept = kept_directions(name, store=store)
    return send(DeletedReply(deleted=delete(name, store=store), kept=kept, next_step="list_captures"))


def _directions(store: Path) -> list[str]:
    from engine.store.directions_catalog import list_directions

    return [visible(name) for name in list_directions(store)] if store.exists() else []


def outline_capture(record: CaptureRecord) -> CaptureOutline:
    """Summarize a capture for lists."""
    provenance, ranking = record["provenance"], record["ranking"]
    return CaptureOutline(
        name=record["name"],
        kind=record["kind"],
        model=provenance["alias"] if provenance else "unknown",
        concept=record["concept"],
        site=provenance["site"] if provenance else "unknown",
        positions=provenance["positions"] if provenance else "unknown",
        pairs=record["num_pairs"],
        prompts=count_prompts(record),
        layers=layers_in_words(record["captured_layers"]),
        created=record["created"],
        leading=_leading(ranking["layers"]) if ranking else None,
    )


def _leading(layers: Sequence[RankedLayer]) -> LeadingLayer:
    best = layers[0]
    return LeadingLayer(
        layer=best["layer"],
        d_prime=rounded(best["d_prime"]),
        interval=(rounded(best["low"]), rounded(best["high"])),
        p_value=rounded(best["p_value"], 4),
        tied=layers_in_words([row["layer"] for row in layers[1:] if may_be_best(row)]),
    )


TOOLS = (
    ToolSpec(list_captures, "List captures"),
    ToolSpec(describe_capture, "Describe a capture"),
    ToolSpec(delete_capture, "Delete a capture", writes=True, destroys=True, repeatable=False),
)
