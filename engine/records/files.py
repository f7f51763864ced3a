"""What the files of a capture hold."""

from __future__ import annotations

from typing import Literal, TypedDict

from engine.records.captures import Provenance
from engine.records.concepts import Factors
from engine.records.ranking import ConfoundReport, Ranking
from engine.records.statistics import LayerRow, SideSummary


class DataFile(TypedDict):
    """The `.pt` that a JSON file belongs to."""

    name: str
    bytes: int
    sha256: str


class CaptureRecord(TypedDict):
    """The JSON file of a capture: all that is needed to list, filter and rank without torch.

    Attributes:
        schema: Version of this layout.
        name: Name of the capture in its store.
        kind: `prompt` or `contrast`.
        created: Time of saving, ISO 8601 in UTC.
        data: The tensor file.
        concept: Name of the concept, None if there is none.
        num_pairs: Pairs of a contrast, 0 for prompts.
        num_layers: Decoder blocks of the model.
        hidden_size: Width of the states.
        captured_layers: Which were captured.
        prompts: The exact texts; of a contrast the positive ones.
        negative_prompts: The negative texts of a contrast, in the same order.
        factors: What each pair was made from.
        statistics: One row per captured layer.
        ranking: Layers of a contrast by held-out separation; None for prompts, and where there is none to be had.
        sides: Where left-out prompts of both sides lie, for each layer at which they differ; empty without a ranking.
        unranked: Why a contrast has no ranking; empty where it has one.
        confounds: What else could tell the sides of a contrast apart.
        provenance: How it was made; None for data that did not come from a capture function.
    """

    schema: int
    name: str
    kind: Literal["prompt", "contrast"]
    created: str
    data: DataFile
    concept: str | None
    num_pairs: int
    num_layers: int
    hidden_size: int
    captured_layers: list[int]
    prompts: list[str]
    negative_prompts: list[str]
    factors: list[Factors]
    statistics: list[LayerRow]
    ranking: Ranking | None
    sides: list[SideSummary]
    unranked: str
    confounds: ConfoundReport | None
    provenance: Provenance | None
