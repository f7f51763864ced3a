"""What is answered about captures: knows their records, and computes nothing."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from engine.plots.words import layers_in_words
from engine.records.files import CaptureRecord, count_prompts
from engine.records.results import RankedLayer
from server.replies.reply import Reply, rounded


class LeadingLayer(BaseModel):
    """The layer that ranks first."""

    layer: int
    d_prime: float = Field(description="Held-out separation of the two sides, in units of their spread")
    interval: tuple[float, float] = Field(description="95% interval of d_prime")
    p_value: float = Field(description="Share of shuffles of the labels whose best layer does as well")
    tied: str = Field(description="Layers that cannot be told from it at 95%, e.g. 15-18, 21; empty if none")


class CaptureSummary(BaseModel):
    """A capture, in short."""

    name: str
    kind: Literal["prompt", "contrast"]
    model: str
    concept: str | None
    site: str
    positions: str
    pairs: int
    prompts: int
    layers: str = Field(description="Captured layers, e.g. 0-29")
    created: str
    leading: LeadingLayer | None = Field(default=None, description="None for prompts and where nothing could be ranked")


class CapturesReply(Reply):
    """A page of captures."""

    captures: list[CaptureSummary]
    total: int = Field(description="How many match")
    next_offset: int | None = Field(default=None, description="Give this as offset for the next page")
    damaged: dict[str, str] = Field(
        default_factory=dict, description="Captures that cannot be used, and why; the first"
    )
    damaged_total: int = Field(default=0, description="How many of those that match cannot be used")


class CaptureReply(Reply):
    """One capture."""

    capture: CaptureSummary
    findings: list[str]
    confounds: dict[str, float] = Field(description="Held-out AUROC of what else tells the sides apart; 0.5: nothing")
    provenance: dict[str, str]
    example_prompts: list[str]
    left_out: int = Field(description="Prompts not shown")


class DeletedReply(Reply):
    """What was deleted."""

    deleted: list[str]


def summarise_capture(record: CaptureRecord) -> CaptureSummary:
    """A capture as clients see it in a list."""
    provenance, ranking = record["provenance"], record["ranking"]
    return CaptureSummary(
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
        tied=layers_in_words([row["layer"] for row in layers[1:] if row["tied"]]),
    )
