"""Directions, and what a text shows along them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from engine.records.captures import Factors, Provenance
from engine.records.results import ConfoundReport, LayerRow, Ranking, SideSummary

if TYPE_CHECKING:
    from torch import Tensor


Method = Literal["mean_diff", "pca", "logistic"]


class Direction(TypedDict):
    """A unit vector at one layer, positive minus negative.

    Attributes:
        layer: Layer number.
        vector: `(hidden,)`, float32, of length 1; the positive side projects higher.
        negative_mean: Mean projection of the negative prompts' states, in the units of the states.
        positive_mean: Mean projection of the positive prompts' states.
        method: How it was found.
        concept: Name of the concept, None for pairs of the user's own.
        num_pairs: Number of pairs it was found from.
        provenance: How these were captured; None if that is unknown.
    """

    layer: int
    vector: Tensor
    negative_mean: float
    positive_mean: float
    method: Method
    concept: str | None
    num_pairs: int
    provenance: Provenance | None


class DirectionSummary(TypedDict):
    """What the file of saved directions says of one layer's."""

    layer: int
    negative_mean: float
    positive_mean: float


class DirectionsHeader(TypedDict):
    """What a file of directions holds beside the vectors.

    Attributes:
        schema: Version of this layout.
        layers: One entry per direction, ascending.
        leading: Layer that ranked first in the capture; None if it had no ranking.
        capture: Name of the capture they come from.
        method: How they were found.
        concept: Name of the concept.
        num_pairs: Number of pairs.
        provenance: How these were captured.
    """

    schema: int
    layers: list[DirectionSummary]
    leading: int | None
    capture: str
    method: Method
    concept: str | None
    num_pairs: int
    provenance: Provenance | None


class TokenReading(TypedDict):
    """Every token of a text, read along directions.

    Attributes:
        prompt: The text.
        tokens: Its tokens, as the vocabulary spells them.
        layers: Layers that were read, ascending.
        leading: The layer to look at first.
        values: Layer to one value a token: 0 is the mean of the negative prompts, 1 that of the positive ones.
        concept: Name of the concept.
        method: How the directions were found.
        warnings: What must be known before believing it.
    """

    prompt: str
    tokens: list[str]
    layers: list[int]
    leading: int
    values: dict[int, list[float]]
    concept: str | None
    method: Method
    warnings: list[str]


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


class NumberedPair(TypedDict):
    """One pair of a capture.

    Attributes:
        number: Its place, from 0.
        positive: The positive prompt.
        negative: The negative prompt.
        factors: What it was made from; None where that is not known.
    """

    number: int
    positive: str
    negative: str
    factors: Factors | None


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
        other_pairs: Of a capture in shards, pairs beyond the first that `sides` names.
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
    other_pairs: NotRequired[list[NumberedPair]]
    statistics: list[LayerRow]
    ranking: Ranking | None
    sides: list[SideSummary]
    unranked: str
    confounds: ConfoundReport | None
    provenance: Provenance | None


def count_prompts(record: CaptureRecord) -> int:
    """Number of prompts of a capture, those of both sides of a contrast."""
    return record.get("num_prompts", len(record["prompts"]) + len(record["negative_prompts"]))


def record_warnings(record: CaptureRecord) -> list[str]:
    """What must be known before what a capture shows is believed, in sentences."""
    provenance = record["provenance"]
    changes = [*provenance.get("altered", [])] if provenance else []
    if provenance and "autocast" in provenance:
        changes.append(f"autocast to {provenance['autocast']}")
    ranking, confounds = record["ranking"], record["confounds"]
    return [
        *([f"the model was not as its checkpoint says: {'; '.join(changes)}"] if changes else []),
        *([f"not ranked: {record['unranked']}"] if record["unranked"] else []),
        *(ranking["warnings"] if ranking else []),
        *(confounds["warnings"] if confounds else []),
    ]


def find_pair(record: CaptureRecord, number: int) -> NumberedPair:
    """A pair that a record names, by its number.

    Args:
        record: Of a contrast.
        number: One of the first pairs, or of those that its `sides` name.

    Raises:
        KeyError: The record does not hold its texts.
    """
    if number < len(record["prompts"]):
        factors = record["factors"][number] if record["factors"] else None
        texts = record["prompts"][number], record["negative_prompts"][number]
        return NumberedPair(number=number, positive=texts[0], negative=texts[1], factors=factors)
    return {pair["number"]: pair for pair in record.get("other_pairs", [])}[number]


class PromptList(TypedDict):
    """What is known of a list of prompts without holding it.

    Attributes:
        file: Name of the file, or of the concept, that they came from.
        pairs: Whether they are the sides of pairs: positive, negative, positive, and so on.
        count: Number of prompts.
        tokens: Number of tokens in all.
        kept: Most positions kept of one prompt.
        kept_in_all: Positions kept of all prompts.
        texts: SHA-256 of the texts.
        ids: SHA-256 of the token ids.
        factors: SHA-256 of what the pairs were made from; empty where that is not known.
    """

    file: str
    pairs: bool
    count: int
    tokens: int
    kept: int
    kept_in_all: int
    texts: str
    ids: str
    factors: str


class ShardPlan(TypedDict):
    """`plan.json`: what a capture in shards will hold, written before the first of them.

    Attributes:
        schema: Version of this layout.
        prompts: What is captured.
        concept: Name of the concept, None for prompts and pairs of the user's own.
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
    concept: str | None
    shard_prompts: int
    layers: list[int]
    num_layers: int
    hidden_size: int
    store_dtype: str
    weights: str
    provenance: Provenance
