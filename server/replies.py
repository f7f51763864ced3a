"""What tools answer: typed, small, with what to do next. Knows records; computes nothing but what fits."""

from collections.abc import Sequence
from typing import Literal

from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, Field

from engine.plots.findings import describe_findings, layers_in_words
from engine.records.files import CaptureRecord
from engine.records.models import ModelListing
from engine.records.ranking import RankedLayer

MOST_TEXT = 160
"""Characters of a prompt that a concise answer shows."""


class Reply(BaseModel):
    """What every answer says."""

    next_step: str = Field(default="", description="What to call next")
    warnings: list[str] = Field(default_factory=list, description="What to know before believing this")


class ModelState(BaseModel):
    """A model that can be named."""

    name: str
    model_id: str
    layers: int = Field(description="Number of decoder blocks, numbered from 0; 0 here: known once it is loaded")
    size: str = Field(description="Number of parameters, e.g. 135M")
    here: bool = Field(description="Whether it loads without a download")
    loaded: bool
    note: str = ""


class ModelsReply(Reply):
    """The models."""

    models: list[ModelState]
    loaded_bytes: int = Field(description="Weights in memory")
    budget_bytes: int = Field(description="Weights that may stay in memory; least recently used go first")


class ConceptSummary(BaseModel):
    """A named contrast."""

    name: str
    positive: str
    negative: str
    description: str
    pairs: int = Field(description="How many pairs it can make")


class ConceptsReply(Reply):
    """The concepts."""

    concepts: list[ConceptSummary]


class ConceptReply(Reply):
    """One concept in full."""

    concept: ConceptSummary
    personas: list[dict[str, str]]
    templates: list[dict[str, str]]
    topics: list[str]


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
    damaged: dict[str, str] = Field(default_factory=dict, description="Captures that cannot be used, and why")


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


class RankedRow(BaseModel):
    """One layer of a ranking."""

    rank: int
    layer: int
    value: float | None = Field(description="The score that the layers are ordered by")
    d_prime: float | None
    interval: tuple[float, float] | None
    places: tuple[int, int] | None = Field(description="Best and worst place that 95% confidence leaves open")
    tied: bool | None = Field(description="Whether it may be the best layer")
    p_value: float | None
    auroc: float | None
    raw_norm: float | None = Field(description="Norm of the mean difference: grows with depth, says little")
    d_prime_by_left_out: dict[str, float] | None = Field(default=None, description="With detail=full")
    wrong_way: float | None = Field(default=None, description="Share of pairs pointing the wrong way; with detail=full")


class RankingReply(Reply):
    """Layers in the order of a score."""

    capture: str
    score: str
    layers: list[RankedRow]
    left_out: int = Field(description="Layers not shown; ask for more with top")
    findings: list[str]


class WrongPair(BaseModel):
    """A pair whose positive prompt lies on the negative side of its partner."""

    pair: int
    gap: float
    positive_prompt: str
    factors: dict[str, str] | None


class LayerReply(Reply):
    """One layer in detail."""

    capture: str
    layer: int
    d_prime: float
    auroc: float
    worst_left_out: str = Field(description="What was left out where the separation is lowest")
    by_left_out: dict[str, float] = Field(description="d' with each factor left out")
    positive_quartiles: list[float] = Field(description="Minimum, quartiles and maximum of the positive projections")
    negative_quartiles: list[float]
    wrong_pairs: list[WrongPair]
    wrong_total: int


class ComparedRow(BaseModel):
    """Two captures at one layer, or at one depth."""

    layer: int
    cosine: float | None = None
    random_within: float | None = Field(default=None, description="|cosine| of random directions, 95%")
    halves_reach: float | None = Field(default=None, description="Cosine of one direction measured twice")
    capture: str | None = None
    depth: float | None = None
    d_prime: float | None = None
    tied: bool | None = None


class ComparisonReply(Reply):
    """Two captures side by side."""

    kind: Literal["directions", "depth"]
    captures: tuple[str, str]
    findings: list[str]
    rows: list[ComparedRow]


class DirectionReply(Reply):
    """Directions that were saved."""

    name: str
    layers: str
    method: str
    leading: int | None


class TokenValue(BaseModel):
    """A token along a direction."""

    token: str
    value: float = Field(description="0: mean of the negative prompts, 1: mean of the positive ones")


class ReadingReply(BaseModel):
    """A text along a direction."""

    layer: int
    concept: str | None
    tokens: list[TokenValue]
    left_out: int = Field(description="Tokens not shown")
    highest: list[TokenValue]
    lowest: list[TokenValue]


class Estimate(BaseModel):
    """What a capture costs."""

    prompts: int
    tokens: int
    seconds: float
    bytes: int


class JobReply(Reply):
    """Work that may still be going on."""

    job: str = Field(description="Handle for wait_for_job and cancel_job; empty when nothing was started")
    status: Literal["waiting", "running", "done", "failed", "cancelled", "estimated"]
    step: str = ""
    done: int = 0
    total: int = 0
    estimate: Estimate | None = None
    model: ModelState | None = Field(default=None, description="What load_model came to")
    capture: CaptureSummary | None = Field(default=None, description="What a capture came to")
    findings: list[str] = Field(default_factory=list)
    reading: ReadingReply | None = Field(default=None, description="What read_text came to")
    error: str = ""


def send(reply: BaseModel) -> CallToolResult:
    """An answer for clients that show their model the text and for those that show it the structure."""
    return CallToolResult(
        content=[TextContent(type="text", text=reply.model_dump_json(exclude_none=True, exclude_defaults=True))],
        structured_content=reply.model_dump(mode="json"),
    )


def model_state(listing: ModelListing, loaded: Sequence[str]) -> ModelState:
    """A model as clients see it."""
    return ModelState(
        name=listing.alias,
        model_id=listing.source.model_id,
        layers=listing.layers,
        size=listing.parameters,
        here=listing.source.local,
        loaded=listing.alias in loaded,
        note=listing.note,
    )


def summarise(record: CaptureRecord) -> CaptureSummary:
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
        prompts=len(record["prompts"]) + len(record["negative_prompts"]),
        layers=layers_in_words(record["captured_layers"]),
        created=record["created"],
        leading=_leading(ranking["layers"]) if ranking else None,
    )


def warnings_of(record: CaptureRecord) -> list[str]:
    """What must be known before a ranking is believed."""
    found = [f"not ranked: {record['unranked']}"] if record["unranked"] else []
    found += record["ranking"]["warnings"] if record["ranking"] else []
    return found + (record["confounds"]["warnings"] if record["confounds"] else [])


def findings_of(record: CaptureRecord) -> list[str]:
    """What a ranking comes to, in sentences."""
    return describe_findings(record)


def shorten(text: str, most: int = MOST_TEXT) -> str:
    """A prompt on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def rounded(value: float, digits: int = 3) -> float:
    """A number with no more digits than it is worth."""
    return round(value, digits)


def _leading(layers: Sequence[RankedLayer]) -> LeadingLayer:
    best = layers[0]
    return LeadingLayer(
        layer=best["layer"],
        d_prime=rounded(best["d_prime"]),
        interval=(rounded(best["low"]), rounded(best["high"])),
        p_value=rounded(best["p_value"], 4),
        tied=layers_in_words([row["layer"] for row in layers[1:] if row["tied"]]),
    )
