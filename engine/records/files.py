"""What the files of a capture hold."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from engine.records.captures import Provenance
from engine.records.concepts import Factors
from engine.records.ranking import ConfoundReport, Ranking
from engine.records.statistics import LayerRow, SideSummary


class DataFile(TypedDict):
    """The tensors that a JSON file belongs to.

    Attributes:
        name: Name of the `.pt`, or of the folder of shards, with a slash behind it.
        bytes: Size of the file, or of all shards.
        sha256: Hash of the file; of a folder of shards that of its plan.
    """

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
        prompts: The exact texts; of a contrast the positive ones, of a capture in shards, which hold all, the first.
        num_prompts: How many there are, where `prompts` are only the first.
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
    num_prompts: NotRequired[int]
    negative_prompts: list[str]
    factors: list[Factors]
    statistics: list[LayerRow]
    ranking: Ranking | None
    sides: list[SideSummary]
    unranked: str
    confounds: ConfoundReport | None
    provenance: Provenance | None


def count_prompts(record: CaptureRecord) -> int:
    """Number of prompts of a capture, those of both sides of a contrast."""
    return record.get("num_prompts", len(record["prompts"]) + len(record["negative_prompts"]))


class PromptList(TypedDict):
    """What is known of a list of prompts without holding it.

    Attributes:
        file: Name of the file that they came from.
        count: Number of prompts.
        tokens: Number of tokens in all.
        kept: Most positions kept of one prompt.
        texts: SHA-256 of the texts.
        ids: SHA-256 of the token ids.
    """

    file: str
    count: int
    tokens: int
    kept: int
    texts: str
    ids: str


class ShardPlan(TypedDict):
    """`plan.json`: what a capture in shards will hold, written before the first of them.

    Attributes:
        schema: Version of this layout.
        prompts: What is captured.
        shard_prompts: Prompts in each shard but the last.
        layers: Which layers are captured.
        num_layers: Decoder blocks of the model.
        hidden_size: Width of the states.
        store_dtype: Dtype that the states are stored in; `as captured` if they are stored as they are.
        weights: Fingerprint of the model's weights.
        provenance: How it is made.
    """

    schema: int
    prompts: PromptList
    shard_prompts: int
    layers: list[int]
    num_layers: int
    hidden_size: int
    store_dtype: str
    weights: str
    provenance: Provenance
